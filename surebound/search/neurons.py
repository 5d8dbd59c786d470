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

from surebound.bounds.alpha import optimise
from surebound.bounds.attained import attained
from surebound.bounds.beta import Splits
from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, Context, boxes_of, caching_lines, unstable_of, walked_lower
from surebound.bounds.walk import walk
from surebound.bounds.work import Free, Optimised, Target
from surebound.linear.maps import Dense, Rows, merged
from surebound.ops.record import Interval
from surebound.regions import Box, Region
from surebound.search.branching.scores import all_neuron_scores, input_scores
from surebound.search.clipping import IMPOSSIBLE, Linear, clipped
from surebound.search.engine import Bounded, Choice, confirmed
from surebound.search.multipliers import Multipliers
from surebound.search.problem import Problem
from surebound.search.root_boxes import RootBoxes
from surebound.search.slots import Slots
from surebound.search.tree import Paths

CANDIDATES = 3
"""Splits per sub-problem whose children are bounded before one is chosen, unless boxes of inputs are clipped."""

ROOM = 8
"""Sub-problems that cost little more than one: so many children are made at once."""

NEARLY = 0.5
"""Of the best split's gain, for another to be made with it."""

NEWEST = 4
"""Boxes of inputs are clipped by so many of a sub-problem's splits; its parents' have been already, by theirs."""

AT_ONCE, SMALL = 256, 1 << 17
"""Sub-problems in a batch, more where they have so few neurons that SMALL are not reached."""

HALF, QUARTER = 2, 0.25
"""A sub-problem that starts from its parent's values takes a HALF of the steps, the first of a QUARTER of the size:
steps as large as those from scratch overshoot what is nearly right, and then every child starts from the same values.
Only where splits make every neuron exact: on a network of tanh a search was seen not to end (docs/decisions.md).
"""

CONFIDENT = 3.0
"""Logit of the best-bounded atom of a conjunction at the root."""


@dataclass(frozen=True)
class Batch:
    """Sub-problems made ready in one dtype: context, boxes, neuron splits, their roots and cases."""

    ctx: Context
    boxes: dict[str, Interval]
    splits: Splits
    root: Tensor
    case: Tensor


@dataclass(frozen=True)
class Values:
    """Free values [K, N, 1, *shape], split multipliers [N, 1, D] and logits of the atoms [N, K]."""

    free: Free
    beta: Tensor
    logits: Tensor

    def at(self, index: Tensor) -> Values:
        """Those of some sub-problems."""
        free = {name: value[:, index] for name, value in self.free.items()}
        return Values(free, self.beta[index], self.logits[index])


def unstable_positions(problem: Problem, boxes: Mapping[str, Interval]) -> dict[str, Tensor]:
    """Flat positions [C, U] of each relaxed step's unstable neurons per case, padded with 0."""
    ctx = problem.context(problem.roots.region, torch.float64)
    positions: dict[str, Tensor] = {}
    for step in problem.plan.relaxed:
        mask = merged(ctx.worth(step.site.node.inputs[0], unstable_of(ctx, step, boxes)), 1)
        widest = max(1, int(mask.sum(1).max()))
        order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :widest]
        positions[step.site.node.name] = torch.where(mask.gather(1, order), order, order[:, :1])
    return positions


def cut_region(region: Region, splits: Splits, name: str) -> tuple[Region, Tensor]:
    """The regions with the splits on the input applied, and by how much these leave nothing, [N].

    Only boxes can be cut. Nothing is left when a split lies outside of a clipped box; some box is given then.
    """
    mine = only(splits, name).to(region.lower.dtype)
    if not mine.present:
        return region, torch.full((region.groups,), -torch.inf, dtype=torch.float64)
    assert isinstance(region, Box)
    lower, upper = mine.clamp({name: Interval(region.lower, region.upper)})[name]
    return Box(torch.minimum(lower, upper), torch.maximum(lower, upper)), merged(lower - upper, 1).amax(1).double()


class NeuronEngine:
    """beta-CROWN over the problem's roots, from the cases' root boxes as they are at every batch.

    gaps [R, K]: how far each atom's root bound is from values that it is known to take. Atoms are divided
    by them: -1 is then the bound of an atom that cannot be positive everywhere, and the combination of a
    conjunction's atoms that bounds best is one that can be proven. refreshes: are intermediate boxes computed anew in
    every sub-problem? clips: are boxes of inputs clipped by splits and bounds? All is float64 then.
    """

    name = "beta-crown"

    def __init__(
        self,
        problem: Problem,
        forest: Paths,
        boxes: RootBoxes,
        gaps: Tensor,
        steps: int,
        rates: Rates,
        refreshes: bool,
        clips: bool,
    ) -> None:
        self.problem, self.forest, self.steps, self.rates = problem, forest, steps, rates
        self.clips, self.dtype = clips, torch.float64 if clips else problem.dtype
        self.scale = 1 / gaps
        self.boxes = boxes
        self.multipliers = Multipliers(unstable_positions(problem, boxes.boxes))
        self.refreshes = refreshes
        self.exact = all(step.relaxation.exact_split for step in problem.plan.relaxed)
        self.relaxed = frozenset(step.site.node.name for step in problem.plan.relaxed)

    @property
    def slots(self) -> Slots:
        return self.multipliers

    @property
    def batch(self) -> int:
        layers = len(self.problem.plan.relaxed) + 2
        width = self.problem.neurons + self.problem.graph.input.numel + 1
        most = max(AT_ONCE, SMALL // width)
        return int(min(most, max(4, self.problem.memory.rows(width, torch.float32) // layers)))

    def region(
        self, rows: NDArray[np.int64], splits: Splits, root: Tensor, dtype: torch.dtype
    ) -> tuple[Region, Tensor]:
        """Where the inputs of sub-problems are: in their case's region, or in what is left of their parent's, cut by
        the splits of the input; and by how much that leaves nothing.
        """
        region = self.problem.regions[dtype].take(self.problem.roots.within[root])
        slots = torch.from_numpy(self.forest["slot"][rows].astype(np.int64))
        known = (slots >= 0).nonzero().squeeze(1)
        if self.clips and len(known):
            assert isinstance(region, Box)
            left = self.multipliers.boxes[slots[known]].unbind(1)
            ends = (
                end.index_copy(0, known, part.reshape(-1, *end.shape[1:]))
                for end, part in zip((region.lower, region.upper), left, strict=True)
            )
            region = Box(*ends)
        return cut_region(region, splits, self.problem.input)

    def prepare(self, splits: Splits, root: Tensor, region: Region) -> Batch:
        """Boxes and context for sub-problems given by their splits, roots and regions, in the regions' dtype."""
        problem, dtype = self.problem, region.lower.dtype
        case = problem.roots.within[root]
        splits = splits.to(dtype)
        roots = self.boxes.take(case, dtype)
        splits = without(splits, problem.input).per_width(roots)
        boxes = splits.clamp(roots)
        ctx = problem.context(region, dtype)
        if self.refreshes:
            with torch.no_grad():
                boxes = boxes_of(ctx, boxes, (BY_WALK,))
        return Batch(ctx, boxes, splits, root, case)

    def effort(self, start: Values) -> tuple[int, Rates]:
        """How many steps are taken from some values, and of which sizes."""
        if not start.free or not self.exact:
            return self.steps, self.rates
        return -(-self.steps // HALF), replace(self.rates, alpha=QUARTER * self.rates.alpha)

    def run(self, batch: Batch, values: Values, steps: int, rates: Rates, keep: bool = False) -> Optimised:
        """Bound the batch's conjunctions after optimising their values; proven ones need no more steps."""
        dtype = self.dtype_of(batch)
        return optimise(
            batch.ctx,
            batch.boxes,
            self.problem.output,
            self.target(batch.root, dtype),
            values.free,
            steps,
            rates,
            batch.splits,
            values.beta.to(dtype),
            values.logits.to(dtype),
            lambda lower: lower <= 0,
            self.relaxed | {self.problem.input} if keep else frozenset(),
        )

    def target(self, root: Tensor, dtype: torch.dtype) -> Target:
        """The scaled atoms of some roots."""
        scale = self.scale[root].to(dtype)
        spec = self.problem.spec(root, dtype)
        threshold = self.problem.roots.threshold[root].to(dtype)
        return Target(spec * scale.reshape(*scale.shape, *([1] * (spec.dim() - 2))), threshold * scale)

    @staticmethod
    def dtype_of(batch: Batch) -> torch.dtype:
        """Of the batch's arithmetic."""
        return next(iter(batch.ctx.regions.values())).lower.dtype

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        root = torch.from_numpy(self.forest["root"][rows].astype(np.int64))
        splits = self.forest.paths(rows)
        region, empty = self.region(rows, splits, root, torch.float64)
        rounded = region if self.dtype == torch.float64 else self.region(rows, splits, root, self.dtype)[0]
        batch = self.prepare(splits, root, rounded)
        if self.clips and splits.depth:
            region, unmet = self.clipped_by_splits(batch)
            empty = torch.maximum(empty, unmet)
            batch = self.prepare(splits, root, region)
        start = self.start(batch, rows)
        found = self.run(batch, start, *self.effort(start), keep=True)
        values = values_of(found)
        lower = found.lower.squeeze(1).double()
        likely = (lower > 0).nonzero().squeeze(1)
        proven = np.zeros(len(rows), bool)
        if len(likely):
            exact = self.confirm(splits, root, region, likely, values, lower[likely])
            lower[likely] = exact
            proven[likely.numpy()] = confirmed(exact)
        lower = torch.where(torch.from_numpy(~proven) & (empty > 0), IMPOSSIBLE, lower)
        proven |= confirmed(empty)
        choice, slot = self.unsplit(len(rows)), np.full(len(rows), -1, np.int32)
        is_open = torch.from_numpy(~proven).nonzero().squeeze(1)
        if len(is_open):
            part, kept = self.select(batch, is_open), values.at(is_open)
            reached = {name: dense_row(found, name)[is_open] for name in found.reached}
            chosen = self.choose(part, splits.at(is_open), kept, reached, found.lower[is_open].squeeze(1))
            choice = chosen.among(len(rows), is_open.numpy())
            left = None
            if self.clips:
                box, row = part.ctx.regions[self.problem.input], reached[self.problem.input]
                left = clipped_by_bound(box, row.flatten(1), found.last[is_open])
            depth = self.forest["depth"][rows[is_open.numpy()]]
            slot[is_open.numpy()] = self.multipliers.store(part.case, kept.free, kept.beta, kept.logits, depth, left)
        return Bounded(lower.numpy(), proven, self.points(batch, found), choice, slot)

    def start(self, batch: Batch, rows: NDArray[np.int64]) -> Values:
        """The parent's values; for roots start values, most weight on the atom that CROWN bounds best."""
        slots = torch.from_numpy(self.forest["slot"][rows].astype(np.int64))
        if bool((slots < 0).any()):
            return Values({}, torch.zeros(len(rows), 1, batch.splits.depth), self.first_logits(batch))
        return Values(*self.multipliers.load(slots, batch.case, self.forest["depth"][rows], self.dtype))

    def first_logits(self, batch: Batch) -> Tensor:
        """CONFIDENT for the atom with the best CROWN bound, 0 for the others, -inf for padding: [N, K]."""
        target = self.target(batch.root, self.dtype_of(batch))
        atoms = walked_lower(batch.ctx, batch.boxes, self.problem.output, Dense(target.spec))
        real = self.problem.roots.real[batch.root]
        slack = torch.where(real, atoms.detach() - target.threshold, -torch.inf)
        logits = torch.zeros_like(slack).scatter(1, slack.argmax(1, keepdim=True), CONFIDENT)
        return torch.where(real, logits, -torch.inf).float()

    def clipped_by_splits(self, batch: Batch) -> tuple[Region, Tensor]:
        """The regions without what cannot meet the splits, and as `clipped` how surely nothing is left.

        A split s (z - t) >= 0 is met only where a lower bound of -s z, linear in the input, is at most -s t.
        """
        region, splits, name = batch.ctx.regions[self.problem.input], batch.splits.newest(NEWEST), self.problem.input
        assert isinstance(region, Box)
        lines: list[Linear] = []
        for number in splits.present:
            node = splits.names[number]
            here = torch.where(splits.node == number, splits.sign, torch.zeros_like(splits.sign))
            rows = Rows(torch.where(here != 0, splits.index, 0), -here, self.problem.graph[node].shape)
            walked = walk(batch.ctx.plan, batch.ctx.values, node, rows, caching_lines(batch.ctx, batch.boxes))
            a, b = merged(walked.roots[name].dense(), 2), walked.constant + here * splits.threshold
            lines.append(Linear(a, b, merged(region.lower, 1), merged(region.upper, 1)))
        if not lines:
            return region, torch.full((len(batch.root),), -torch.inf, dtype=torch.float64)
        all_ = Linear(torch.cat([line.a for line in lines], 1), torch.cat([line.b for line in lines], 1), *lines[0].box)
        lower, upper, worst = clipped(all_, torch.ones_like(all_.b, dtype=torch.bool))
        return Box(lower.reshape(region.lower.shape), upper.reshape(region.lower.shape)), worst

    def confirm(
        self, splits: Splits, root: Tensor, region: Region, at: Tensor, values: Values, lower: Tensor
    ) -> Tensor:
        """The bounds [len(at)] again, in float64, from float64 boxes, with the same values; not scaled any more.

        lower [len(at)]: what they were found to be, which stands where that was in float64.
        """
        kept = values.at(at)
        if self.dtype != torch.float64:
            batch = self.prepare(splits.at(at), root[at], region.take(at))
            exact = Values({name: value.double() for name, value in kept.free.items()}, kept.beta, kept.logits)
            lower = self.run(batch, exact, 0, self.rates).lower.squeeze(1)
        return lower / (torch.softmax(kept.logits.double(), 1) * self.scale[root[at]]).sum(1)

    def points(self, batch: Batch, found: Optimised) -> Tensor:
        """For each sub-problem the input at which its bound is attained."""
        return self.minimiser(batch, dense_row(found, self.problem.input))

    def minimiser(self, batch: Batch, coefficients: Tensor) -> Tensor:
        """Where rows [N, *shape] over the input are least."""
        region = batch.ctx.regions[self.problem.input]
        return region.minimiser(Dense(coefficients.unsqueeze(1))).squeeze(1).detach()

    def select(self, batch: Batch, at: Tensor) -> Batch:
        """Some sub-problems of a batch."""
        ctx = batch.ctx
        regions = {name: region.take(at) for name, region in ctx.regions.items()}
        boxes = {name: Interval(box.lower[at], box.upper[at]) for name, box in batch.boxes.items()}
        return Batch(
            replace(ctx, regions=regions),
            boxes,
            batch.splits.at(at),
            batch.root[at],
            batch.case[at],
        )

    def unsplit(self, count: int) -> Choice:
        """No split."""
        one = (count, 1)
        return Choice(np.zeros(one, np.int16), np.zeros(one, np.int32), np.zeros(one), np.zeros(one, np.bool_))

    def choose(
        self, batch: Batch, splits: Splits, values: Values, reached: Mapping[str, Tensor], lower: Tensor
    ) -> Choice:
        """The splits of each sub-problem: the candidate whose children are bounded best together, and where there is
        room others that gain nearly as much over the sub-problem's own bound [N].
        """
        points = {self.problem.input: self.minimiser(batch, reached[self.problem.input])}
        at = attained(batch.ctx, batch.boxes, values.free, reached, points)
        names, scores, thresholds = all_neuron_scores(batch.ctx, batch.boxes, reached, at)
        sizes = [score.shape[1] for score in scores]
        choice = self.split_input(batch, reached)
        if not sizes:
            return choice
        score = torch.cat(scores, 1)
        top, place = score.topk(min(1 if self.clips else CANDIDATES, score.shape[1]), dim=1)
        usable = torch.isfinite(top) & (top > 1e-9 * top[:, :1].clamp(min=1e-9))
        which = torch.bucketize(place, torch.tensor(np.cumsum(sizes)), right=True)
        offset = torch.tensor([0, *np.cumsum(sizes)[:-1]])[which]
        node = torch.tensor([self.forest.names.index(name) for name in names])[which]
        threshold = torch.cat(thresholds, 1).gather(1, place).double()
        index = place - offset
        best = torch.zeros_like(place[:, :1])
        asked = usable.any(1).nonzero().squeeze(1)
        if place.shape[1] > 1 and len(asked):  # what cannot be used is replaced by the first, which scores best
            tried = [torch.where(usable, value, value[:, :1])[asked] for value in (node, index, threshold)]
            quality = self.probe(self.select(batch, asked), splits.at(asked), values.at(asked), *tried)
            gain = torch.where(usable[asked], quality - 2 * lower[asked, None].clamp(max=0), -torch.inf)
            levels = int(min(place.shape[1], max(1, np.log2(ROOM / len(asked)))))
            best = best.repeat(1, levels)
            best[asked] = gain.argsort(dim=1, descending=True, stable=True)[:, :levels]
            usable[asked] &= (gain >= NEARLY * gain.amax(1, keepdim=True)) | (gain == gain.amax(1, keepdim=True))
        picked = [value.gather(1, best).numpy() for value in (node, index, threshold)]
        has = usable.gather(1, best).numpy()
        none = ~has[:, 0]
        has[none, 0] = choice.possible[none, 0]
        for own, other in zip(picked, (choice.node, choice.index, choice.threshold), strict=True):
            own[none, 0] = other[none, 0]
        return Choice(picked[0].astype(np.int16), picked[1].astype(np.int32), picked[2], has)

    def probe(
        self,
        batch: Batch,
        splits: Splits,
        values: Values,
        node: Tensor,
        index: Tensor,
        threshold: Tensor,
    ) -> Tensor:
        """How good each candidate [N, k] is: the sum of its two children's bounds, of which none counts above 0."""
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
            here = children.at(torch.arange(len(repeat))[piece])
            region, _ = cut_region(batch.ctx.regions[self.problem.input].take(owner), here, self.problem.input)
            part = self.prepare(here, batch.root[owner], region)
            inherited = values.at(owner)
            beta = torch.cat([torch.zeros(len(owner), 1, 1), inherited.beta.float()], 2)
            bounds.append(self.run(part, replace(inherited, beta=beta), 0, self.rates).lower.squeeze(1))
        return torch.cat(bounds).reshape(count, kinds, 2).clamp(max=0).sum(2)

    def split_input(self, batch: Batch, reached: Mapping[str, Tensor]) -> Choice:
        """Halve the input dimension that the bound depends on most."""
        region = batch.ctx.regions[self.problem.input]
        count = len(batch.root)
        choice = self.unsplit(count)
        if not isinstance(region, Box):
            return choice
        score, index = input_scores(
            merged(region.lower, 1), merged(region.upper, 1), merged(reached[self.problem.input].abs(), 1)
        ).max(1, keepdim=True)
        middle = merged((region.lower + region.upper) / 2, 1).gather(1, index)
        choice.node[:] = self.forest.names.index(self.problem.input)
        choice.index[:] = index.numpy()
        choice.threshold[:] = middle.double().numpy()
        choice.possible[:] = torch.isfinite(score).numpy()
        return choice


def clipped_by_bound(region: Region, row: Tensor, bound: Tensor) -> Tensor:
    """The boxes [N, 2, n] without what a bound of the sub-problems excludes: it is attained by rows [N, n] over the
    input, with values `bound` [N, 1].
    """
    assert isinstance(region, Box)
    lower, upper = merged(region.lower, 1), merged(region.upper, 1)
    constant = bound - torch.where(row > 0, row * lower, row * upper).sum(1, keepdim=True)
    least, most, _ = clipped(Linear(row.unsqueeze(1), constant, lower, upper), torch.ones_like(bound, dtype=torch.bool))
    return torch.stack([least, most], 1)


def values_of(found: Optimised) -> Values:
    """What the optimiser ended with."""
    assert found.beta is not None and found.logits is not None
    return Values(found.free, found.beta, found.logits)


def dense_row(found: Optimised, name: str) -> Tensor:
    """Coefficients [N, *shape] of each sub-problem's row at a node that the last walk kept."""
    return found.reached[name].squeeze(1)


def without(splits: Splits, name: str) -> Splits:
    """The splits with those on node `name` emptied."""
    here = splits.node == splits.names.index(name)
    return replace(splits, sign=torch.where(here, torch.zeros_like(splits.sign), splits.sign))


def only(splits: Splits, name: str) -> Splits:
    """The splits with all but those on node `name` emptied."""
    here = splits.node == splits.names.index(name)
    return replace(splits, sign=torch.where(here, splits.sign, torch.zeros_like(splits.sign)))
