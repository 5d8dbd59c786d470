"""The input-splitting engine: CROWN on ever smaller boxes, for inputs of few dimensions.

Every sub-problem gets fresh intermediate boxes; the split halves the dimension in which the bound loses
most. Nothing is carried from parent to child.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.crown import caching_lines
from surebound.bounds.walk import walk
from surebound.linear.maps import Dense, merged
from surebound.ops.record import Interval
from surebound.regions import Box
from surebound.search.branching.scores import input_scores
from surebound.search.clipping import IMPOSSIBLE, Linear, clipped
from surebound.search.collapse import best_kept, collapse
from surebound.search.crown_boxes import WORTH, crown_boxes
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.mixing import best_weights, combined
from surebound.search.problem import Problem
from surebound.search.root_boxes import RootBoxes
from surebound.search.slots import Slots, grown
from surebound.search.tree import Forest

CACHED = 1 << 20
"""Coefficients per walk."""


class Left:
    """Boxes [2, n] that are left of sub-problems, by slot."""

    def __init__(self, size: int) -> None:
        self.slots = Slots()
        self.boxes = torch.zeros(0, 2, size, dtype=torch.float64)

    def keep(self, boxes: Tensor) -> NDArray[np.int32]:
        """Slots of boxes [N, 2, n]."""
        slots = self.slots.reserve(len(boxes))
        self.boxes = grown(self.boxes, (self.slots.capacity, *boxes.shape[1:]), torch.float64)
        self.boxes[slots] = boxes
        return slots


class InputEngine:
    """CROWN with CROWN intermediates on sub-boxes."""

    name = "input-split"

    def __init__(self, problem: Problem, forest: Forest, left: Left) -> None:
        self.problem, self.forest, self.left = problem, forest, left

    def collapsed(self, case: int, boxes: RootBoxes, alive: Callable[[], None]) -> InputEngine | None:
        """The engine on the collapsed instance of a case, from its boxes; None where that is not cheaper. alive: as in
        `Query`.
        """
        own = boxes.take(torch.tensor([case]), torch.float64)
        kept = best_kept(self.problem, case, own, {})
        if kept is None:
            return None
        return InputEngine(collapse(self.problem, case, own, kept, alive).problem, self.forest, self.left)

    @property
    def slots(self) -> Slots:
        return self.left.slots

    @property
    def batch(self) -> int:
        """As many boxes as keep the rows of one walk within a core's cache (measured best on small networks)."""
        widest = max((step.site.node.numel for step in self.problem.plan.relaxed), default=1)
        return int(min(2048, max(32, CACHED // (2 * widest * self.problem.widest))))

    def boxes(self, rows: NDArray[np.int64], root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The boxes [N, n] of sub-problems: their parents', cut by their own split, and by how much that leaves nothing
        [N], which is so when the split of a planted tree lies outside of a clipped box; some box is given then.
        """
        region = self.problem.roots.region.take(self.problem.roots.within[root])
        assert isinstance(region, Box)
        lower, upper = merged(region.lower, 1).clone(), merged(region.upper, 1).clone()
        slots = torch.from_numpy(self.forest["slot"][rows].astype(np.int64))
        known = (slots >= 0).nonzero().squeeze(1)
        lower[known], upper[known] = self.left.boxes[slots[known]].unbind(1)
        others = (slots < 0).nonzero().squeeze(1)
        if len(others):  # roots, and where a search goes on: what is left of their parents was not kept
            name, whole = self.problem.input, region.take(others)
            cut = self.forest.paths(rows[others.numpy()]).clamp({name: Interval(whole.lower, whole.upper)})[name]
            lower[others], upper[others] = merged(cut.lower, 1), merged(cut.upper, 1)
        at = torch.from_numpy(self.forest["index"][rows].astype(np.int64))
        threshold, sign = torch.from_numpy(self.forest["threshold"][rows]), torch.from_numpy(self.forest["sign"][rows])
        one = torch.arange(len(rows))
        lower[one, at] = torch.where(sign > 0, torch.maximum(lower[one, at], threshold), lower[one, at])
        upper[one, at] = torch.where(sign < 0, torch.minimum(upper[one, at], threshold), upper[one, at])
        return torch.minimum(lower, upper), torch.maximum(lower, upper), (lower - upper).amax(1)

    def linear(self, lower: Tensor, upper: Tensor, root: Tensor) -> Linear:
        """Linear lower bounds of every atom over boxes [N, n]."""
        problem, shape = self.problem, (-1, *self.problem.graph.input.shape)
        ctx = problem.context(Box(lower.reshape(shape), upper.reshape(shape)), lower.dtype)
        boxes = crown_boxes(ctx, WORTH)
        rows = Dense(problem.spec(root, lower.dtype))
        walked = walk(ctx.plan, ctx.values, problem.output, rows, caching_lines(ctx, boxes))
        constant = walked.constant - problem.roots.threshold[root].to(lower.dtype)
        return Linear(merged(walked.roots[problem.input].dense(), 2), constant, lower, upper)

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        with torch.no_grad():
            root = torch.from_numpy(self.forest["root"][rows].astype(np.int64))
            start, end, empty = self.boxes(rows, root)
            found = self.linear(start, end, root)
            real = self.problem.roots.real[root]
            weights = self.weights(found, real)
            lower, point = combined(weights, *found.parts)
            sensitivity = (weights.unsqueeze(2) * found.a.abs()).sum(1)
            least, most, unmet = clipped(found, real)
            lower = torch.where((unmet > 0) & ~(lower > 0), unmet, lower)
            lower = torch.where(empty > 0, IMPOSSIBLE, lower)
            proven = confirmed(lower)
            score, index = input_scores(least, most, sensitivity).max(1)
            middle = ((least + most) / 2).gather(1, index.unsqueeze(1)).squeeze(1)
        choice = Choice(
            np.full((len(rows), 1), self.forest.names.index(self.problem.input), np.int16),
            index.numpy().astype(np.int32)[:, None],
            middle.numpy()[:, None],
            torch.isfinite(score).numpy()[:, None],
        )
        slot = np.full(len(rows), -1, np.int32)
        slot[~proven] = self.left.keep(torch.stack([least, most], 1)[torch.from_numpy(~proven)])
        points = point.reshape(len(rows), *self.problem.graph.input.shape)
        return Bounded(lower.numpy(), proven, points, choice, slot)

    def weights(self, found: Linear, real: Tensor) -> Tensor:
        """Weights of the atoms: 1 where there is one, else the best combination.

        Each atom is scaled by the distance from its bound to its value where the bound is attained.
        """
        if real.shape[1] == 1:
            return torch.ones_like(found.b)
        low = torch.minimum(found.a * found.lower.unsqueeze(1), found.a * found.upper.unsqueeze(1)).sum(2) + found.b
        high = torch.maximum(found.a * found.lower.unsqueeze(1), found.a * found.upper.unsqueeze(1)).sum(2) + found.b
        scale = torch.where(real, (high - low).clamp(min=1e-12), torch.ones_like(low))
        return best_weights(*found.parts, scale, real)
