"""Interval bounds for training: centre and radius instead of lower and upper ends.

IBP (Gowal et al. 2018) in the form that costs least to differentiate: a linear layer is two products,
c' = W c + b and r' = |W| r, an activation a few element-wise operations with a gradient written down. The values are
those of `surebound.bounds.ibp` up to rounding; verdicts are never taken from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from surebound.bounds.plan import Plan, Step
from surebound.linear.cached import cached
from surebound.ops.piecewise import relu_chord
from surebound.ops.record import Interval


class Ball(NamedTuple):
    """All x with |x - centre| <= radius, element-wise: [B, *shape] each."""

    centre: Tensor
    radius: Tensor

    @property
    def ends(self) -> Interval:
        """The same set by its ends."""
        return Interval(self.centre - self.radius, self.centre + self.radius)


def ball(box: Interval) -> Ball:
    """A box by centre and radius."""
    return Ball((box.lower + box.upper) / 2, (box.upper - box.lower) / 2)


class Relu(torch.autograd.Function):
    """(c, r) -> centre and radius of [max(c - r, 0), max(c + r, 0)]; of the two inputs it keeps only two masks.

    shrink: factor on the upper end where the lower one is 0.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, r: Tensor, shrink: float) -> tuple[Tensor, Tensor]:
        centre, radius = torch.empty_like(c), torch.empty_like(r)
        above, reach = torch.empty_like(c, dtype=torch.bool), torch.empty_like(c, dtype=torch.bool)
        for at in cached(c):
            lower, upper = torch.sub(c[at], r[at], out=centre[at]).clamp_(min=0), (c[at] + r[at]).clamp_(min=0)
            torch.gt(lower, 0, out=above[at])
            torch.gt(upper, 0, out=reach[at])
            if shrink != 1:
                upper = torch.where(above[at], upper, upper * shrink)
            torch.sub(upper, lower, out=radius[at]).mul_(0.5)
            lower.add_(upper).mul_(0.5)
        ctx.save_for_backward(above, reach)
        ctx.shrink = shrink
        return centre, radius

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_centre, of_radius = grad_outputs
        above, reach = ctx.saved_tensors
        of_c, of_r = torch.empty_like(of_centre), torch.empty_like(of_radius)
        for at in cached(of_centre):
            of_lower = (of_centre[at] - of_radius[at]).mul_(0.5).mul_(above[at])
            of_upper = (of_centre[at] + of_radius[at]).mul_(0.5).mul_(reach[at])
            if ctx.shrink != 1:
                of_upper = torch.where(above[at], of_upper, of_upper * ctx.shrink)
            torch.add(of_lower, of_upper, out=of_c[at])
            torch.sub(of_upper, of_lower, out=of_r[at])
        return of_c, of_r, None


class Chords(torch.autograd.Function):
    """(c, r) -> CROWN's lines of a ReLU over c +- r: slope below (0 or 1, no gradient), slope and intercept above.

    With the ends l < 0 < u and h = 1 / (u - l): slope u h, intercept -l u h, and the gradients
    d slope = -l h^2 du + u h^2 dl, d intercept = (l h)^2 du - (u h)^2 dl. It keeps only its inputs.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(c, r)
        below, slope, intercept = torch.empty_like(c), torch.empty_like(c), torch.empty_like(c)
        for at in cached(c):
            lower, upper = c[at] - r[at], c[at] + r[at]
            slope[at], intercept[at], above, _ = relu_chord(lower, upper)
            torch.maximum(torch.gt(c[at], 0, out=below[at]), above, out=below[at])
        ctx.mark_non_differentiable(below)
        return below, slope, intercept

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, of_slope, of_intercept = grad_outputs
        c, r = ctx.saved_tensors
        of_c, of_r = torch.empty_like(c), torch.empty_like(r)
        for at in cached(c):
            lower, upper = c[at] - r[at], c[at] + r[at]
            h = (upper - lower).reciprocal_().masked_fill_((lower >= 0) | (upper <= 0), 0.0)
            v, w = lower.mul_(h).neg_(), upper.mul_(h)
            of_chord = h.mul_(of_slope[at])
            of_lower = torch.addcmul(of_chord, w, of_intercept[at], value=-1).mul_(w)
            of_upper = of_chord.addcmul_(v, of_intercept[at]).mul_(v)
            torch.add(of_upper, of_lower, out=of_c[at])
            torch.sub(of_upper, of_lower, out=of_r[at])
        return of_c, of_r


class Sizes(torch.autograd.Function):
    """w -> |w|, with the gradient's sign written in place."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.abs()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (w,) = ctx.saved_tensors
        return w.sign().mul_(grad_outputs[0])


class Dense(torch.autograd.Function):
    """(c, r, w, b) -> c w' + b and r |w|' for [B, n], [B, n], [m, n], [m]: one pass over a large weight's gradient.

    With gradients g and h of the two: of w it is g' c + (h' r) sign(w).
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, r: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        size = w.abs()
        ctx.save_for_backward(c, r, w, size)
        return torch.addmm(b, c, w.t()), r @ size.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        g, h = grad_outputs
        c, r, w, size = ctx.saved_tensors
        of_w, of_size = g.t() @ c, h.t() @ r
        for at in cached(of_w):
            of_w[at].addcmul_(of_size[at], w[at].sign())
        return g @ w, h @ size, of_w, g.sum(0)


Values = Mapping[str, Tensor]
Rule = Callable[[Step, Values, Ball], Ball]


def product(step: Step, values: Values, x: Ball) -> Ball:
    """A linear layer or a convolution with fixed weights."""
    weight, *bias = (values[name] for name in step.site.node.inputs[1:])
    if step.site.node.op == "linear" and x.centre.dim() == 2 and bias:
        return Ball(*Dense.apply(*x, weight, *bias))  # pyright: ignore[reportGeneralTypeIssues]
    centre = step.op.forward(step.site, x.centre, weight, *bias)
    return Ball(centre, step.op.forward(step.site, x.radius, Sizes.apply(weight)))


def moved(step: Step, values: Values, x: Ball) -> Ball:
    """An op that only moves values about."""
    return Ball(step.op.forward(step.site, x.centre), step.op.forward(step.site, x.radius))


def grafted(step: Step, values: Values, x: Ball, shrink: float) -> Ball:
    """A line where the mask is true, exactly; a ReLU elsewhere."""
    mask, slope, intercept = (values[name] for name in step.site.node.inputs[1:])
    relu = Ball(*Relu.apply(x.centre, x.radius, shrink))  # pyright: ignore[reportGeneralTypeIssues]
    line = Ball(slope * x.centre + intercept, slope.abs() * x.radius)
    return Ball(*(torch.where(mask, a, b) for a, b in zip(line, relu, strict=True)))


RULES: Mapping[str, Rule] = MappingProxyType(
    {"conv2d": product, "linear": product, "reshape": moved, "transpose": moved, "avg_pool2d": moved}
)
"""Ops of one perturbed operand that have a rule here; all others take their rule for ends."""


def balls(plan: Plan, values: Values, box: Interval, shrink: float = 1.0) -> dict[str, Ball]:
    """The ball of every perturbed node of a network with one input, in order.

    plan: of the graph; values: of all nodes that nothing perturbs. Differentiable in `values` and `box`.
    shrink: factor on the upper ends of unstable ReLUs; grafted neurons are none.
    """
    found = {plan.roots[0]: ball(box)}
    for name, step in plan.steps.items():
        if step.site.node.op == "relu":
            x = found[step.site.node.inputs[0]]
            found[name] = Ball(*Relu.apply(x.centre, x.radius, shrink))  # pyright: ignore[reportGeneralTypeIssues]
            continue
        if step.site.node.op == "graft" and not any(step.perturbed[1:]):
            found[name] = grafted(step, values, found[step.site.node.inputs[0]], shrink)
            continue
        rule = RULES.get(step.site.node.op)
        if rule is not None and step.perturbed[0] and not any(step.perturbed[1:]):
            found[name] = rule(step, values, found[step.site.node.inputs[0]])
            continue
        operands = [
            found[source].ends if moves else Interval(values[source], values[source])
            for source, moves in zip(step.site.node.inputs, step.perturbed, strict=True)
        ]
        found[name] = ball(step.op.interval(step.site, *operands))
    return found
