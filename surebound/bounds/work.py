"""What an optimisation of bounds works on: rows with their free values, multipliers and lines.

Rows leave while others go on, so everything here can be narrowed to some groups and rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.climb import Climber, Rates
from surebound.bounds.crown import Context
from surebound.bounds.walk import Walked, frame_of, walk
from surebound.linear.maps import Dense, LinearMap, merged, picked
from surebound.ops.record import Frame, Interval, Lines

PATIENCE = 2
"""Steps over which a row must have risen to go on."""

Free = dict[str, Tensor]
"""Free values [K, G, S, *support] by relaxed node, on the support of the rows that reach it."""


@dataclass(frozen=True)
class Target:
    """What is bounded: the max over convex weights of  weights . (spec y - threshold), one row per group.

    spec [G, K, *shape] and threshold [G, K] are the atoms  spec y <= threshold  of a conjunction; if some
    convex combination of them is positive over a region, the conjunction has no solution there (Farkas).
    """

    spec: Tensor
    threshold: Tensor

    def groups(self, at: Tensor) -> Target:
        """Of some groups."""
        return Target(self.spec[at], self.threshold[at])

    def mixed(self, logits: Tensor) -> tuple[LinearMap, Tensor]:
        """The combined row [G, 1, *shape] and its constant [G, 1] for weights softmax(logits), logits [G, K].

        An atom with logit -inf has weight 0 (padding).
        """
        weights = torch.softmax(logits, 1)
        flat = torch.bmm(weights.unsqueeze(1), merged(self.spec, 2))
        return Dense(flat.reshape(len(weights), 1, *self.spec.shape[2:])), -(weights * self.threshold).sum(1, True)


@dataclass
class Face:
    """A relaxed node as the rows at work see it: its frame on their support, its free values and their limits."""

    frame: Frame
    low: Tensor
    high: Tensor
    free: Tensor
    climber: Climber | None = None

    def picked(self, groups: Tensor, rows: Tensor) -> Face:
        """For some groups and rows."""
        frame = tuple(picked(part, groups, rows) for part in self.frame)
        low, high = (picked(part, groups, rows, 1) for part in (self.low, self.high))
        climber = None if self.climber is None else self.climber.picked(groups, rows, 1)
        free = picked(self.free.detach(), groups, rows, 1).requires_grad_(self.free.requires_grad)
        return Face(frame, low, high, free, climber)


@dataclass
class Work:
    """Rows at work: `place` [g, s] says which of all rows they are; live: as `walk` takes it.

    faces are made when a walk first reaches a relaxed node; free values that are not given start at the
    relaxation's own choice, given ones are made admissible.
    """

    ctx: Context
    boxes: Mapping[str, Interval]
    target: LinearMap | Target
    given: Mapping[str, Tensor]
    splits: Splits | None
    beta: Tensor | None
    logits: Tensor | None
    place: Tensor
    live: Mapping[str, Tensor]
    faces: dict[str, Face]
    climbers: dict[str, Climber]
    moving: bool

    @staticmethod
    def of(
        ctx: Context,
        boxes: Mapping[str, Interval],
        target: LinearMap | Target,
        free: Mapping[str, Tensor],
        splits: Splits | None,
        beta: Tensor | None,
        logits: Tensor | None,
        moving: bool,
        live: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Work:
        """All rows of a target."""
        rows = target.rows if isinstance(target, LinearMap) else (len(target.spec), 1)
        place = torch.arange(rows[0] * rows[1]).reshape(rows)
        beta = None if beta is None else beta.detach().clone().requires_grad_(moving)
        mixing = moving and logits is not None and logits.shape[1] > 1
        logits = None if logits is None else logits.detach().clone().requires_grad_(mixing)
        return Work(ctx, boxes, target, free, splits, beta, logits, place, live, {}, {}, moving)

    def walk(self, start: str, keep: frozenset[str]) -> tuple[Walked, Tensor]:
        """Bounds [g, s] from the values as they are."""
        if isinstance(self.target, Target):
            assert self.logits is not None
            rows, constant = self.target.mixed(self.logits)
        else:
            rows, constant = self.target, 0.0
        addends = None
        if self.splits is not None and self.beta is not None:
            addends = self.splits.addends(self.ctx.plan.graph, self.beta)
        walked = walk(self.ctx.plan, self.ctx.values, start, rows, self.lines, addends, keep, self.live)
        return walked, walked.minimise(self.ctx.regions) + constant

    def lines(self, name: str, rows: LinearMap) -> Lines:
        """Lines of a relaxed node for the rows that reach it."""
        if name not in self.faces:
            self.faces[name] = self.face(name, rows)
        face = self.faces[name]
        step = self.ctx.plan.steps[name]
        return step.relaxation.lines(step.site, face.frame, face.free)

    def face(self, name: str, rows: LinearMap) -> Face:
        """A relaxed node on the support of the rows that reach it."""
        step = self.ctx.plan.steps[name]
        relaxation = step.relaxation
        full = frame_of(step, self.ctx.values, self.boxes[step.site.node.inputs[0]])
        frame = tuple(rows.at(part) for part in full)
        low, high = relaxation.limits(step.site, frame)
        if name in self.given:
            value = relaxation.project(step.site, frame, self.given[name].detach())
        else:
            value = relaxation.init(step.site, frame)
        wide = (len(value), *rows.coefficients.shape)
        free = (value if value.shape == wide else value.expand(wide)).contiguous()
        if self.moving and bool((high > low).any()):
            free.requires_grad_()
        return Face(frame, low, high, free)

    def climb(self, lower: Tensor, rates: Rates) -> None:
        """One step up the sum of `lower` for everything that moves."""
        faces = [face for face in self.faces.values() if face.free.requires_grad]
        moving = [value for value in (self.beta, self.logits) if value is not None and value.requires_grad]
        slopes = iter(torch.autograd.grad(lower.sum(), [*(face.free for face in faces), *moving], allow_unused=True))
        for face in faces:
            if face.climber is None:
                face.climber = Climber(rates.alpha * float((face.high - face.low).max()), rates.decay)
            face.free = face.climber.step(face.free, next(slopes), face.low, face.high).requires_grad_()
        if self.beta is not None and self.beta.requires_grad:
            climber = self.climbers.setdefault("beta", Climber(rates.beta, rates.decay))
            self.beta = climber.step(self.beta, next(slopes), torch.zeros_like(self.beta), None).requires_grad_()
        if self.logits is not None and self.logits.requires_grad:
            climber = self.climbers.setdefault("logits", Climber(rates.logit, rates.decay))
            self.logits = climber.step(self.logits, next(slopes), None, None).requires_grad_()

    def narrowed(self, groups: Tensor, rows: Tensor) -> Work:
        """Only groups [g, 1] and their rows [g, s]."""
        at = groups.squeeze(1)
        everyone = len(at) == len(self.place)
        ctx, splits, target = self.ctx, self.splits, self.target
        if not everyone:
            regions = {name: region.take(at) for name, region in ctx.regions.items()}
            graph = ctx.plan.graph
            values = {
                name: value[at] if graph[name].batched and value.shape[0] > 1 else value
                for name, value in ctx.values.items()
            }
            ctx = replace(ctx, values=values, regions=regions)
            splits = None if splits is None else splits.at(at)
        target = target.groups(at) if isinstance(target, Target) else target.pick(groups, rows)
        beta = None if self.beta is None else picked(self.beta.detach(), groups, rows).requires_grad_(self.moving)
        logits = None if self.logits is None else self.logits.detach()[at].requires_grad_(self.logits.requires_grad)
        climbers = {
            name: climber.picked(groups, rows if name == "beta" else None) for name, climber in self.climbers.items()
        }
        faces = {name: face.picked(groups, rows) for name, face in self.faces.items()}
        place = self.place[groups, rows]
        live = self.live if everyone else {name: index[at] for name, index in self.live.items()}
        return Work(ctx, {}, target, {}, splits, beta, logits, place, live, faces, climbers, self.moving)


@dataclass(frozen=True)
class Optimised:
    """The best bounds [G, S] and what gave them.

    free: free values; beta: split multipliers [G, S, D]; logits: of the target's atoms [G, K].
    reached: by node asked for, the coefficients [G, S, *shape] of each row's last walk; last [G, S]: its bound.
    """

    lower: Tensor
    free: Free
    beta: Tensor | None
    logits: Tensor | None
    reached: Mapping[str, Tensor]
    last: Tensor


class Record:
    """The best bound of every row [G, S] and, if they are to be remembered, the values that gave it."""

    def __init__(self, lower: Tensor, work: Work, remember: bool) -> None:
        self.remember = remember
        self.lower = lower.detach()
        self.history = [self.lower]
        self.free = {name: face.free.detach() for name, face in work.faces.items()} if remember else {}
        self.beta = None if work.beta is None else work.beta.detach()
        self.logits = None if work.logits is None else work.logits.detach()
        self.reached: dict[str, Tensor] = {}
        self.last = self.lower.clone()

    def improve(self, lower: Tensor, work: Work) -> None:
        """Take over what is better; NaN is never better."""
        self.history.append(self.lower)
        place, all_rows = work.place.flatten(), work.place.numel() == self.lower.numel()
        now = self.lower.flatten()[place]
        up = lower.flatten() > now

        def improved(old: Tensor, new: Tensor, lead: int) -> Tensor:
            """old [*lead, G, S, ...] with the rows that went up from new [*lead, g, s, ...]."""
            old_rows, new_rows = old.flatten(lead, lead + 1), new.detach().flatten(lead, lead + 1)
            here = old_rows if all_rows else old_rows.index_select(lead, place)
            best = torch.where(up.reshape(*[1] * lead, -1, *[1] * (here.dim() - lead - 1)), new_rows, here)
            return (best if all_rows else old_rows.index_copy(lead, place, best)).reshape(old.shape)

        self.lower = improved(self.lower, lower, 0)
        if self.remember:
            self.free = {name: improved(value, work.faces[name].free, 1) for name, value in self.free.items()}
            if self.beta is not None and work.beta is not None:
                self.beta = improved(self.beta, work.beta, 0)
            if self.logits is not None and work.logits is not None:
                self.logits = improved(self.logits.unsqueeze(1), work.logits.unsqueeze(1), 0).squeeze(1)

    def rising(self, settled: float) -> Tensor:
        """bool [G, S]: rows whose last PATIENCE steps brought more than the part `settled` of all that was won.

        Nothing has settled in the first 2 PATIENCE steps.
        """
        if len(self.history) <= 2 * PATIENCE:
            return torch.ones_like(self.lower, dtype=torch.bool)
        recent, total = self.lower - self.history[-PATIENCE], self.lower - self.history[0]
        return ~(recent < settled * total)

    def leave(self, walked: Walked, lower: Tensor, work: Work) -> None:
        """Note where the last walk of the rows at work went, and its bounds."""
        self.last.flatten()[work.place.flatten()] = lower.detach().flatten()
        for name, rows in walked.reached.items():
            found = rows.dense().detach()
            if name not in self.reached:
                self.reached[name] = torch.zeros(*self.lower.shape, *rows.shape, dtype=found.dtype, device=found.device)
            self.reached[name].flatten(0, 1)[work.place.flatten()] = found.flatten(0, 1)

    def optimised(self) -> Optimised:
        """The result."""
        return Optimised(self.lower, self.free, self.beta, self.logits, self.reached, self.last)


def joined(parts: Sequence[Optimised]) -> Optimised:
    """The results of pieces, one after the other."""
    first = parts[0]

    def together(values: Sequence[Tensor | None], lead: int) -> Tensor | None:
        found = [value for value in values if value is not None]
        return torch.cat(found, lead) if found else None

    return Optimised(
        torch.cat([part.lower for part in parts]),
        {name: torch.cat([part.free[name] for part in parts], 1) for name in first.free},
        together([part.beta for part in parts], 0),
        together([part.logits for part in parts], 0),
        {name: torch.cat([part.reached[name] for part in parts]) for name in first.reached},
        torch.cat([part.last for part in parts]),
    )
