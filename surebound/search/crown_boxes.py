"""CROWN's boxes of intermediate values, by the way that costs least where few inputs of a large network move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from surebound.bounds.crown import BY_WALK, Context, boxes_of, loose
from surebound.bounds.forward import Forms, held, moving
from surebound.bounds.memory import pieces
from surebound.ops.record import Interval
from surebound.regions import Box
from surebound.search.collapse import cost

FEW, LARGE = 64, 4096
"""Forward bounds come first where at most so many inputs move and at least so many neurons are bounded."""

FEW_DIMENSIONS = 10
"""Boxes with at most this many dimensions of any width are split on the input."""

DEAR, WORTH = 1 << 37, 1 << 31
"""Where inputs are split, walks may cost so many products of numbers for a case, and for a sub-problem: halves of a box
are bounded forward for a fraction of that, and in large networks nearly as tightly.
"""


def crown_boxes(ctx: Context, most: int) -> dict[str, Interval]:
    """Boxes by walks; where few inputs of a large network move by forward bounds, with walks for the neurons that these
    leave loose. Where inputs are split and such walks would cost more than `most` for a group, by forward bounds alone.
    """
    moves = sum(len(moving(region)) for region in ctx.regions.values())
    neurons = sum(ctx.plan.graph[name].numel for name in ctx.plan.operands)
    fitting = ctx.memory.budget // held(ctx.plan, moves)
    if not all(isinstance(r, Box) for r in ctx.regions.values()) or moves > FEW or neurons < LARGE or not fitting:
        return boxes_of(ctx, {}, (BY_WALK,))
    parts = [forward_boxes(ctx, torch.arange(*piece.indices(ctx.groups))) for piece in pieces(ctx.groups, fitting)]
    boxes = {
        name: Interval(torch.cat([part[name].lower for part in parts]), torch.cat([part[name].upper for part in parts]))
        for name in parts[0]
    }
    if moves <= FEW_DIMENSIONS and walks_cost(ctx, boxes) > most * ctx.groups:
        return boxes
    return boxes_of(ctx, boxes, (BY_WALK,))


def forward_boxes(ctx: Context, groups: Tensor) -> dict[str, Interval]:
    """Boxes of some groups by forward bounds; nothing else may differ from group to group than the regions."""
    own = replace(ctx, regions={name: region.take(groups) for name, region in ctx.regions.items()}, drawn={})
    return boxes_of(own, {}, (), Forms(own, keep="").tightened)


def walks_cost(ctx: Context, boxes: Mapping[str, Interval]) -> int:
    """Products of numbers, about, in walks for the neurons that boxes leave loose."""
    return sum(2 * int(loose(ctx, name, boxes[name]).sum()) * cost(ctx.plan, name) for name in ctx.plan.operands)
