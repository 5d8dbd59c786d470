"""The input-splitting engine: CROWN on ever smaller boxes, for inputs of few dimensions.

Every sub-problem gets fresh intermediate boxes; the split halves the dimension in which the bound loses
most. Nothing is carried from parent to child.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.crown import BY_WALK, boxes_of, caching_lines
from surebound.bounds.walk import walk
from surebound.linear.maps import Dense, merged
from surebound.search.branching.scores import input_scores
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.mixing import best_weights, combined
from surebound.search.neurons import cut_region
from surebound.search.problem import Problem
from surebound.search.tree import Forest

CACHED = 1 << 20
"""Coefficients per walk."""

ROUNDING = 1e-5
"""Bounds this close to 0, relative to the numbers they are the sum of, are computed again in float64."""


@dataclass(frozen=True)
class Linear:
    """a x + b [N, K] below the atoms of a conjunction, on boxes lower, upper [N, n]; a [N, K, n]."""

    a: Tensor
    b: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, lower, upper)."""
        return self.a, self.b, self.lower, self.upper


def magnitude(found: Linear, weights: Tensor) -> Tensor:
    """Size of the terms that cancel in the combined bounds, [N]."""
    reach = torch.maximum(found.lower.abs(), found.upper.abs()).unsqueeze(1)
    return (weights * ((found.a.abs() * reach).sum(2) + found.b.abs())).sum(1).double()


class InputEngine:
    """CROWN with CROWN intermediates on sub-boxes."""

    name = "input-split"

    def __init__(self, problem: Problem, forest: Forest) -> None:
        self.problem, self.forest = problem, forest

    @property
    def batch(self) -> int:
        """As many boxes as keep the rows of one walk within a core's cache (measured best on small networks)."""
        widest = max((step.site.node.numel for step in self.problem.plan.relaxed), default=1)
        return int(min(2048, max(32, CACHED // (2 * widest * self.problem.widest))))

    def linear(self, splits: Splits, root: Tensor, dtype: torch.dtype) -> Linear:
        """Linear lower bounds of every atom over the sub-boxes."""
        problem = self.problem
        region = problem.roots.region.to(dtype).take(problem.roots.within[root])
        region = cut_region(region, splits.to(dtype), problem.input)
        ctx = problem.context(region, dtype)
        boxes = boxes_of(ctx, {}, (BY_WALK,))
        rows = Dense(problem.spec(root, dtype))
        walked = walk(ctx.plan, ctx.values, problem.output, rows, caching_lines(ctx, boxes))
        constant = walked.constant - problem.roots.threshold[root].to(dtype)
        a = merged(walked.roots[problem.input].dense(), 2)
        return Linear(a, constant, merged(region.lower, 1), merged(region.upper, 1))

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        with torch.no_grad():
            root = torch.from_numpy(self.forest["root"][rows].astype(np.int64))
            splits = self.forest.paths(rows)
            found = self.linear(splits, root, self.problem.dtype)
            real = self.problem.roots.real[root]
            weights = self.weights(found, real)
            value, point = combined(weights, found.a, found.b, found.lower, found.upper)
            lower = value.double()
            likely = (lower > -ROUNDING * magnitude(found, weights)).nonzero().squeeze(1)
            if len(likely):
                exact = self.linear(splits.at(likely), root[likely], torch.float64)
                lower[likely] = combined(weights[likely].double(), *exact.parts)[0]
            proven = np.zeros(len(rows), bool)
            proven[likely.numpy()] = confirmed(lower[likely])
            sensitivity = (weights.unsqueeze(2) * found.a.abs()).sum(1)
            score, index = input_scores(found.lower, found.upper, sensitivity).max(1)
            middle = ((found.lower + found.upper) / 2).gather(1, index.unsqueeze(1)).squeeze(1)
        choice = Choice(
            np.full(len(rows), self.forest.names.index(self.problem.input), np.int16),
            index.numpy().astype(np.int32),
            middle.double().numpy(),
            torch.isfinite(score).numpy(),
        )
        points = point.reshape(len(rows), *self.problem.graph.input.shape)
        return Bounded(lower.numpy(), proven, points, choice, np.full(len(rows), -1, np.int32))

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
        """Nothing is kept."""
