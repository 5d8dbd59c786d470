"""Split constraints in a backward walk (beta-CROWN, Wang et al. 2021, theorem 3.1).

A split says sign (z - threshold) >= 0 for one value z of a node. With a multiplier beta >= 0 the bound of
the constrained problem is at least that of  A y - beta sign (z - threshold): an addend -beta sign to the
coefficient of z and +beta sign threshold to the constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from surebound.bounds.walk import Addend
from surebound.graph.ir import Graph
from surebound.linear.maps import Dense, merged
from surebound.ops.record import Interval


@dataclass(frozen=True)
class Splits:
    """Up to D splits for each of G groups.

    node [G, D] indexes `names`; index [G, D] is a flat position in that node's value; threshold [G, D];
    sign [G, D] is +1, -1, or 0 for an empty place.
    """

    names: tuple[str, ...]
    node: Tensor
    index: Tensor
    threshold: Tensor
    sign: Tensor

    @property
    def depth(self) -> int:
        """D."""
        return self.node.shape[1]

    def present(self) -> list[int]:
        """Positions in `names` that some group splits."""
        return sorted(set(self.node[self.sign != 0].tolist()))

    def to(self, dtype: torch.dtype) -> Splits:
        """Thresholds and signs in another dtype."""
        return Splits(self.names, self.node, self.index, self.threshold.to(dtype), self.sign.to(dtype))

    def at(self, groups: Tensor) -> Splits:
        """The splits of some groups."""
        return Splits(self.names, self.node[groups], self.index[groups], self.threshold[groups], self.sign[groups])

    def clamp(self, boxes: Mapping[str, Interval]) -> dict[str, Interval]:
        """The boxes cut by the splits; a box may become empty (lower > upper) for infeasible groups."""
        cut = dict(boxes)
        for k in self.present():
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
        for k in self.present():
            shape = graph[self.names[k]].shape
            here = (self.node == k) & (self.sign != 0)
            weight = beta * torch.where(here, self.sign, torch.zeros_like(self.sign)).unsqueeze(1)
            at = torch.where(here, self.index, 0).unsqueeze(1).expand(groups, rows, -1)
            zeros = torch.zeros(groups, rows, prod(shape), dtype=beta.dtype, device=beta.device)
            coefficients = zeros.scatter_add(2, at, -weight).reshape(groups, rows, *shape)
            threshold = torch.where(here, self.threshold, torch.zeros_like(self.threshold)).unsqueeze(1)
            joined[self.names[k]] = Addend(Dense(coefficients), (weight * threshold).sum(-1))
        return joined
