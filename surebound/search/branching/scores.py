"""One score for every split: what it gains for the bound, to first order.

A walk's bound is attained at a point; there a neuron with coefficient A has the line's value y* over its operand's
value z*. A child replaces the line by its own, which gives A (line(z*) - y*), everything else held fixed. The score is
the sum of what the two children gain. Where the line costs nothing at the split, by the intercept score (BaBSR, Bunel
et al. 2020: the line's slack there, which looks at the worst point of the box and not at the one that the bound is
about), the neuron is not split (docs/decisions.md). For an input dimension the score is |A| times the half-width
("smart branching").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from surebound.bounds.attained import Attained, chosen, on
from surebound.bounds.crown import Context
from surebound.bounds.plan import Step
from surebound.bounds.walk import fixed_operands, lines_of
from surebound.linear.maps import merged
from surebound.ops.record import Interval
from surebound.regions import Box

FLOOR = 0.1

TINY = 1e-6
"""A neuron whose slack is at most this part of its layer's largest is not split; its slack counts for so much, so that
one that gains nothing at the point can still be.
"""


def neuron_scores(ctx: Context, step: Step, box: Interval, coefficients: Tensor, at: Attained) -> tuple[Tensor, Tensor]:
    """Scores and thresholds [N, *shape] of a relaxed step's neurons; -inf where a split changes nothing.

    coefficients [N, *shape] at the step's value.
    """
    if step.relaxation.together:
        return factor_scores(ctx, step, box, coefficients, at)
    fixed = fixed_operands(step, ctx.values)
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    where = step.relaxation.threshold(step.site, fixed, lower, upper).expand_as(lower)
    usable = step.relaxation.loose(step.site, fixed, lower, upper) & (lower < where) & (where < upper)
    where, usable = where.squeeze(1), usable.squeeze(1)
    lost = slack(step, fixed, box, coefficients, at, where)
    largest = merged(torch.where(usable, lost, torch.zeros_like(lost)), 1).amax(1)
    usable = usable & (lost > TINY * largest.reshape(-1, *[1] * (lost.dim() - 1)))
    score = TINY * lost
    for child in (Interval(box.lower, where), Interval(where, box.upper)):
        line = chosen(lines_of(step, ctx.values, child, None), coefficients, at.operand)
        score = score + (coefficients * (line - at.value)).clamp(min=0)
    return torch.where(usable & torch.isfinite(score), score, torch.full_like(score, -torch.inf)), where


def factor_scores(ctx: Context, step: Step, box: Interval, coefficients: Tensor, at: Attained) -> tuple[Tensor, Tensor]:
    """The same for the factors of products, [N, 2, *shape]: halving one of the two factors."""
    width, where = box.upper - box.lower, (box.upper + box.lower) / 2
    usable = (width > 0).all(1, keepdim=True) & (box.lower < where) & (where < box.upper)
    value = at.value.sum(1, keepdim=True)
    lost = (coefficients.abs() * width.prod(1, keepdim=True) / 4).nan_to_num(nan=torch.inf)
    score = TINY * lost
    for half in (0, 1):
        chosen_half = torch.zeros_like(usable)
        chosen_half[:, half] = True
        for child in (
            Interval(box.lower, torch.where(chosen_half, where, box.upper)),
            Interval(torch.where(chosen_half, where, box.lower), box.upper),
        ):
            lines = lines_of(step, ctx.values, child, None)
            line = chosen(lines, coefficients, at.operand).sum(1, keepdim=True)
            gain = (coefficients * (line - value)).clamp(min=0)
            score = score + torch.where(chosen_half, gain, torch.zeros_like(gain))
    return torch.where(usable & torch.isfinite(score), score, torch.full_like(score, -torch.inf)), where


def slack(
    step: Step, fixed: Sequence[Tensor | None], box: Interval, coefficients: Tensor, at: Attained, where: Tensor
) -> Tensor:
    """What the line costs the bound at a split, [N, *shape]: at the threshold above, at the better end below."""

    def f(x: Tensor) -> Tensor:
        return step.op.forward(step.site, *(x if value is None else value for value in fixed))

    lines = at.lines
    above = on(lines.upper_slope, lines.upper_intercept, where) - f(where)
    below = torch.minimum(*(f(x) - on(lines.lower_slope, lines.lower_intercept, x) for x in box))
    return torch.where(coefficients > 0, coefficients * below, -coefficients * above)


def input_scores(lower: Tensor, upper: Tensor, sensitivity: Tensor) -> Tensor:
    """Sensitivity times half-width per input dimension [N, n]; -inf for a dimension that cannot be halved.

    sensitivity [N, n] >= 0 counts at least FLOOR of its largest entry: a coefficient that happens to vanish
    says nothing about the relaxation's dependence on the dimension.
    """
    half, middle = (upper - lower) / 2, (upper + lower) / 2
    splittable = (middle > lower) & (middle < upper)
    least = sensitivity.amax(1, keepdim=True) * FLOOR + torch.finfo(half.dtype).tiny
    score = torch.maximum(sensitivity, least) * half
    return torch.where(splittable & torch.isfinite(score), score, torch.full_like(score, -torch.inf))


def all_neuron_scores(
    ctx: Context, boxes: Mapping[str, Interval], reached: Mapping[str, Tensor], at: Mapping[str, Attained]
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Scores and thresholds of every splittable node: names, [N, numel] scores, [N, numel] thresholds.

    A node read by several relaxed steps gets the sum of their scores. An input whose region is no box cannot be cut.
    """
    names: list[str] = []
    scores: list[Tensor] = []
    thresholds: list[Tensor] = []
    for name, steps in ctx.plan.operands.items():
        if name in ctx.regions and not isinstance(ctx.regions[name], Box):
            continue
        total: Tensor | None = None
        where: Tensor | None = None
        for step in steps:
            if step.site.node.name not in reached:
                continue
            own = step.site.node.name
            score, threshold = neuron_scores(ctx, step, boxes[name], reached[own], at[own])
            if total is None or where is None:
                total, where = score, threshold
            else:
                where = torch.where(score > total, threshold, where)
                total = torch.where(torch.isinf(total) | torch.isinf(score), torch.maximum(total, score), total + score)
        if total is not None and where is not None:
            names.append(name)
            scores.append(merged(total, 1))
            thresholds.append(merged(where, 1))
    return names, scores, thresholds
