"""One score for every split: how much of the bound its relaxation may have cost.

For a neuron with coefficient A in the walk, A < 0 met the upper line and lost at most -A times that line's
slack at the split's threshold; A > 0 met the lower line and lost at most A times its slack at the better
end (BaBSR's intercept score, Bunel et al. 2020, for relu). For an input dimension it is |A| times the
half-width ("smart branching").
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from surebound.bounds.crown import Context
from surebound.bounds.plan import Step
from surebound.bounds.walk import fixed_operands, lines_of
from surebound.graph.ir import Site
from surebound.linear.maps import merged
from surebound.ops.record import Interval
from surebound.regions import Box

FLOOR = 0.1


def neuron_scores(
    ctx: Context, step: Step, box: Interval, coefficients: Tensor, free: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores and thresholds [N, *shape] of a relaxed step's neurons; -inf where a split changes nothing.

    coefficients [N, *shape] at the step's value; free [K, N, 1, *shape].
    """
    fixed = fixed_operands(step, ctx.values)
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    lines = lines_of(step, ctx.values, box, free)
    low_intercept = 0.0 if lines.lower_intercept is None else lines.lower_intercept
    high_intercept = 0.0 if lines.upper_intercept is None else lines.upper_intercept
    at = step.relaxation.threshold(step.site, fixed, lower, upper)

    def f(x: Tensor) -> Tensor:
        return apply(step.site, step, fixed, x)

    above = lines.upper_slope * at + high_intercept - f(at)
    below = torch.minimum(
        f(lower) - lines.lower_slope * lower - low_intercept,
        f(upper) - lines.lower_slope * upper - low_intercept,
    )
    a = coefficients.unsqueeze(1)
    score = torch.where(a > 0, a * below, -a * above)
    usable = step.relaxation.loose(step.site, fixed, lower, upper) & (lower < at) & (at < upper)
    score = torch.where(usable & torch.isfinite(score), score, torch.full_like(score, -torch.inf))
    return score.squeeze(1), at.expand_as(score).squeeze(1)


def apply(site: Site, step: Step, fixed: list[Tensor | None], x: Tensor) -> Tensor:
    """The step's function at x [N, 1, *shape]."""
    flat = x.flatten(0, 1)
    operands = [flat if value is None else value for value in fixed]
    return step.op.forward(site, *operands).reshape(x.shape)


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
    ctx: Context, boxes: Mapping[str, Interval], reached: Mapping[str, Tensor], free: Mapping[str, Tensor]
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
            coefficients = reached[step.site.node.name]
            score, at = neuron_scores(ctx, step, boxes[name], coefficients, free.get(step.site.node.name))
            if total is None or where is None:
                total, where = score, at
            else:
                where = torch.where(score > total, at, where)
                total = torch.where(torch.isinf(total) | torch.isinf(score), torch.maximum(total, score), total + score)
        if total is not None and where is not None:
            names.append(name)
            scores.append(merged(total, 1))
            thresholds.append(merged(where, 1))
    return names, scores, thresholds
