"""The step of a walk over a relaxed node, and its end on a box, each as one differentiable function.

A row with coefficient a >= 0 takes the node's lower line, a < 0 its upper line. Fused, it needs the two
halves of the coefficients once, and its gradient is written down instead of taped: what leaves the node
with gradient g passes on to a as g times the slope taken, and to the slopes and intercepts as g times the
half that took them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surebound.linear.cached import cached, cut
from surebound.linear.maps import LinearMap, contract, merged
from surebound.ops.record import Lines

Optional = Tensor | None


def stored(value: Tensor, like: Tensor) -> Tensor:
    """A value with its axes from the third on in the order in which `like` lies in memory, so that merging is free."""
    order = sorted(range(2, like.dim()), key=lambda axis: -like.stride(axis))
    return value.permute(0, 1, *order)


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A value that broadcasts over the support of `like`, with one axis for all entries: [G or 1, S or 1, n]."""
    if value.shape[2:] != like.shape[2:]:
        value = value.expand(*value.shape[:2], *like.shape[2:])
    return merged(value, 2)


def collected(value: Tensor, like: Tensor) -> Tensor:
    """The transpose of broadcasting `like`: sums over what it was repeated along."""
    return value.sum_to_size(like.shape)


def collect(value: Tensor, into: Tensor) -> None:
    """Add a value to what was repeated along its axes, both read as the value lies in memory."""
    into = stored(into, value)
    into.add_(collected(stored(value, value), into))


def positive(a: Tensor) -> Tensor:
    """1 where a > 0, else 0. As weights of `lerp` it chooses exactly, several times faster than `where`."""
    return a.sign().clamp_(min=0)


class Relaxed(torch.autograd.Function):
    """(a, lower slope, lower intercept, upper slope, upper intercept) -> (slopes taken times a, constant [G, S])."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, ls: Tensor, li: Optional, us: Tensor, ui: Optional) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, ls, li, us, ui)
        a = a.expand(torch.broadcast_shapes(a.shape, ls.shape, us.shape))
        out, constant = torch.empty_like(a), a.new_zeros(a.shape[:2])
        for at in cached(a):
            # at every entry one of the halves is zero, so nothing below rounds twice
            here = a[at]
            up, down = torch.clamp(here, min=0, out=out[at]), here.clamp(max=0)
            for half, intercept in ((up, li), (down, ui)):
                if intercept is not None:
                    price = spread(stored(cut(intercept, at), half), stored(here, half))
                    constant[at] += contract(merged(stored(half, half), 2), price)
            up.mul_(cut(ls, at)).addcmul_(down, cut(us, at))
        return out, constant

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Optional, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        g, c = grad_outputs
        narrow, *lines = ctx.saved_tensors
        ls, li, us, ui = lines
        a, c = narrow.expand(g.shape), c.reshape(*c.shape, *([1] * (g.dim() - 2)))
        wanted = ctx.needs_input_grad
        of_a = torch.empty_like(g) if wanted[0] else None
        of_lines = [
            torch.zeros_like(line) if line is not None and wanted[place] else None
            for place, line in enumerate(lines, start=1)
        ]
        for at in cached(g):
            here, of_out, of_constant = a[at], g[at], c[at]
            if of_a is not None:
                below, above = of_out * cut(ls, at), torch.mul(of_out, cut(us, at), out=of_a[at])
                for part, intercept in ((below, li), (above, ui)):
                    if intercept is not None:
                        part.addcmul_(of_constant, cut(intercept, at))
                above.lerp_(below, positive(here))
            for half, (of_slope, of_intercept) in ((0, of_lines[:2]), (1, of_lines[2:])):
                if of_slope is None and of_intercept is None:
                    continue
                taken = here.clamp(max=0) if half else here.clamp(min=0)
                if of_slope is not None:
                    collect(of_out * taken, cut(of_slope, at))
                if of_intercept is not None:
                    collect(taken.mul_(of_constant), cut(of_intercept, at))
        return None if of_a is None else collected(of_a, narrow), *of_lines


class Least(torch.autograd.Function):
    """(a, lower, upper) -> the minimum of a x over the box lower <= x <= upper, [G, S]."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        ctx.save_for_backward(a, lower, upper)
        half = a.clamp(min=0)
        at_lower = contract(merged(half, 2), spread(lower, a))
        torch.clamp(a, max=0, out=half)
        return at_lower + contract(merged(half, 2), spread(upper, a))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Optional, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, lower, upper = ctx.saved_tensors
        g = grad_outputs[0].reshape(*a.shape[:2], *([1] * (a.dim() - 2)))
        of_a = of_lower = of_upper = None
        if ctx.needs_input_grad[0]:
            of_a = torch.lerp(upper, lower, positive(a)).mul_(g)
        if ctx.needs_input_grad[1]:
            of_lower = collected(a.clamp(min=0) * g, lower)
        if ctx.needs_input_grad[2]:
            of_upper = collected(a.clamp(max=0) * g, upper)
        return of_a, of_lower, of_upper


def least(rows: LinearMap, lower: Tensor, upper: Tensor) -> Tensor:
    """The minimum [G, S] of rows over boxes [G, 1, *shape] of their node."""
    return Least.apply(rows.coefficients, rows.at(lower), rows.at(upper))  # pyright: ignore[reportReturnType]


def relaxed(rows: LinearMap, lines: Lines) -> tuple[LinearMap, Tensor]:
    """Rows over a relaxed node's value as rows over its operand, and the constant [G, S].

    lines are on the rows' support (`rows.at`).
    """
    new, constant = Relaxed.apply(rows.coefficients, *lines)  # pyright: ignore[reportGeneralTypeIssues]
    return rows.holding(new), constant
