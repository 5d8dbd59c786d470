"""The engine for networks of one hidden layer: neurons are split, the rest is bounded with envelopes over all inputs.

Nothing is kept from parent to child: the box of a sub-problem is its case's, cut by all of its splits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.envelope import Enveloped, Hidden, least
from surebound.bounds.walk import walk
from surebound.linear.maps import Dense, merged
from surebound.ops.record import Interval
from surebound.regions import Region
from surebound.search.clipping import IMPOSSIBLE, Linear, clipped
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.neurons import cut_region, only
from surebound.search.problem import Problem
from surebound.search.slots import Slots
from surebound.search.tree import Forest

AT_ONCE = 1 << 22
"""Numbers in the largest table of a batch."""

LITTLE = 0.01
"""Where no envelope costs this part of what the bound misses, splits of neurons gain nothing, and inputs are split."""


def has_one_layer(of: Problem) -> bool:
    """Is a relu the only step that is relaxed, and every conjunction of one atom?"""
    ops = [step.site.node.op for step in of.plan.relaxed]
    return ops == ["relu"] and of.roots.spec.shape[1] == 1


class EnvelopeEngine:
    """Bounds sub-problems of boxes, see `surebound.bounds.envelope`."""

    name = "envelope"

    def __init__(self, problem: Problem, forest: Forest) -> None:
        self.problem, self.forest, self.slots = problem, forest, Slots()
        (step,) = problem.plan.relaxed
        self.relu, (self.operand,) = step.site.node.name, step.site.node.inputs
        neurons = problem.graph[self.operand]
        rows = Dense(torch.eye(neurons.numel, dtype=torch.float64).reshape(1, -1, *neurons.shape))
        walked = walk(problem.plan, problem.values[torch.float64], self.operand, rows, None)
        self.weight = merged(walked.roots[problem.input].dense(), 2)[0]
        self.bias = walked.constant.reshape(-1)

    @property
    def batch(self) -> int:
        table = 2 * self.weight.numel()
        return int(min(1024, max(32, AT_ONCE // table), self.problem.memory.rows(table, torch.float64)))

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        with torch.no_grad():
            root = torch.from_numpy(self.forest["root"][rows].astype(np.int64))
            splits = self.forest.paths(rows)
            region = self.problem.roots.region.take(self.problem.roots.within[root])
            region, empty = cut_region(region, splits, self.problem.input)
            lower, upper, unmet = self.clipped(region, splits)
            of = self.hidden(root, splits, lower, upper)
            found = least(of)
            bound = torch.where(torch.maximum(empty, unmet) > 0, IMPOSSIBLE, found.lower)
            proven = confirmed(bound)
            choice = self.choose(found, of)
        points = found.point.reshape(len(rows), *self.problem.graph.input.shape)
        return Bounded(bound.numpy(), proven, points, choice, np.full(len(rows), -1, np.int32))

    def clipped(self, region: Region, splits: Splits) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes [N, n] without what cannot meet the splits, and as `clipped` how surely nothing is left."""
        here = (splits.sign != 0) & (splits.node == splits.names.index(self.operand))
        sign, at = torch.where(here, splits.sign, 0).double(), torch.where(here, splits.index, 0)
        b = sign * (splits.threshold - self.bias[at])
        lines = Linear(-sign.unsqueeze(2) * self.weight[at], b, merged(region.lower, 1), merged(region.upper, 1))
        return clipped(lines, here)

    def hidden(self, root: Tensor, splits: Splits, lower: Tensor, upper: Tensor) -> Hidden:
        """The margins of some roots as functions of the input, in boxes."""
        problem, kind = self.problem, torch.float64
        walked = walk(problem.plan, problem.values[kind], problem.output, Dense(problem.spec(root, kind)), None)
        a = merged(walked.roots[self.relu].dense(), 2).squeeze(1)
        direct = walked.roots.get(problem.input)
        r = torch.zeros_like(lower) if direct is None else merged(direct.dense(), 2).squeeze(1)
        c = (walked.constant - problem.roots.threshold[root].double()).squeeze(1)
        endless = torch.full_like(a, torch.inf).reshape(len(root), *problem.graph[self.operand].shape)
        known = only(splits, self.operand).clamp({self.operand: Interval(-endless, endless)})[self.operand]
        known = Interval(merged(known.lower, 1), merged(known.upper, 1))
        return Hidden(a, r, c, self.weight, self.bias, lower, upper, known)

    def choose(self, found: Enveloped, of: Hidden) -> Choice:
        """The neuron whose envelope costs most; where that is little, the input on which the bound depends most."""
        gap, neuron = found.gaps.max(1, keepdim=True)
        by_neuron = gap > LITTLE * found.lower.neg().clamp(min=0).unsqueeze(1)
        width = of.upper - of.lower
        score, index = torch.where(width > 0, found.slope.abs() + 1e-9 * width, -torch.inf).max(1, keepdim=True)
        middle = (of.lower / 2 + of.upper / 2).gather(1, index)
        names = self.forest.names
        node = torch.where(by_neuron, names.index(self.operand), names.index(self.problem.input))
        return Choice(
            node.numpy().astype(np.int16),
            torch.where(by_neuron, neuron, index).numpy().astype(np.int32),
            torch.where(by_neuron, torch.zeros_like(middle), middle).numpy(),
            (by_neuron | torch.isfinite(score)).numpy(),
        )
