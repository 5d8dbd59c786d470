"""The step of a walk over a relaxed node, and its end on a box, each as one differentiable function.

A row with coefficient a >= 0 takes the node's lower line, a < 0 its upper line. Fused, it needs the two
halves of the coefficients once, and its gradient is written down instead of taped: what leaves the node
with gradient g passes on to a as g times the slope taken, and to the slopes and intercepts as g times the
half that took them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from surebound.linear.maps import LinearMap, contract, merged
from surebound.ops.record import Lines

Optional = Tensor | None


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A value that broadcasts over the support of `like`, with one axis for all entries: [G or 1, S or 1, n]."""
    if value.shape[2:] != like.shape[2:]:
        value = value.expand(*value.shape[:2], *like.shape[2:])
    return merged(value, 2)


def collected(value: Tensor, like: Tensor) -> Tensor:
    """The transpose of broadcasting `like`: sums over what it was repeated along."""
    return value.sum_to_size(like.shape)


def positive(a: Tensor) -> Tensor:
    """1 where a > 0, else 0. As weights of `lerp` it chooses exactly, several times faster than `where`."""
    return a.sign().clamp_(min=0)


def within(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Does a tensor of `shape` broadcast to `whole`?"""
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(whole), strict=False))


def mixed(up: Tensor, of_up: Tensor, down: Tensor, of_down: Tensor) -> Tensor:
    """up of_up + down of_down, in the memory of the operand that has the result's shape."""
    if within(of_up.shape, up.shape) and within(of_down.shape, up.shape):
        return up.mul_(of_up).addcmul_(down, of_down)
    return torch.addcmul(down * of_down, up, of_up)


class Relaxed(torch.autograd.Function):
    """(a, lower slope, lower intercept, upper slope, upper intercept) -> (slopes taken times a, constant [G, S])."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, ls: Tensor, li: Optional, us: Tensor, ui: Optional) -> tuple[Tensor, Tensor]:
        up, down = a.clamp(min=0), a.clamp(max=0)  # at every entry one of them is zero, so nothing below rounds twice
        constant = a.new_zeros(a.shape[:2])
        if li is not None:
            constant = constant + contract(merged(up, 2), spread(li, a))
        if ui is not None:
            constant = constant + contract(merged(down, 2), spread(ui, a))
        ctx.save_for_backward(a, ls, li, us, ui)
        return mixed(up, ls, down, us), constant

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Optional, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        g, c = grad_outputs
        a, ls, li, us, ui = ctx.saved_tensors
        c = c.reshape(*c.shape, *([1] * (a.dim() - 2)))
        of_a = of_ls = of_li = of_us = of_ui = None
        if ctx.needs_input_grad[0]:
            below, above = g * ls, g * us
            below = below if li is None else below.addcmul_(c, li)
            above = above if ui is None else above.addcmul_(c, ui)
            of_a = torch.lerp(above, below, positive(a))
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            up = a.clamp(min=0)
            of_ls = collected(g * up, ls) if ctx.needs_input_grad[1] else None
            of_li = collected(c * up, li) if ctx.needs_input_grad[2] and li is not None else None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            down = a.clamp(max=0)
            of_us = collected(g * down, us) if ctx.needs_input_grad[3] else None
            of_ui = collected(c * down, ui) if ctx.needs_input_grad[4] and ui is not None else None
        return of_a, of_ls, of_li, of_us, of_ui


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
