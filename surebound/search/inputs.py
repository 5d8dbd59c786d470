"""The input-splitting engine: CROWN on ever smaller boxes, for inputs of few dimensions.

Every sub-problem gets fresh intermediate boxes; the split halves the dimension in which the bound loses
most. Nothing is carried from parent to child.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.crown import BY_WALK, boxes_of, caching_lines
from surebound.bounds.walk import walk
from surebound.linear.maps import Dense, merged
from surebound.regions import Box
from surebound.search.branching.scores import input_scores
from surebound.search.clipping import Linear, clipped
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.mixing import best_weights, combined
from surebound.search.problem import Problem
from surebound.search.tree import Forest

CACHED = 1 << 20
"""Coefficients per walk."""


class Kept:
    """Boxes [., n] of sub-problems by slot, in float64; a slot has two users, the children of its sub-problem."""

    def __init__(self, size: int) -> None:
        self.lower, self.upper = torch.zeros(0, size, dtype=torch.float64), torch.zeros(0, size, dtype=torch.float64)
        self.users: NDArray[np.int8] = np.zeros(0, np.int8)
        self.unused: NDArray[np.int32] = np.empty(0, np.int32)

    def store(self, lower: Tensor, upper: Tensor) -> NDArray[np.int32]:
        """Keep the boxes of N sub-problems; their slots."""
        if len(self.unused) < len(lower):
            more, known = max(len(lower), len(self.users), 256), len(self.users)
            self.unused = np.concatenate([self.unused, np.arange(known, known + more, dtype=np.int32)])
            self.users = np.concatenate([self.users, np.zeros(more, np.int8)])
            wider = torch.zeros(more, self.lower.shape[1], dtype=torch.float64)
            self.lower, self.upper = torch.cat([self.lower, wider]), torch.cat([self.upper, wider])
        slots, self.unused = self.unused[: len(lower)], self.unused[len(lower) :]
        self.users[slots] = 2
        self.lower[slots], self.upper[slots] = lower, upper
        return slots

    def release(self, slots: NDArray[np.int32]) -> None:
        """One of a slot's two users is done with it; -1 is ignored."""
        slots = slots[slots >= 0]
        np.subtract.at(self.users, slots, 1)
        done = np.unique(slots)
        self.unused = np.concatenate([self.unused, done[self.users[done] == 0]])


class InputEngine:
    """CROWN with CROWN intermediates on sub-boxes."""

    name = "input-split"

    def __init__(self, problem: Problem, forest: Forest) -> None:
        self.problem, self.forest = problem, forest
        self.kept = Kept(problem.graph.input.numel)

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
        lower[known], upper[known] = self.kept.lower[slots[known]], self.kept.upper[slots[known]]
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
        boxes = boxes_of(ctx, {}, (BY_WALK,))
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
            empty = torch.maximum(empty, unmet)
            lower = torch.where((empty > 0) & ~(lower > 0), empty, lower)
            proven = confirmed(lower)
            score, index = input_scores(least, most, sensitivity).max(1)
            middle = ((least + most) / 2).gather(1, index.unsqueeze(1)).squeeze(1)
        choice = Choice(
            np.full(len(rows), self.forest.names.index(self.problem.input), np.int16),
            index.numpy().astype(np.int32),
            middle.numpy(),
            torch.isfinite(score).numpy(),
        )
        slot, left = np.full(len(rows), -1, np.int32), torch.from_numpy(~proven)
        slot[~proven] = self.kept.store(least[left], most[left])
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

    def release(self, slots: NDArray[np.int32]) -> None:
        self.kept.release(slots)
