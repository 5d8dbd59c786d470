"""alpha-CROWN: optimise the relaxations' free values, and the splits' multipliers with them.

Xu et al. 2021 (alpha-CROWN), Wang et al. 2021 (beta-CROWN). Any admissible free values give sound bounds,
so the optimiser only has to be good, never right: the best bound seen is kept per row. Every row has free
values of its own, on its support; rows do not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.bounds.climb import Rates
from surebound.bounds.crown import (
    BY_WALK,
    Context,
    Tighten,
    boxes_of,
    context,
    live_of,
    of_groups,
    spec_rows,
    start_of,
    stats,
    widest,
)
from surebound.bounds.memory import Memory, chunked
from surebound.bounds.query import Bounds, Query
from surebound.bounds.work import Optimised, Record, Target, Work, joined
from surebound.linear.maps import LinearMap
from surebound.ops.record import Interval

LEAVE = 0.75
"""Rows leave when at most this part of those at work is left."""

LOOK = 5
"""Elsewhere than on a CPU, whether rows are done is asked every so many steps only: it waits for the device."""

KEPT = 6
"""Numbers per entry of a relaxed node: coefficients, free value, its gradient, its running mean and square, chord."""

QUARTER = 4
"""Spec rows get this many times the steps of intermediate rows."""


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
    remember: bool = True,
    live: Mapping[str, Tensor] = MappingProxyType({}),
) -> Optimised:
    """Raise lower bounds over node `start` by `steps` steps on alphas, betas and logits.

    target: rows of their own, or the atoms of one conjunction per group with their `logits`.
    free: values to start from, {} for CROWN's own.
    Groups are worked on in pieces that fit into memory.
    wanted: from the best bounds so far of some groups, which rows [g, S] still matter (default all); the others
    leave, as do rows that hardly rise any more (`rates.settled`).
    remember: is what gave the bounds wanted too, or only the bounds? live: as `walk` takes it; the free values are
    then on that support.
    The first bound is that of the values given, so the result is never worse than the start. Where parameters,
    regions or boxes are differentiated, the bounds are those of the best values held fixed.
    """
    if torch.is_grad_enabled() and tracked(ctx, boxes):
        still = replace(ctx, values=detached(ctx.values), regions={n: r.detach() for n, r in ctx.regions.items()})
        fixed = {name: Interval(box.lower.detach(), box.upper.detach()) for name, box in boxes.items()}
        found = optimise(still, fixed, start, target, free, steps, rates, splits, beta, logits, wanted, keep)
        work = Work.of(ctx, boxes, target, found.free, splits, found.beta, found.logits, moving=False)
        return replace(found, lower=work.walk(start, frozenset())[1])
    groups, rows = target.rows if isinstance(target, LinearMap) else (len(target.spec), 1)
    size = max(1, ctx.memory.piece(held(ctx, start), next(iter(ctx.regions.values())).lower.dtype) // rows)
    if groups <= size:
        return climbed(
            ctx, boxes, start, target, free, steps, rates, splits, beta, logits, wanted, keep, remember, live
        )

    def part(piece: slice) -> Optimised:
        at = torch.arange(piece.start, piece.stop)
        some, near = of_groups(ctx, boxes, start, at)
        return climbed(
            some,
            near,
            start,
            target.groups(at),
            {name: value if value.shape[1] == 1 else value[:, piece] for name, value in free.items()},
            steps,
            rates,
            None if splits is None else splits.at(at),
            None if beta is None else beta[piece],
            None if logits is None else logits[piece],
            wanted,
            keep,
            remember,
            {name: index[at] for name, index in live.items()},
        )

    return joined(chunked(part, groups, size))


def climbed(
    ctx: Context,
    boxes: Mapping[str, Interval],
    start: str,
    target: LinearMap | Target,
    free: Mapping[str, Tensor],
    steps: int,
    rates: Rates,
    splits: Splits | None,
    beta: Tensor | None,
    logits: Tensor | None,
    wanted: Callable[[Tensor], Tensor] | None,
    keep: frozenset[str],
    remember: bool,
    live: Mapping[str, Tensor],
) -> Optimised:
    """`optimise` for as many groups as are worked on at once."""
    work = Work.of(ctx, boxes, target, free, splits, beta, logits, steps > 0, live)
    record: Record | None = None
    for step in range(steps + 1):
        ctx.alive()
        last_step = step == steps
        with torch.set_grad_enabled(not last_step):
            walked, lower = work.walk(start, keep)
        if record is None:
            record = Record(lower, work, remember)
        record.improve(lower.detach(), work)
        open_rows = torch.isfinite(lower) & record.rising(rates.settled).flatten()[work.place]
        if wanted is not None:
            open_rows = open_rows & wanted(record.lower).flatten()[work.place]
        due = lower.device.type == "cpu" or step % LOOK == 0
        if last_step or not lower.requires_grad or (due and not bool(open_rows.any())):
            record.leave(walked, lower, work)
            break
        with torch.enable_grad():  # whoever asks for bounds may not want gradients
            work.climb(torch.where(open_rows, lower, torch.zeros_like(lower)), rates)
        fewer = narrower(open_rows) if due else None
        if fewer is not None:
            record.leave(walked, lower, work)
            work = work.narrowed(*fewer)
    assert record is not None
    return record.optimised()


def tracked(ctx: Context, boxes: Mapping[str, Interval]) -> bool:
    """Does anything that a walk reads have a gradient?"""
    ends = [end for part in (*ctx.regions.values(), *boxes.values()) for end in (part.lower, part.upper)]
    return any(value.requires_grad for value in (*ctx.values.values(), *ends))


def detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without gradient history."""
    return {name: value.detach() for name, value in values.items()}


def narrower(open_rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """The groups [g, 1] and their rows [g, s] to go on with, padded, or None while too few are done.

    One row per group: groups leave. Several: rows leave, as many from each group.
    """
    groups, rows = open_rows.shape
    if rows == 1:
        at = open_rows.squeeze(1).nonzero()
        return (at, torch.zeros_like(at)) if len(at) <= LEAVE * groups else None
    most = int(open_rows.sum(1).max())
    if most > LEAVE * rows:
        return None
    order = open_rows.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.arange(groups, device=order.device).unsqueeze(1), order


def held(ctx: Context, start: str) -> int:
    """Numbers that an optimisation of a row over `start` holds: a walk, and what is kept at every relaxed node."""
    relaxed = (step for name in ctx.plan.order(start) if (step := ctx.plan.steps.get(name)) and not step.affine)
    return widest(ctx, start) + KEPT * sum(step.site.node.numel for step in relaxed)


@dataclass(frozen=True)
class AlphaCrown:
    """alpha-CROWN for the spec rows, in `steps` steps.

    intermediates: "ibp", "crown", or "optimised": layer by layer, every loose neuron's two bounds have alphas
    of their own and are optimised for their own sake, in a quarter of the steps. Boxes that are tightest
    neuron by neuron also bound what follows best, so nothing is passed back from the spec rows.
    """

    steps: int = 20
    intermediates: str = "crown"
    rates: Rates = field(default_factory=Rates)
    memory: Memory = field(default_factory=Memory)

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        ctx = context(query, self.memory)
        tighten = {"ibp": (), "crown": (BY_WALK,), "optimised": (BY_WALK, Tighten(self.tighten, held))}[
            self.intermediates
        ]
        boxes = boxes_of(ctx, query.known, tighten)
        rows = spec_rows(query, ctx.groups)
        found = optimise(ctx, boxes, start_of(query), rows, warm or {}, self.steps, self.rates)
        return Bounds(found.lower, boxes, found.free, partial(stats, ctx, boxes))

    def tighten(self, ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> Tensor:
        """Optimised bounds of intermediate rows [G, 2 U]: below, then above."""
        return self.raised(ctx, boxes, start, rows, live_of(ctx, boxes, start, rows), remember=False).lower

    def raised(
        self,
        ctx: Context,
        boxes: Mapping[str, Interval],
        start: str,
        rows: LinearMap,
        live: Mapping[str, Tensor],
        remember: bool,
    ) -> Optimised:
        """Optimised intermediate rows [G, 2 U]: below, then above; both of a neuron found stable leave."""
        steps = -(-self.steps // QUARTER)

        def undecided(lower: Tensor) -> Tensor:
            return (lower.unflatten(1, (2, -1)) <= 0).all(1).repeat(1, 2)

        return optimise(ctx, boxes, start, rows, {}, steps, self.rates, wanted=undecided, remember=remember, live=live)
