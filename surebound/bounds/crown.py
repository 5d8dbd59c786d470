"""CROWN: backward linear bounds, with intermediate boxes by IBP or by CROWN itself.

Zhang et al. 2018 (CROWN), Zhang et al. 2020 (CROWN-IBP), Xu et al. 2020 (general graphs). Intermediate
boxes are computed in topological order; only neurons that the boxes at hand leave unstable are walked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from surebound.bounds.ibp import intersect, propagate, unperturbed
from surebound.bounds.memory import COPIES, Memory, chunked
from surebound.bounds.plan import Plan, Step, plan
from surebound.bounds.query import Bounds, Query, Stats, nothing
from surebound.bounds.walk import LinesOf, fixed_operands, lines_at, lines_of, walk, zero
from surebound.bounds.width import width
from surebound.errors import SpecError
from surebound.graph.ir import Node
from surebound.linear.maps import Dense, LinearMap, Rows, merged
from surebound.linear.pull import vector
from surebound.ops.record import Interval, Lines
from surebound.regions import Box, Region

T = TypeVar("T")

WORTH = 0.7
"""Groups are bounded together when each uses at least this part of the rows."""

MANY, FEW = 32, 0.8
"""Weights are cut to the values in use for at least so many rows, where at most this part is in use."""


@dataclass(frozen=True)
class Context:
    """A query made ready: the plan, the unperturbed values, regions by root.

    alive: as in `Query`. drawn: what `once` has made so far. needed: by operand of relaxed steps bool [*shape], which
    entries are worth more than interval arithmetic; all of those that are not named.
    """

    plan: Plan
    values: Mapping[str, Tensor]
    regions: Mapping[str, Region]
    memory: Memory
    alive: Callable[[], None] = nothing
    drawn: dict[tuple[Any, ...], tuple[Interval, Any]] = field(default_factory=dict)
    needed: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def groups(self) -> int:
        """G."""
        return next(iter(self.regions.values())).groups

    def worth(self, name: str, mask: Tensor) -> Tensor:
        """Of some entries [G, *shape] of a node those that are needed."""
        return mask & self.needed[name] if name in self.needed else mask


Ahead = Callable[[Node, Interval, Mapping[str, Interval]], Interval]
"""A node, its box [G, *shape] and the boxes of those before it -> a narrower box."""


@dataclass(frozen=True)
class Tighten:
    """A way to bound rows over an intermediate node.

    lower: lower bounds [G, S] of rows over a node, given the boxes of what comes before it.
    held: how many numbers it holds for a row over the node.
    """

    lower: Callable[[Context, Mapping[str, Interval], str, LinearMap], Tensor]
    held: Callable[[Context, str], int]


def widest(ctx: Context, start: str) -> int:
    """Numbers that a walk from `start` holds for a row where it is widest."""
    return COPIES * width(ctx.plan, start)


def once(
    ctx: Context, boxes: Mapping[str, Interval], step: Step, make: Callable[[Step, Mapping[str, Tensor], Interval], T]
) -> T:
    """make(step, values, box) for a relaxed step, made once per box: many walks pass the same nodes."""
    box = boxes[step.site.node.inputs[0]]
    key = (step.site.node.name, make, torch.is_grad_enabled())
    known = ctx.drawn.get(key)
    if known is None or known[0] is not box:
        known = ctx.drawn[key] = (box, make(step, ctx.values, box))
    return known[1]


def walked_lower(ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> Tensor:
    """Plain CROWN lower bounds of rows over `start`."""
    lines, live = caching_lines(ctx, boxes), live_of(ctx, boxes, start, rows)
    return walk(ctx.plan, ctx.values, start, rows, lines, live=live).minimise(ctx.regions)


def live_of(ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> dict[str, Tensor]:
    """By relaxed node that linear layers read: flat positions [G, n] of what is not surely zero.

    Only for MANY rows per group (each group then multiplies with weights of its own), and where few are left.
    Groups that need fewer positions than others get some that are zero.
    """
    found: dict[str, Tensor] = {}
    if rows.rows[1] < MANY or torch.is_grad_enabled() and any(value.requires_grad for value in ctx.values.values()):
        return found
    for name in ctx.plan.order(start):
        step = ctx.plan.steps.get(name)
        if step is None or step.affine or not vector(step.site.shape):
            continue
        positions = once(ctx, boxes, step, few)
        if positions is not None:
            found[name] = positions
    return found


def few(step: Step, values: Mapping[str, Tensor], box: Interval) -> Tensor | None:
    """Flat positions [G, n] of what is not surely zero in a relaxed step's value, where that is few."""
    mask = ~merged(zero(step, values, box), 1)
    most = max(1, int(mask.sum(1).max()))
    if most > FEW * mask.shape[1]:
        return None
    return mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]


def plain_lines(step: Step, values: Mapping[str, Tensor], box: Interval) -> Lines:
    """CROWN's own lines of a relaxed step."""
    return lines_of(step, values, box, None)


BY_WALK = Tighten(walked_lower, widest)
"""CROWN's own bounds."""


def context(query: Query, memory: Memory) -> Context:
    """Plan a query and evaluate what is not perturbed."""
    if start_of(query) not in query.graph.ancestors(query.graph.outputs):
        raise SpecError(f"rows are asked over '{start_of(query)}', which the outputs do not depend on")
    of = plan(query.graph, tuple(query.regions))
    return Context(of, unperturbed(of, query.params), query.regions, memory, query.alive)


def caching_lines(ctx: Context, boxes: Mapping[str, Interval]) -> LinesOf:
    """CROWN's lines by relaxed node, computed when first asked for."""
    return lambda name, rows: lines_at(rows, once(ctx, boxes, ctx.plan.steps[name], plain_lines))


def loose(ctx: Context, name: str, box: Interval) -> Tensor:
    """bool [G, *shape]: neurons of node `name` that some relaxed step reading it cannot bound exactly; of a node that
    such steps read in another arrangement all that move.
    """
    if name not in ctx.plan.operands:
        return box.lower < box.upper
    mask = torch.zeros(box.lower.shape, dtype=torch.bool, device=box.lower.device)
    for step in ctx.plan.operands[name]:
        found = step.relaxation.loose(
            step.site, fixed_operands(step, ctx.values), box.lower.unsqueeze(1), box.upper.unsqueeze(1)
        )
        mask = mask | found.squeeze(1)
    return mask


def of_groups(
    ctx: Context, boxes: Mapping[str, Interval], start: str, groups: Tensor
) -> tuple[Context, dict[str, Interval]]:
    """The context and the boxes before `start` of some groups."""
    graph = ctx.plan.graph
    values = {
        name: value[groups] if graph[name].batched and value.shape[0] > 1 else value
        for name, value in ctx.values.items()
    }
    regions = {name: region.take(groups) for name, region in ctx.regions.items()}
    steps = (ctx.plan.steps.get(name) for name in ctx.plan.order(start))
    read = {step.site.node.inputs[0] for step in steps if step is not None and not step.affine}
    taken = {name: Interval(boxes[name].lower[groups], boxes[name].upper[groups]) for name in read}
    return replace(ctx, values=values, regions=regions, drawn={}), taken


def packed(counts: Sequence[int], most: int) -> Iterator[tuple[list[int], int]]:
    """Cut groups that want `counts` rows into pieces of similar wants: (groups, rows each).

    A piece holds at most `most` rows, and no group in it wants less than WORTH of the rows it gets.
    """
    order = sorted((g for g in range(len(counts)) if counts[g]), key=lambda g: -counts[g])
    while order:
        rows = counts[order[0]]
        fit = sum(counts[g] >= WORTH * rows for g in order)
        size = max(1, min(fit, most // rows))
        yield order[:size], rows
        order = order[size:]


def tightened(
    ctx: Context, boxes: Mapping[str, Interval], name: str, box: Interval, mask: Tensor, tighten: Tighten
) -> Interval:
    """Bound the masked neurons of node `name` by backward walks; others keep their box.

    Each group gets rows for its own neurons, below and above (-lower of the negated row); the groups of a
    piece are padded to one number of rows with the first neuron again.
    """
    groups, shape = mask.shape[0], tuple(mask.shape[1:])
    flags = mask.reshape(groups, -1)
    owner, neuron = flags.nonzero().unbind(1)
    count = flags.sum(1)
    if len(owner) == 0:
        return box
    first = count.cumsum(0) - count
    index = neuron[first.clamp(max=len(neuron) - 1)].unsqueeze(1).repeat(1, int(count.max()))
    index[owner, torch.arange(len(owner), device=owner.device) - first[owner]] = neuron
    lower, upper = box.lower.reshape(groups, -1), box.upper.reshape(groups, -1)
    most = max(1, ctx.memory.piece(tighten.held(ctx, name), lower.dtype) // 2)
    for chosen, rows in packed(count.tolist(), most):
        at = torch.tensor(chosen, device=index.device)
        some = (ctx, boxes) if chosen == list(range(groups)) else of_groups(ctx, boxes, name, at)

        def bound(piece: slice, at: Tensor = at, some: tuple[Context, Mapping[str, Interval]] = some) -> Tensor:
            ctx.alive()
            here = index[at, piece]
            sign = torch.ones(here.shape, dtype=box.lower.dtype, device=here.device)
            both = Rows(here.repeat(1, 2), torch.cat([sign, -sign], 1), shape)
            return tighten.lower(*some, name, both).unflatten(1, (2, -1))

        found = torch.cat(chunked(bound, rows, max(1, most // len(chosen))), dim=2)
        own, row = (torch.arange(rows, device=at.device) < count[at].unsqueeze(1)).nonzero().unbind(1)
        places = (at[own], index[at[own], row])
        lower = lower.index_put(places, found[own, 0, row])
        upper = upper.index_put(places, -found[own, 1, row])
    return intersect(box, Interval(lower.reshape(box.lower.shape), upper.reshape(box.upper.shape)))


def boxes_of(
    ctx: Context,
    known: Mapping[str, Interval],
    tighten: Sequence[Tighten],
    ahead: Ahead | None = None,
) -> dict[str, Interval]:
    """Boxes of every perturbed node: interval arithmetic, tightened where a relaxation reads them.

    tighten: methods from cheap to dear, each for the neurons that those before left loose; none leaves interval
    arithmetic (CROWN-IBP). known: established boxes, intersected before anything reads them. ahead: narrows the box of
    each computed node before all of that.
    """
    boxes: dict[str, Interval] = {}
    exact = all(isinstance(region, Box) for region in ctx.regions.values())

    def refine(node: Node, box: Interval) -> Interval:
        if node.name in known:
            box = intersect(box, known[node.name])
        if ahead is not None:
            box = ahead(node, box, boxes)
        if node.name not in ctx.plan.bounded:
            return box
        if exact and ctx.plan.one_affine_map(node.name):
            return box
        for method in tighten:
            mask = ctx.worth(node.name, loose(ctx, node.name, box))
            box = tightened(ctx, boxes, node.name, box, mask, method)
        return box

    return propagate(ctx.plan, ctx.values, ctx.regions, refine, boxes)


def spec_rows(query: Query, groups: int) -> Dense:
    """The query's rows for every group."""
    spec = query.spec
    return Dense(spec.expand(groups, *spec.shape[1:]))


def start_of(query: Query) -> str:
    """The node whose rows are bounded."""
    return query.start if query.start is not None else query.graph.output.name


def stats(ctx: Context, boxes: Mapping[str, Interval]) -> Stats:
    """Neurons of relaxed steps and how many of them are unstable in each group."""
    neurons = sum(step.site.node.numel for step in ctx.plan.relaxed)
    unstable = torch.zeros(ctx.groups, dtype=torch.long)
    for step in ctx.plan.relaxed:
        unstable = unstable + merged(unstable_of(ctx, step, boxes), 1).sum(1).cpu()
    return Stats(neurons, unstable)


def unstable_of(ctx: Context, step: Step, boxes: Mapping[str, Interval]) -> Tensor:
    """bool [G, *shape]: the loose neurons of one relaxed step."""
    box = boxes[step.site.node.inputs[0]]
    return step.relaxation.loose(
        step.site, fixed_operands(step, ctx.values), box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    ).squeeze(1)


def region_of(ctx: Context, name: str, box: Interval) -> Region:
    """A root's own region, or the box of a computed node."""
    if name in ctx.regions:
        return ctx.regions[name]
    return Box(box.lower, torch.maximum(box.lower, box.upper))


@dataclass(frozen=True)
class Ibp:
    """Interval arithmetic; the rows are merged with the affine steps behind the last non-affine ones."""

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        ctx = context(query, Memory())
        boxes = boxes_of(ctx, query.known, ())
        walked = walk(ctx.plan, ctx.values, start_of(query), spec_rows(query, ctx.groups), None)
        ends = {name: region_of(ctx, name, boxes[name]) for name in walked.roots}
        return Bounds(walked.minimise(ends), boxes, {}, partial(stats, ctx, boxes))


@dataclass(frozen=True)
class Crown:
    """CROWN with intermediate boxes by `intermediates` ("crown", or "ibp" for CROWN-IBP)."""

    intermediates: str = "crown"
    memory: Memory = field(default_factory=Memory)

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        ctx = context(query, self.memory)
        boxes = boxes_of(ctx, query.known, (BY_WALK,) if self.intermediates == "crown" else ())
        lower = walked_lower(ctx, boxes, start_of(query), spec_rows(query, ctx.groups))
        return Bounds(lower, boxes, {}, partial(stats, ctx, boxes))
