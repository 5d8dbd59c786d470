"""The input-splitting engine: CROWN on ever smaller boxes, for inputs of few dimensions.

Every sub-problem gets fresh intermediate boxes; the split halves the dimension in which the bound loses
most. Nothing is carried from parent to child.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.crown import boxes_of, by_walk, caching_lines
from surebound.bounds.walk import walk
from surebound.linear.maps import Dense
from surebound.search.branching.scores import input_scores
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.neurons import cut_region
from surebound.search.problem import Problem
from surebound.search.tree import Forest


class InputEngine:
    """CROWN with CROWN intermediates on sub-boxes."""

    name = "input-split"

    def __init__(self, problem: Problem, forest: Forest) -> None:
        self.problem, self.forest = problem, forest

    @property
    def batch(self) -> int:
        width = self.problem.widest
        per_group = 2 * self.problem.neurons * width
        return int(min(2048, max(8, (1 << 27) // (1 + per_group))))

    def margins(self, splits: Splits, root: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Row margins [N, S], input coefficients [N, S, *shape], and the sub-boxes' limits."""
        problem = self.problem
        region = problem.roots.region.to(dtype).take(problem.roots.within[root])
        region = cut_region(region, splits.to(dtype), problem.input)
        ctx = problem.context(region, dtype)
        boxes = boxes_of(ctx, {}, by_walk)
        rows = Dense(problem.spec(root, dtype))
        walked = walk(ctx.plan, ctx.values, problem.output, rows, caching_lines(ctx, boxes))
        slack = walked.minimise(ctx.regions) - problem.roots.threshold[root].to(dtype)
        slack = torch.where(problem.roots.real[root], slack, torch.full_like(slack, -torch.inf))
        return slack, walked.roots[problem.input].dense(), region.lower, region.upper

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        with torch.no_grad():
            return self.bound_without_gradients(rows)

    def bound_without_gradients(self, rows: NDArray[np.int64]) -> Bounded:
        root = torch.from_numpy(self.forest["root"][rows].astype(np.int64))
        splits = self.forest.paths(rows)
        dtype = self.problem.dtype
        slack, coefficients, low, high = self.margins(splits, root, dtype)
        lower = slack.amax(1).double()
        proven = confirmed(lower)
        if dtype != torch.float64 and proven.any():
            likely = torch.from_numpy(np.flatnonzero(proven))
            part = Splits(
                splits.names,
                splits.node[likely],
                splits.index[likely],
                splits.threshold[likely],
                splits.sign[likely],
            )
            exact = self.margins(part, root[likely], torch.float64)[0].amax(1)
            lower[likely] = exact
            proven[likely.numpy()] = confirmed(exact)
        best = slack.argmax(1)
        chosen = coefficients[torch.arange(len(best)), best]
        points = torch.where(chosen > 0, low, high)
        score, index = input_scores(low, high, chosen).max(1)
        middle = ((low + high) / 2).flatten(1).gather(1, index.unsqueeze(1)).squeeze(1)
        choice = Choice(
            np.full(len(rows), self.forest.names.index(self.problem.input), np.int16),
            index.numpy().astype(np.int32),
            middle.double().numpy(),
            torch.isfinite(score).numpy(),
        )
        return Bounded(lower.numpy(), proven, points, choice, np.full(len(rows), -1, np.int32))

    def release(self, slots: NDArray[np.int32]) -> None:
        """Nothing is kept."""
