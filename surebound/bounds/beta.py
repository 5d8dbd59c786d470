"""Split constraints in a backward walk (beta-CROWN, Wang et al. 2021, theorem 3.1).

A split says sign (z - threshold) >= 0 for one value z of a node. With a multiplier beta >= 0 the bound of
the constrained problem is at least that of  A y - beta sign (z - threshold): an addend -beta sign to the
coefficient of z and +beta sign threshold to the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from surebound.bounds.walk import Addend
from surebound.graph.ir import Graph
from surebound.linear.maps import Dense, merged
from surebound.ops.record import Interval

NARROW = 1e-6
"""Boxes of at most this width do not set the unit of a multiplier."""


@dataclass(frozen=True)
class Splits:
    """Up to D splits for each of G groups.

    node [G, D] indexes `names`; index [G, D] is a flat position in that node's value; threshold [G, D];
    sign [G, D] is +1, -1, or 0 for an empty place. unit [G, D]: the multiplier that is called 1, None for 1;
    with `per_width` multipliers are of one size whatever the scale of the values that are split.
    """

    names: tuple[str, ...]
    node: Tensor
    index: Tensor
    threshold: Tensor
    sign: Tensor
    unit: Tensor | None = None

    @property
    def depth(self) -> int:
        """D."""
        return self.node.shape[1]

    @cached_property
    def present(self) -> list[int]:
        """Positions in `names` that some group splits."""
        return self.node[self.sign != 0].bincount().nonzero().flatten().tolist()

    @cached_property
    def placed(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By split node: the flat positions [G, 1, D], what a multiplier of 1 takes off the coefficient there, zero for
        splits of other nodes, and what it adds to the constant.
        """
        found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        sign = self.sign if self.unit is None else self.sign * self.unit
        for k in self.present:
            here = self.node == k
            weight = torch.where(here, sign, torch.zeros_like(sign))
            at = torch.where(here, self.index, 0)
            threshold = torch.where(here, weight * self.threshold, torch.zeros_like(sign))
            found[self.names[k]] = at.unsqueeze(1), weight.unsqueeze(1), threshold.unsqueeze(1)
        return found

    def to(self, dtype: torch.dtype) -> Splits:
        """Thresholds and signs in another dtype."""
        return replace(self, threshold=self.threshold.to(dtype), sign=self.sign.to(dtype))

    def at(self, groups: Tensor) -> Splits:
        """The splits of some groups."""
        node, index, threshold, sign = (part[groups] for part in (self.node, self.index, self.threshold, self.sign))
        return Splits(self.names, node, index, threshold, sign, None if self.unit is None else self.unit[groups])

    def newest(self, depth: int) -> Splits:
        """The first of each group's splits only."""
        return Splits(
            self.names,
            self.node[:, :depth],
            self.index[:, :depth],
            self.threshold[:, :depth],
            self.sign[:, :depth],
            None if self.unit is None else self.unit[:, :depth],
        )

    def per_width(self, boxes: Mapping[str, Interval]) -> Splits:
        """Multipliers in units of 1 / the width of the split value's box: what one unit can move a bound by is 1."""
        unit = torch.ones_like(self.sign)
        for k in self.present:
            box = boxes[self.names[k]]
            here = self.node == k
            width = merged(box.upper - box.lower, 1).gather(1, torch.where(here, self.index, 0))
            unit = torch.where(here & torch.isfinite(width) & (width > NARROW), 1 / width, unit)
        return replace(self, unit=unit)

    def clamp(self, boxes: Mapping[str, Interval]) -> dict[str, Interval]:
        """The boxes cut by the splits; a box may become empty (lower > upper) for infeasible groups."""
        cut = dict(boxes)
        for k in self.present:
            name = self.names[k]
            box = boxes[name]
            here = self.node == k
            lower, upper = merged(box.lower, 1), merged(box.upper, 1)
            low = torch.where(here & (self.sign > 0), self.threshold, -torch.inf)
            high = torch.where(here & (self.sign < 0), self.threshold, torch.inf)
            at = torch.where(here, self.index, 0)
            lower = lower.scatter_reduce(1, at, low.to(lower.dtype), "amax")
            upper = upper.scatter_reduce(1, at, high.to(upper.dtype), "amin")
            cut[name] = Interval(lower.reshape(box.lower.shape), upper.reshape(box.upper.shape))
        return cut

    def addends(self, graph: Graph, beta: Tensor) -> dict[str, Addend]:
        """What multipliers beta [G, S, D] >= 0 add to the walk, by split node."""
        joined: dict[str, Addend] = {}
        groups, rows, _ = beta.shape
        for name, (at, weight, threshold) in self.placed.items():
            shape = graph[name].shape
            zeros = torch.zeros(groups, rows, prod(shape), dtype=beta.dtype, device=beta.device)
            coefficients = zeros.scatter_add(2, at.expand(groups, rows, -1), beta * -weight)
            joined[name] = Addend(Dense(coefficients.reshape(groups, rows, *shape)), (beta * threshold).sum(-1))
        return joined
