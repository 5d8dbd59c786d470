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
        lower, upper = (c - r).clamp_(min=0), (c + r).clamp_(min=0)
        above, reach = lower > 0, upper > 0
        ctx.save_for_backward(above, reach)
        ctx.shrink = shrink
        if shrink != 1:
            upper = torch.where(above, upper, upper * shrink)
        centre = (lower + upper).mul_(0.5)
        return centre, upper.sub_(lower).mul_(0.5)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_centre, of_radius = grad_outputs
        above, reach = ctx.saved_tensors
        of_lower = (of_centre - of_radius).mul_(0.5).mul_(above)
        of_upper = (of_centre + of_radius).mul_(0.5).mul_(reach)
        if ctx.shrink != 1:
            of_upper = torch.where(above, of_upper, of_upper * ctx.shrink)
        return of_lower + of_upper, of_upper.sub_(of_lower), None


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


Values = Mapping[str, Tensor]
Rule = Callable[[Step, Values, Ball], Ball]


def product(step: Step, values: Values, x: Ball) -> Ball:
    """A linear layer with fixed weights."""
    weight, *bias = (values[name] for name in step.site.node.inputs[1:])
    centre = step.op.forward(step.site, x.centre, weight, *bias)
    return Ball(centre, step.op.forward(step.site, x.radius, Sizes.apply(weight)))


def moved(step: Step, values: Values, x: Ball) -> Ball:
    """An op that only moves values about."""
    return Ball(step.op.forward(step.site, x.centre), step.op.forward(step.site, x.radius))


RULES: Mapping[str, Rule] = MappingProxyType(
    {"conv2d": product, "linear": product, "reshape": moved, "transpose": moved, "avg_pool2d": moved}
)
"""Ops of one perturbed operand that have a rule here; all others take their rule for ends."""


def balls(plan: Plan, values: Values, box: Interval, shrink: float = 1.0) -> dict[str, Ball]:
    """The ball of every perturbed node of a network with one input, in order.

    plan: of the graph; values: of all nodes that nothing perturbs. Differentiable in `values` and `box`.
    shrink: factor on the upper ends of unstable ReLUs.
    """
    found = {plan.roots[0]: ball(box)}
    for name, step in plan.steps.items():
        if step.site.node.op == "relu":
            x = found[step.site.node.inputs[0]]
            found[name] = Ball(*Relu.apply(x.centre, x.radius, shrink))  # pyright: ignore[reportGeneralTypeIssues]
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
