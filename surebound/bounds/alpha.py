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
from surebound.linear.maps import LinearMap
from surebound.ops.record import Interval, Lines

Free = dict[str, Tensor]
"""Free values [K, G, S or 1, *shape] by relaxed node."""


@dataclass(frozen=True)
class Rates:
    """Step sizes: of alphas, of betas, and their decay per step (alpha-beta-CROWN's defaults)."""

    alpha: float = 0.1
    beta: float = 0.05
    decay: float = 0.98


@dataclass(frozen=True)
class Optimised:
    """The best bounds [G, S], the free values and multipliers [G, S, D] that gave them, and the last walk."""

    lower: Tensor
    free: Free
    beta: Tensor | None
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
    rows: LinearMap,
    free: Free,
    steps: int,
    rates: Rates,
    splits: Splits | None = None,
    beta: Tensor | None = None,
    wanted: Callable[[Tensor], Tensor] | None = None,
    keep: frozenset[str] = frozenset(),
) -> Optimised:
    """Raise the lower bounds of `rows` over `start` by `steps` Adam steps on alphas and betas.

    wanted: from the best bounds so far, which rows [G, S] still matter (default all); none ends the loop.
    The first bound is that of the values given, so the result is never worse than the start.
    """
    free = {name: value.detach().clone().requires_grad_(steps > 0) for name, value in free.items()}
    groups: list[dict[str, object]] = [{"params": list(free.values()), "lr": rates.alpha}]
    if splits is not None:
        shape = (*rows.rows, splits.depth)
        start_beta = torch.zeros(shape, dtype=rows.dtype, device=rows.device) if beta is None else beta
        beta = start_beta.detach().clone().requires_grad_(steps > 0)
        groups.append({"params": [beta], "lr": rates.beta})
    optimiser = torch.optim.Adam(groups) if steps > 0 and any(group["params"] for group in groups) else None
    best: Optimised | None = None
    for step in range(steps + 1):
        last_step = step == steps or optimiser is None
        with torch.set_grad_enabled(not last_step):
            addends = None if splits is None or beta is None else splits.addends(ctx.plan.graph, beta)
            walked = walk(ctx.plan, ctx.values, start, rows, lines_from(ctx, boxes, free), addends, keep)
            lower = walked.minimise(ctx.regions)
        best = better(best, lower, free, beta, walked)
        open_rows = torch.isfinite(lower) if wanted is None else wanted(best.lower) & torch.isfinite(lower)
        if last_step or not bool(open_rows.any()):
            break
        assert optimiser is not None
        optimiser.zero_grad(set_to_none=True)
        loss = -torch.where(open_rows, lower, torch.zeros_like(lower)).sum()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for name, value in free.items():
                value.copy_(ctx.plan.steps[name].relaxation.project(value.nan_to_num(0.5)))
            if beta is not None:
                beta.clamp_(min=0).nan_to_num_(0.0)
        for group in optimiser.param_groups:
            group["lr"] *= rates.decay
    assert best is not None
    return best


def better(best: Optimised | None, lower: Tensor, free: Free, beta: Tensor | None, walked: Walked) -> Optimised:
    """Per row the better of the best so far and the new bounds."""
    lower = lower.detach()
    held = {name: value.detach() for name, value in free.items()}
    if best is None:
        return Optimised(
            lower,
            {name: value.clone() for name, value in held.items()},
            None if beta is None else beta.detach().clone(),
            walked,
        )
    up = lower > best.lower
    chosen = {}
    for name, new in held.items():
        mask = up if new.shape[2] == up.shape[1] else up.all(1, keepdim=True)
        chosen[name] = torch.where(mask.reshape(1, *mask.shape, *([1] * (new.dim() - 3))), new, best.free[name])
    kept_beta = best.beta
    if beta is not None and best.beta is not None:
        kept_beta = torch.where(up.unsqueeze(-1), beta.detach(), best.beta)
    return Optimised(torch.maximum(lower, best.lower), chosen, kept_beta, walked)


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
