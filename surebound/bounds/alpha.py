"""alpha-CROWN: optimise the relaxations' free values, and the splits' multipliers with them.

Xu et al. 2021 (alpha-CROWN), Wang et al. 2021 (beta-CROWN). Any admissible free values give sound bounds,
so the optimiser only has to be good, never right: the best bound seen is kept per row. Every row has free
values of its own, on its support; rows do not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.climb import Climber, Rates
from surebound.bounds.crown import (
    Context,
    boxes_of,
    by_walk,
    context,
    spec_rows,
    start_of,
    stats,
)
from surebound.bounds.memory import Memory
from surebound.bounds.query import Bounds, Query
from surebound.bounds.walk import Walked, frame_of, walk
from surebound.linear.maps import Dense, LinearMap, merged
from surebound.ops.record import Frame, Interval, Lines

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

    def rows(self, logits: Tensor) -> tuple[LinearMap, Tensor]:
        """The combined row [G, 1, *shape] and its constant [G, 1] for weights softmax(logits), logits [G, K].

        An atom with logit -inf has weight 0 (padding).
        """
        weights = torch.softmax(logits, 1)
        flat = torch.bmm(weights.unsqueeze(1), merged(self.spec, 2))
        return Dense(flat.reshape(len(weights), 1, *self.spec.shape[2:])), -(weights * self.threshold).sum(1, True)


@dataclass(frozen=True)
class Optimised:
    """The best bounds [G, S], what gave them, and the last walk.

    free: free values; beta: split multipliers [G, S, D]; logits: of the target's atoms [G, K].
    """

    lower: Tensor
    free: Free
    beta: Tensor | None
    logits: Tensor | None
    last: Walked


class Lining:
    """Lines of relaxed nodes from free values; what does not change from walk to walk is computed once.

    Free values that are not given start at the relaxation's own choice; given ones are made admissible.
    """

    def __init__(self, ctx: Context, boxes: Mapping[str, Interval], free: Mapping[str, Tensor]) -> None:
        self.ctx, self.boxes = ctx, boxes
        self.given, self.free = free, dict[str, Tensor]()
        self.frames: dict[str, Frame] = {}
        self.limits: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, name: str, rows: LinearMap) -> Lines:
        step = self.ctx.plan.steps[name]
        if name not in self.frames:
            full = frame_of(step, self.ctx.values, self.boxes[step.site.node.inputs[0]])
            frame = self.frames[name] = tuple(rows.at(part) for part in full)
            low, high = self.limits[name] = step.relaxation.limits(step.site, frame)
            if name in self.given:
                value = step.relaxation.project(step.site, frame, self.given[name].detach())
            else:
                value = step.relaxation.init(step.site, frame)
            support = rows.coefficients.shape
            value = value.expand(-1, *support) if value.shape[1:] != support else value
            self.free[name] = value.contiguous()
            if torch.is_grad_enabled() and bool((high > low).any()):
                self.free[name].requires_grad_()
        return step.relaxation.lines(step.site, self.frames[name], self.free[name])


def optimise(
    ctx: Context,
    boxes: Mapping[str, Interval],
    start: str,
    target: LinearMap | Target,
    free: Mapping[str, Tensor],
    steps: int,
    rates: Rates,
    splits: Splits | None = None,
    beta: Tensor | None = None,
    logits: Tensor | None = None,
    wanted: Callable[[Tensor], Tensor] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Optimised:
    """Raise lower bounds over node `start` by `steps` steps on alphas, betas and logits.

    target: rows of their own, or the atoms of one conjunction per group with their `logits`.
    free: values to start from, {} for CROWN's own.
    wanted: from the best bounds so far, which rows [G, S] still matter (default all); none ends the loop.
    The first bound is that of the values given, so the result is never worse than the start.
    """
    moving = steps > 0
    lining = Lining(ctx, boxes, free)
    beta = None if beta is None else beta.detach().clone().requires_grad_(moving)
    mixing = moving and logits is not None and logits.shape[1] > 1
    logits = None if logits is None else logits.detach().clone().requires_grad_(mixing)
    climber = Climber(rates)
    best: Optimised | None = None
    for step in range(steps + 1):
        last_step = step == steps
        with torch.set_grad_enabled(not last_step):
            rows, constant = target.rows(logits) if isinstance(target, Target) and logits is not None else (target, 0)
            assert isinstance(rows, LinearMap)
            addends = None if splits is None or beta is None else splits.addends(ctx.plan.graph, beta)
            walked = walk(ctx.plan, ctx.values, start, rows, lining, addends, keep)
            lower = walked.minimise(ctx.regions) + constant
        free = {name: value.detach() for name, value in lining.free.items()}
        best = better(best, Optimised(lower.detach(), free, fixed(beta), fixed(logits), walked))
        open_rows = torch.isfinite(lower) if wanted is None else wanted(best.lower) & torch.isfinite(lower)
        if last_step or not lower.requires_grad or not bool(open_rows.any()):
            break
        torch.where(open_rows, lower, torch.zeros_like(lower)).sum().backward()
        for name, (low, high) in lining.limits.items():
            lining.free[name] = climber.step(name, lining.free[name], low, high, rates.alpha, 3)
        if beta is not None:
            beta = climber.step("beta", beta, torch.zeros_like(beta), None, rates.beta, 2)
        if logits is not None and mixing:
            logits = climber.step("logits", logits, None, None, rates.logit, 1)
        climber.advance()
    assert best is not None
    return best


def fixed(value: Tensor | None) -> Tensor | None:
    """Without gradient history."""
    return None if value is None else value.detach()


def better(best: Optimised | None, new: Optimised) -> Optimised:
    """Per row the better of the best so far and the new bounds; NaN is never better."""
    if best is None:
        return new
    up = new.lower > best.lower

    def chosen(ours: Tensor, theirs: Tensor, lead: int) -> Tensor:
        mask = up.reshape(*([1] * lead), *up.shape, *([1] * (ours.dim() - lead - 2)))
        return torch.where(mask, ours, theirs)

    free = {name: chosen(value, best.free[name], 1) for name, value in new.free.items()}
    beta, logits = best.beta, best.logits
    if beta is not None and new.beta is not None:
        beta = chosen(new.beta, beta, 0)
    if logits is not None and new.logits is not None:
        logits = torch.where(up, new.logits, logits)
    return Optimised(torch.where(up, new.lower, best.lower), free, beta, logits, new.last)


@dataclass(frozen=True)
class AlphaCrown:
    """alpha-CROWN for the spec rows; `intermediates` "ibp", "crown", or "optimised" (each row's own alphas)."""

    steps: int = 20
    intermediates: str = "crown"
    rates: Rates = field(default_factory=Rates)
    memory: Memory = field(default_factory=Memory)

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        ctx = context(query, self.memory)
        tighten = {"ibp": None, "crown": by_walk, "optimised": self.tighten}[self.intermediates]
        boxes = boxes_of(ctx, query.known, tighten)
        rows = spec_rows(query, ctx.groups)
        found = optimise(ctx, boxes, start_of(query), rows, warm or {}, self.steps, self.rates)
        return Bounds(found.lower, boxes, found.free, stats(ctx, boxes))

    def tighten(self, ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> Tensor:
        """Optimised bounds of intermediate rows, each row with alphas of its own."""
        return optimise(ctx, boxes, start, rows, {}, self.steps, self.rates).lower
