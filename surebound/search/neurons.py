"""The beta-CROWN engine: splits on neurons, intermediate boxes kept from the root.

Each sub-problem's boxes are its case's root boxes with the split neurons clamped; alphas and betas are
optimised for a few steps from the parent's values (Wang et al. 2021). The split is chosen by bounding the
children of the best-scored candidates (kFSB, De Palma et al. 2021). When no neuron is left to split, the
input is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.alpha import Free, Optimised, Rates, initial_free, optimise
from surebound.bounds.beta import Splits
from surebound.bounds.crown import Context, unstable_of
from surebound.linear.maps import Dense
from surebound.ops.record import Interval
from surebound.regions import Box, Region
from surebound.search.branching.scores import all_neuron_scores, input_scores
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.multipliers import Multipliers
from surebound.search.problem import Problem, take_boxes
from surebound.search.tree import Forest

CANDIDATES = 3
"""Splits per sub-problem whose children are bounded before one is chosen."""


@dataclass(frozen=True)
class Batch:
    """Sub-problems made ready in one dtype: context, boxes, neuron splits, their roots and cases."""

    ctx: Context
    boxes: dict[str, Interval]
    splits: Splits
    root: Tensor
    case: Tensor


def unstable_positions(problem: Problem, boxes: Mapping[str, Interval]) -> dict[str, Tensor]:
    """Flat positions [C, U] of each relaxed step's unstable neurons per case, padded with 0."""
    ctx = problem.context(problem.roots.region, torch.float64)
    positions: dict[str, Tensor] = {}
    for step in problem.plan.relaxed:
        mask = unstable_of(ctx, step, boxes).flatten(1)
        widest = max(1, int(mask.sum(1).max()))
        order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :widest]
        positions[step.site.node.name] = torch.where(mask.gather(1, order), order, order[:, :1])
    return positions


def cut_region(region: Region, splits: Splits, name: str) -> Region:
    """The regions with the splits on the input applied; only boxes can be cut."""
    mine = only(splits, name)
    if not mine.present():
        return region
    assert isinstance(region, Box)
    cut = mine.clamp({name: Interval(region.lower, region.upper)})
    return Box(cut[name].lower, cut[name].upper)


class NeuronEngine:
    """beta-CROWN over the problem's roots; `boxes` are the cases' root boxes in float64."""

    name = "beta-crown"

    def __init__(
        self, problem: Problem, forest: Forest, boxes: Mapping[str, Interval], steps: int, rates: Rates
    ) -> None:
        self.problem, self.forest, self.steps, self.rates = problem, forest, steps, rates
        self.boxes = {name: boxes[name] for name in problem.plan.operands}
        self.multipliers = Multipliers(unstable_positions(problem, boxes))
        self.relaxed = frozenset(step.site.node.name for step in problem.plan.relaxed)

    @property
    def batch(self) -> int:
        rows = self.problem.roots.spec.shape[1]
        layers = len(self.problem.plan.relaxed) + 2
        width = self.problem.neurons + self.problem.graph.input.numel + 1
        return int(min(256, max(4, self.problem.memory.rows(width * rows, torch.float32) // layers)))

    def prepare(self, splits: Splits, root: Tensor, dtype: torch.dtype) -> Batch:
        """Regions, boxes and context for sub-problems given by their splits and roots."""
        problem = self.problem
        case = problem.roots.within[root]
        splits = splits.to(dtype)
        region = cut_region(problem.roots.region.to(dtype).take(case), splits, problem.input)
        boxes = without(splits, problem.input).clamp(take_boxes(self.boxes, case, dtype))
        return Batch(problem.context(region, dtype), boxes, without(splits, problem.input), root, case)

    def margins(self, batch: Batch, lower: Tensor) -> Tensor:
        """Row bounds minus thresholds [N, S]; padded rows are -inf."""
        roots = self.problem.roots
        slack = lower - roots.threshold[batch.root].to(lower.dtype)
        return torch.where(roots.real[batch.root], slack, torch.full_like(slack, -torch.inf))

    def run(self, batch: Batch, free: Free, beta: Tensor, steps: int, keep: bool = False) -> Optimised:
        """Optimise the batch's rows; a sub-problem with one proven row needs no more."""
        spec = self.problem.spec(batch.root, self.dtype_of(batch))

        def wanted(lower: Tensor) -> Tensor:
            slack = self.margins(batch, lower)
            return (slack.amax(1, keepdim=True) <= 0) & torch.isfinite(slack)

        names = self.relaxed | {self.problem.input} if keep else frozenset()
        return optimise(
            batch.ctx,
            batch.boxes,
            self.problem.output,
            Dense(spec),
            free,
            steps,
            self.rates,
            batch.splits,
            beta,
            wanted,
            names,
        )

    @staticmethod
    def dtype_of(batch: Batch) -> torch.dtype:
        """Of the batch's arithmetic."""
        return next(iter(batch.ctx.regions.values())).lower.dtype

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        forest, problem = self.forest, self.problem
        root = torch.from_numpy(forest["root"][rows].astype(np.int64))
        splits = forest.paths(rows)
        batch = self.prepare(splits, root, problem.dtype)
        free, beta = self.start(batch, rows)
        found = self.run(batch, free, beta, self.steps, keep=True)
        slack = self.margins(batch, found.lower)
        lower = slack.amax(1).double()
        assert found.beta is not None
        likely = (lower > 0).nonzero().squeeze(1)
        proven = np.zeros(len(rows), bool)
        if len(likely):
            exact = self.confirm(splits, root, likely, found)
            lower[likely] = exact
            proven[likely.numpy()] = confirmed(exact)
        points = self.points(batch, found, slack)
        is_open = torch.from_numpy(~proven).nonzero().squeeze(1)
        choice, slot = self.unsplit(len(rows)), np.full(len(rows), -1, np.int32)
        if len(is_open):
            part = self.select(batch, is_open)
            values = {name: value[:, is_open] for name, value in found.free.items()}
            reached = {name: rows_of(found, name, slack)[is_open] for name in found.last.reached}
            chosen = self.choose(part, splits_at(splits, is_open), values, found.beta[is_open], reached)
            at = is_open.numpy()
            for column, value in zip(
                (choice.node, choice.index, choice.threshold, choice.possible),
                (chosen.node, chosen.index, chosen.threshold, chosen.possible),
                strict=True,
            ):
                column[at] = value
            slot[at] = self.multipliers.store(part.case, values, found.beta[is_open])
        return Bounded(lower.numpy(), proven, points, choice, slot)

    def start(self, batch: Batch, rows: NDArray[np.int64]) -> tuple[Free, Tensor]:
        """The parent's free values and multipliers; start values for roots."""
        count = self.problem.roots.spec.shape[1]
        first = initial_free(batch.ctx, batch.boxes, self.problem.output, count)
        slots = torch.from_numpy(self.forest["slot"][rows].astype(np.int64))
        depth = batch.splits.depth
        if bool((slots < 0).any()):
            return first, torch.zeros(len(rows), count, depth, dtype=self.dtype_of(batch))
        free, beta = self.multipliers.load(slots, batch.case, first, depth)
        return free, beta if beta.dtype == self.dtype_of(batch) else beta.to(self.dtype_of(batch))

    def confirm(self, splits: Splits, root: Tensor, at: Tensor, found: Optimised) -> Tensor:
        """The margin bounds [len(at)] again, in float64, from float64 boxes, with the same multipliers."""
        batch = self.prepare(splits_at(splits, at), root[at], torch.float64)
        assert found.beta is not None
        free = {name: value[:, at].double() for name, value in found.free.items()}
        return self.margins(batch, self.run(batch, free, found.beta[at].double(), 0).lower).amax(1)

    def points(self, batch: Batch, found: Optimised, slack: Tensor) -> Tensor:
        """For each sub-problem the input at which its best row's bound is attained."""
        region = batch.ctx.regions[self.problem.input]
        coefficients = rows_of(found, self.problem.input, slack).unsqueeze(1)
        return region.minimiser(Dense(coefficients)).squeeze(1).detach()

    def select(self, batch: Batch, at: Tensor) -> Batch:
        """Some sub-problems of a batch."""
        ctx = batch.ctx
        regions = {name: region.take(at) for name, region in ctx.regions.items()}
        boxes = {name: Interval(box.lower[at], box.upper[at]) for name, box in batch.boxes.items()}
        return Batch(
            Context(ctx.plan, ctx.values, regions, ctx.memory),
            boxes,
            splits_at(batch.splits, at),
            batch.root[at],
            batch.case[at],
        )

    def unsplit(self, count: int) -> Choice:
        """No split."""
        return Choice(
            np.zeros(count, np.int16), np.zeros(count, np.int32), np.zeros(count), np.zeros(count, np.bool_)
        )

    def choose(
        self, batch: Batch, splits: Splits, free: Free, beta: Tensor, reached: Mapping[str, Tensor]
    ) -> Choice:
        """The split of each sub-problem: the candidate whose worse child is bounded best."""
        shared = {name: value.amax(2, keepdim=True) for name, value in free.items()}
        names, scores, thresholds = all_neuron_scores(batch.ctx, batch.boxes, reached, shared)
        sizes = [score.shape[1] for score in scores]
        count = len(batch.root)
        choice = self.split_input(batch, reached)
        if not sizes:
            return choice
        score = torch.cat(scores, 1)
        top, at = score.topk(min(CANDIDATES, score.shape[1]), dim=1)
        usable = torch.isfinite(top) & (top > 1e-9 * top[:, :1].clamp(min=1e-9))
        which = torch.bucketize(at, torch.tensor(np.cumsum(sizes)), right=True)
        offset = torch.tensor([0, *np.cumsum(sizes)[:-1]])[which]
        node = torch.tensor([self.forest.names.index(name) for name in names])[which]
        threshold = torch.cat(thresholds, 1).gather(1, at).double()
        best = torch.zeros(count, dtype=torch.long)
        if at.shape[1] > 1:
            quality = self.probe(batch, splits, free, beta, node, at - offset, threshold)
            best = torch.where(usable, quality, torch.full_like(quality, -torch.inf)).argmax(1)
        picked = [value.gather(1, best.unsqueeze(1)).squeeze(1).numpy() for value in (node, at - offset, threshold)]
        has = usable.any(1).numpy()
        return Choice(
            np.where(has, picked[0], choice.node).astype(np.int16),
            np.where(has, picked[1], choice.index).astype(np.int32),
            np.where(has, picked[2], choice.threshold),
            has | choice.possible,
        )

    def probe(
        self,
        batch: Batch,
        splits: Splits,
        free: Free,
        beta: Tensor,
        node: Tensor,
        index: Tensor,
        threshold: Tensor,
    ) -> Tensor:
        """How good each candidate [N, k] is: the smaller of its two children's bounds, ties by their sum."""
        count, kinds = node.shape
        repeat = torch.arange(count).repeat_interleave(2 * kinds)
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(count * kinds)
        children = Splits(
            splits.names,
            torch.cat([node.repeat_interleave(2, 1).reshape(-1, 1), splits.node[repeat]], 1),
            torch.cat([index.repeat_interleave(2, 1).reshape(-1, 1), splits.index[repeat]], 1),
            torch.cat([threshold.repeat_interleave(2, 1).reshape(-1, 1), splits.threshold[repeat]], 1),
            torch.cat([sign.unsqueeze(1), splits.sign[repeat]], 1),
        )
        bounds = []
        for begin in range(0, len(repeat), 2 * self.batch):
            piece = slice(begin, begin + 2 * self.batch)
            owner = repeat[piece]
            part = self.prepare(splits_at(children, torch.arange(len(repeat))[piece]), batch.root[owner], self.dtype_of(batch))
            values = {name: value[:, owner] for name, value in free.items()}
            multipliers = torch.cat([torch.zeros(len(owner), beta.shape[1], 1, dtype=beta.dtype), beta[owner]], 2)
            bounds.append(self.margins(part, self.run(part, values, multipliers, 0).lower).amax(1))
        pair = torch.cat(bounds).reshape(count, kinds, 2).clamp(max=0)
        return pair.amin(2) + 1e-3 * pair.sum(2)

    def split_input(self, batch: Batch, reached: Mapping[str, Tensor]) -> Choice:
        """Halve the input dimension that the bound depends on most."""
        region = batch.ctx.regions[self.problem.input]
        count = len(batch.root)
        choice = self.unsplit(count)
        if not isinstance(region, Box):
            return choice
        score, index = input_scores(region.lower, region.upper, reached[self.problem.input]).max(1)
        middle = ((region.lower + region.upper) / 2).flatten(1).gather(1, index.unsqueeze(1)).squeeze(1)
        choice.node[:] = self.forest.names.index(self.problem.input)
        choice.index[:] = index.numpy()
        choice.threshold[:] = middle.double().numpy()
        choice.possible[:] = torch.isfinite(score).numpy()
        return choice

    def release(self, slots: NDArray[np.int32]) -> None:
        self.multipliers.release(slots)


def rows_of(found: Optimised, name: str, slack: Tensor) -> Tensor:
    """Coefficients [N, *shape] of each sub-problem's best row at a node that the last walk kept."""
    dense = found.last.reached[name].dense().detach()
    best = slack.argmax(1)
    return dense[torch.arange(len(best)), best]


def splits_at(splits: Splits, at: Tensor) -> Splits:
    """The splits of some groups."""
    return Splits(splits.names, splits.node[at], splits.index[at], splits.threshold[at], splits.sign[at])


def without(splits: Splits, name: str) -> Splits:
    """The splits with those on node `name` emptied."""
    here = splits.node == splits.names.index(name)
    return replace(splits, sign=torch.where(here, torch.zeros_like(splits.sign), splits.sign))


def only(splits: Splits, name: str) -> Splits:
    """The splits with all but those on node `name` emptied."""
    here = splits.node == splits.names.index(name)
    return replace(splits, sign=torch.where(here, splits.sign, torch.zeros_like(splits.sign)))
