"""alpha-CROWN: optimise the relaxations' free values, and the splits' multipliers with them.

Xu et al. 2021 (alpha-CROWN), Wang et al. 2021 (beta-CROWN). Any admissible free values give sound bounds,
so the optimiser only has to be good, never right: the best bound seen is kept per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surebound.bounds.beta import Splits
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
from surebound.bounds.walk import LinesOf, Walked, fixed_operands, lines_of, walk
from surebound.linear.maps import Dense, LinearMap, merged
from surebound.ops.record import Interval, Lines

Free = dict[str, Tensor]
"""Free values [K, G, S or 1, *shape] by relaxed node."""


@dataclass(frozen=True)
class Rates:
    """Step sizes of alphas, betas and the logits of a conjunction's atoms, and their decay per step."""

    alpha: float = 0.1
    beta: float = 0.05
    decay: float = 0.98
    logit: float = 0.3


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


def initial_free(ctx: Context, boxes: Mapping[str, Interval], start: str, rows: int) -> Free:
    """Start values for the loose relaxed steps that `start` depends on, one set per row."""
    free: Free = {}
    for name in ctx.plan.order(start):
        step = ctx.plan.steps.get(name)
        if step is None or step.affine:
            continue
        box = boxes[step.site.node.inputs[0]]
        lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
        chosen = step.relaxation.init(step.site, fixed_operands(step, ctx.values), lower, upper)
        free[name] = chosen.expand(-1, -1, rows, *([-1] * (chosen.dim() - 3))).clone()
    return free


def lines_from(ctx: Context, boxes: Mapping[str, Interval], free: Mapping[str, Tensor]) -> LinesOf:
    """Lines for given free values, not cached: they change in every step."""

    def lines(name: str) -> Lines:
        step = ctx.plan.steps[name]
        return lines_of(step, ctx.values, boxes[step.site.node.inputs[0]], free.get(name))

    return lines


def optimise(
    ctx: Context,
    boxes: Mapping[str, Interval],
    start: str,
    target: LinearMap | Target,
    free: Free,
    steps: int,
    rates: Rates,
    splits: Splits | None = None,
    beta: Tensor | None = None,
    logits: Tensor | None = None,
    wanted: Callable[[Tensor], Tensor] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Optimised:
    """Raise lower bounds over node `start` by `steps` Adam steps on alphas, betas and logits.

    target: rows of their own, or the atoms of one conjunction per group with their `logits`.
    wanted: from the best bounds so far, which rows [G, S] still matter (default all); none ends the loop.
    The first bound is that of the values given, so the result is never worse than the start.
    """
    moving = steps > 0
    free = {name: value.detach().clone().requires_grad_(moving) for name, value in free.items()}
    groups: list[dict[str, object]] = [{"params": list(free.values()), "lr": rates.alpha}]
    if beta is not None:
        beta = beta.detach().clone().requires_grad_(moving)
        groups.append({"params": [beta], "lr": rates.beta})
    if logits is not None:
        mixing = moving and logits.shape[1] > 1
        logits = logits.detach().clone().requires_grad_(mixing)
        groups.extend([{"params": [logits], "lr": rates.logit}] if mixing else [])
    optimiser = torch.optim.Adam(groups) if moving and any(group["params"] for group in groups) else None
    best: Optimised | None = None
    for step in range(steps + 1):
        last_step = step == steps or optimiser is None
        with torch.set_grad_enabled(not last_step):
            rows, constant = target.rows(logits) if isinstance(target, Target) and logits is not None else (target, 0)
            assert isinstance(rows, LinearMap)
            addends = None if splits is None or beta is None else splits.addends(ctx.plan.graph, beta)
            walked = walk(ctx.plan, ctx.values, start, rows, lines_from(ctx, boxes, free), addends, keep)
            lower = walked.minimise(ctx.regions) + constant
        best = better(best, Optimised(lower.detach(), free, beta, logits, walked))
        open_rows = torch.isfinite(lower) if wanted is None else wanted(best.lower) & torch.isfinite(lower)
        if last_step or not bool(open_rows.any()):
            break
        assert optimiser is not None
        optimiser.zero_grad(set_to_none=True)
        (-torch.where(open_rows, lower, torch.zeros_like(lower)).sum()).backward()
        optimiser.step()
        project(ctx, free, beta)
        for group in optimiser.param_groups:
            group["lr"] *= rates.decay
    assert best is not None
    return best


@torch.no_grad()
def project(ctx: Context, free: Free, beta: Tensor | None) -> None:
    """Back to what is admissible: relaxations' own ranges, beta >= 0."""
    for name, value in free.items():
        value.copy_(ctx.plan.steps[name].relaxation.project(value.nan_to_num(0.5)))
    if beta is not None:
        beta.clamp_(min=0).nan_to_num_(0.0)


def better(best: Optimised | None, new: Optimised) -> Optimised:
    """Per row the better of the best so far and the new bounds."""
    held = {name: value.detach() for name, value in new.free.items()}
    if best is None:
        copies = {name: value.clone() for name, value in held.items()}
        beta = None if new.beta is None else new.beta.detach().clone()
        logits = None if new.logits is None else new.logits.detach().clone()
        return Optimised(new.lower, copies, beta, logits, new.last)
    up = new.lower > best.lower
    chosen = {}
    for name, value in held.items():
        mask = up if value.shape[2] == up.shape[1] else up.all(1, keepdim=True)
        chosen[name] = torch.where(mask.reshape(1, *mask.shape, *([1] * (value.dim() - 3))), value, best.free[name])
    beta, logits = best.beta, best.logits
    if beta is not None and new.beta is not None:
        beta = torch.where(up.unsqueeze(-1), new.beta.detach(), beta)
    if logits is not None and new.logits is not None:
        logits = torch.where(up, new.logits.detach(), logits)
    return Optimised(torch.maximum(new.lower, best.lower), chosen, beta, logits, new.last)


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
        start = start_of(query)
        free = dict(warm) if warm else initial_free(ctx, boxes, start, rows.rows[1])
        found = optimise(ctx, boxes, start, rows, free, self.steps, self.rates)
        return Bounds(found.lower, boxes, found.free, stats(ctx, boxes))

    def tighten(self, ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> Tensor:
        """Optimised bounds of intermediate rows, each row with alphas of its own."""
        free = initial_free(ctx, boxes, start, rows.rows[1])
        return optimise(ctx, boxes, start, rows, free, self.steps, self.rates).lower
