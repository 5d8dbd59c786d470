"""The relaxed network at the input where a bound is attained.

A walk ends in A x + c, whose minimiser over the region is x*. Sent forward through the lines that the walk chose, x*
gives every node the value z* that it has in the relaxation: the bound is  A_v y* + what does not pass v  for the line's
value y* of any relaxed neuron v with coefficient A_v.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from surebound.bounds.crown import Context
from surebound.bounds.walk import lines_of
from surebound.ops.record import Interval, Lines


class Attained(NamedTuple):
    """A relaxed step where a bound is attained: its operand's value and its line's there, [N, *shape], and its lines
    [N, 1, *shape].
    """

    operand: Tensor
    value: Tensor
    lines: Lines


def chosen(lines: Lines, coefficients: Tensor, x: Tensor) -> Tensor:
    """The line that a walk with these coefficients takes, at x: the lower one where they are positive.

    lines as `lines_of` makes them, of one row: [N, 1, *shape]; coefficients and x [N, *shape].
    """
    low = on(lines.lower_slope, lines.lower_intercept, x)
    return torch.where(coefficients > 0, low, on(lines.upper_slope, lines.upper_intercept, x))


def on(slope: Tensor, intercept: Tensor | None, x: Tensor) -> Tensor:
    """A line [N, 1, *shape] at x [N, *shape]."""
    value = slope.squeeze(1) * x
    return value if intercept is None else value + intercept.squeeze(1)


def attained(
    ctx: Context,
    boxes: Mapping[str, Interval],
    free: Mapping[str, Tensor],
    reached: Mapping[str, Tensor],
    points: Mapping[str, Tensor],
) -> dict[str, Attained]:
    """By relaxed step that a walk reached: where its bound is attained.

    free [K, N, 1, *shape] and reached [N, *shape]: the walk's free values and its coefficients by relaxed step; points
    [N, *shape] by root.
    """
    values = {**ctx.values, **points}
    found: dict[str, Attained] = {}
    for name, step in ctx.plan.steps.items():
        operands = [values[source] for source in step.site.node.inputs]
        if step.affine or name not in reached:
            values[name] = step.op.forward(step.site, *operands)
            continue
        lines = lines_of(step, ctx.values, boxes[step.site.node.inputs[0]], free.get(name))
        values[name] = chosen(lines, reached[name], operands[0])
        found[name] = Attained(operands[0], values[name], lines)
    return found
