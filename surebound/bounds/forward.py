"""Forward linear bounds: every value between two linear functions of the inputs that move (Xu et al. 2020).

An affine step with Jacobian J, and value c where its operands are zero, makes of functions L x and U x below and above

    J (L + U) / 2 - |J| (U - L) / 2 + c   and   J (L + U) / 2 + |J| (U - L) / 2 + c.

A relaxed step takes its operand's lower function through its lower line where that rises and the upper one where it
falls. What this costs grows with the number of inputs that move, what walks cost with the number of unstable neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from surebound.bounds.crown import Context, boxes_of, context, spec_rows, start_of, stats, walked_lower
from surebound.bounds.ibp import intersect
from surebound.bounds.memory import COPIES, Memory
from surebound.bounds.plan import Plan, Step
from surebound.bounds.query import Bounds, Query
from surebound.bounds.walk import fixed_operands, lines_of
from surebound.errors import OutOfMemory
from surebound.graph.ir import Node
from surebound.linear.maps import Dense, LinearMap, merged
from surebound.ops import OPS
from surebound.ops.record import Interval, Lines
from surebound.regions import Box, LpBall, Region

T = TypeVar("T")

RISING = frozenset(
    {
        *("reshape", "transpose", "expand", "concat", "slice", "gather", "pad", "where"),
        *("add", "sum", "mean", "avg_pool2d", "product", "max_merge"),
    }
)
"""Affine ops that fall with none of their operands: |J| = J."""

OFFSETS = {"linear": (2,), "conv2d": (2,), "conv_transpose2d": (2,), "batch_norm": (2, 3), "add": (0, 1), "sub": (0, 1)}
"""Operands that are only added, by op; J is the op without them. Of ops that are not here J is the op less its value at
zero, which would cost coefficients their digits where much is added.
"""

WEIGHTED = frozenset({"linear", "conv2d", "conv_transpose2d"})
"""Ops of (value, weight, bias): |J| is J of |weight|."""


class Form(NamedTuple):
    """Linear functions below and above a value: columns [G, K + 1, *shape], one for each of K inputs that move and one
    for the constant. `lower is upper` for a value that is linear in the inputs.
    """

    lower: Tensor
    upper: Tensor


class Around(NamedTuple):
    """A root without what stands still: which of its flat positions [k] move, where its columns begin, the point
    [G, *shape] that they are counted from, and the region of the moving ones [G, k] around it.
    """

    moving: Tensor
    begin: int
    centre: Tensor
    region: Region


class Forms:
    """Forms of the values of a pass, made in topological order, dropped when nothing reads them any more.

    keep: the one that is wanted in the end. Raises OutOfMemory where the widest do not fit.
    """

    def __init__(self, ctx: Context, keep: str) -> None:
        self.ctx, self.made = ctx, dict[str, Form]()
        self.around, self.inputs = around_of(ctx)
        if (need := ctx.groups * held(ctx.plan, self.inputs)) > ctx.memory.budget:
            raise OutOfMemory(
                f"forward bounds in {self.inputs} inputs hold {need / 2**30:.1f} GB at the network's widest value, "
                f"more than the {ctx.memory.budget / 2**30:.1f} GB given; use crown, or more memory"
            )
        reads = {source: node.name for node in ctx.plan.graph.nodes for source in node.inputs}
        self.done = {name: [s for s, last in reads.items() if last == name and s != keep] for name in reads.values()}
        for name, root in self.around.items():
            self.made[name] = self.of_root(root)

    def of_root(self, root: Around) -> Form:
        """The identity on what moves, around the centre."""
        groups, count = root.centre.shape[0], len(root.moving)
        columns = merged(root.centre, 1).new_zeros(groups, self.inputs + 1, prod(root.centre.shape[1:]))
        columns[:, torch.arange(root.begin, root.begin + count, device=columns.device), root.moving] = 1
        columns[:, -1] = merged(root.centre, 1)
        columns = columns.reshape(groups, -1, *root.centre.shape[1:])
        return Form(columns, columns)

    def least(self, columns: Tensor) -> Tensor:
        """The least values [G, n] of linear functions [G, K + 1, n] over the regions, -inf where numbers overflowed."""
        found = columns[:, -1]
        for root in self.around.values():
            own = columns[:, root.begin : root.begin + len(root.moving)]
            found = found + root.region.minimise(Dense(own.transpose(1, 2).contiguous()))
        return torch.where(torch.isfinite(found), found, -torch.inf)

    def box(self, form: Form) -> Interval:
        """The box [G, *shape] of a value."""
        shape = (form.lower.shape[0], *form.lower.shape[2:])
        lower, upper = (self.least(merged(end, 2)) for end in (form.lower, -form.upper))
        return Interval(lower.reshape(shape), -upper.reshape(shape))

    def rows(self, name: str, rows: LinearMap) -> Tensor:
        """Lower bounds [G, S] of rows over a value whose form is there: max(A, 0) L + min(A, 0) U."""
        a, form = merged(rows.dense(), 2), self.made[name]
        lower, upper = (merged(end, 2).transpose(1, 2) for end in form)
        return self.least((a.clamp(min=0) @ lower + a.clamp(max=0) @ upper).transpose(1, 2))

    def tightened(self, node: Node, box: Interval, boxes: Mapping[str, Interval]) -> Interval:
        """Make the form of a node from those of its operands; its box, cut by what the form says."""
        step = self.ctx.plan.steps[node.name]
        fixed = fixed_operands(step, self.ctx.values)
        if step.affine:
            forms = [self.made[n] for f, n in zip(fixed, node.inputs, strict=True) if f is None]
            known = step.op is OPS.get(node.op) or all(form.lower is form.upper for form in forms)
            form = affine(step, fixed, forms) if known else still(box, self.inputs)
        else:
            operand = node.inputs[0]
            form = bent(lines_of(step, self.ctx.values, boxes[operand], None), self.made[operand])
        self.made[node.name] = form
        for name in self.done.get(node.name, ()):
            self.made.pop(name, None)
        if not step.affine and step.relaxation.together:
            return box
        return intersect(box, self.box(form))


def moving(region: Region) -> Tensor:
    """The flat positions that move: of a ball all, of boxes those of any width in some group."""
    if isinstance(region, LpBall):
        return torch.arange(region.lower[0].numel(), device=region.lower.device)
    return merged(region.lower < region.upper, 1).any(0).nonzero().squeeze(1)


def held(of: Plan, inputs: int) -> int:
    """Bytes that the forms of a group hold where they are widest, in float64."""
    return 8 * COPIES * (inputs + 1) * max((node.numel for node in of.graph if node.batched), default=1)


def around_of(ctx: Context) -> tuple[dict[str, Around], int]:
    """The roots by name, and how many of their inputs move. Of balls all count."""
    found: dict[str, Around] = {}
    begin = 0
    for name, region in ctx.regions.items():
        if isinstance(region, LpBall):
            centre, at = region.centre, moving(region)
            ends = (merged(end - centre, 1) for end in (region.lower, region.upper))
            around: Region = LpBall(torch.zeros_like(merged(centre, 1)), region.radius, region.p, *ends)
        else:
            middle = region.lower / 2 + region.upper / 2
            centre, at = torch.where(region.lower == region.upper, region.lower, middle), moving(region)
            ends = (merged(end - centre, 1)[:, at] for end in (region.lower, region.upper))
            around = Box(*ends)
        found[name] = Around(at, begin, centre, around)
        begin += len(at)
    return found, begin


def affine(step: Step, fixed: Sequence[Tensor | None], forms: Sequence[Form]) -> Form:
    """The form of an affine step's value, from those of the operands that move."""
    if all(form.lower is form.upper for form in forms):
        columns = straight(step, fixed, [form.lower for form in forms])
        return Form(columns, columns)
    if step.site.node.op in RISING:
        lower, upper = (straight(step, fixed, ends) for ends in zip(*forms, strict=True))
        return Form(lower, upper)
    middle = straight(step, fixed, [(form.lower + form.upper) / 2 for form in forms])
    radius = spread(step, fixed, [(form.upper - form.lower) / 2 for form in forms])
    return Form(middle - radius, middle + radius)


def straight(step: Step, fixed: Sequence[Tensor | None], columns: Sequence[Tensor]) -> Tensor:
    """J of columns [G, K + 1, *shape], and on the last one the value at zero."""
    lead = columns[0].shape[:2]
    constant = step.op.forward(step.site, *filled(fixed, [torch.zeros_like(part[:, 0]) for part in columns]))
    flat = [column.flatten(0, 1) for column in columns]
    found = step.op.forward(step.site, *filled(per_column(step, fixed, lead), flat)).unflatten(0, lead)
    if step.site.node.op not in OFFSETS:
        found = found - constant.unsqueeze(1)
    return torch.cat([found[:, :-1], (found[:, -1] + constant).unsqueeze(1)], 1)


def spread(step: Step, fixed: Sequence[Tensor | None], columns: Sequence[Tensor]) -> Tensor:
    """|J| of columns [G, K + 1, *shape]: by the weights' absolute values; or by half the widths of the op's intervals
    around zero, which need columns that are not negative.
    """
    lead = columns[0].shape[:2]
    if step.site.node.op in WEIGHTED:
        weight = fixed[1]
        assert weight is not None
        return step.op.forward(step.site, columns[0].flatten(0, 1), weight.abs()).unflatten(0, lead)
    around = per_column(step, fixed, lead)

    def half_width(parts: Sequence[Tensor]) -> Tensor:
        boxes = [Interval(-part, part) for part in parts]
        full = filled([None if value is None else Interval(value, value) for value in around], boxes)
        found = step.op.interval(step.site, *full)
        return ((found.upper - found.lower) / 2).unflatten(0, lead)

    flat = [column.flatten(0, 1) for column in columns]
    return half_width([part.clamp(min=0) for part in flat]) - half_width([part.clamp(max=0).neg() for part in flat])


def still(box: Interval, inputs: int) -> Form:
    """The ends of a box [G, *shape] as functions of nothing: for ops of a user's own, whose intervals may be wider than
    |J| says.
    """
    ends = (end.unsqueeze(1) for end in box)
    lower, upper = (torch.cat([end.new_zeros(1).expand(end.shape[0], inputs, *end.shape[2:]), end], 1) for end in ends)
    return Form(lower, upper)


def per_column(step: Step, fixed: Sequence[Tensor | None], lead: tuple[int, ...]) -> list[Tensor | None]:
    """Values of fixed operands for columns [G (K + 1), *shape]: those of each group repeated, offsets zero."""
    offsets = OFFSETS.get(step.site.node.op, ())
    found: list[Tensor | None] = []
    for place, (value, node) in enumerate(zip(fixed, step.site.operands, strict=True)):
        if value is not None and node.batched and value.shape[0] > 1:
            value = value.repeat_interleave(lead[1], 0)
        found.append(torch.zeros_like(value) if value is not None and place in offsets else value)
    return found


def filled(values: Sequence[T | None], parts: Iterable[T]) -> list[T]:
    """The values, the missing ones in turn from `parts`."""
    rest = iter(parts)
    return [next(rest) if value is None else value for value in values]


def bent(lines: Lines, form: Form) -> Form:
    """The form of a relaxed step's value, from its lines and its operand's form."""

    def through(slope: Tensor, intercept: Tensor | None, near: Tensor, far: Tensor) -> Tensor:
        found = slope.clamp(min=0) * near + slope.clamp(max=0) * far
        return found if intercept is None else torch.cat([found[:, :-1], found[:, -1:] + intercept], 1)

    lower = through(lines.lower_slope, lines.lower_intercept, form.lower, form.upper)
    return Form(lower, through(lines.upper_slope, lines.upper_intercept, form.upper, form.lower))


@dataclass(frozen=True)
class Forward:
    """Forward linear bounds of intermediate boxes; of the rows too, or `backward` by a walk (auto_LiRPA's
    forward+backward).
    """

    backward: bool = False
    memory: Memory = field(default_factory=Memory)

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        ctx, start = context(query, self.memory), start_of(query)
        forms = Forms(ctx, start)
        boxes = boxes_of(ctx, query.known, (), forms.tightened)
        rows = spec_rows(query, ctx.groups)
        moves = start in forms.made
        lower = forms.rows(start, rows) if moves and not self.backward else walked_lower(ctx, boxes, start, rows)
        return Bounds(lower, boxes, {}, partial(stats, ctx, boxes))
