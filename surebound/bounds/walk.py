"""The backward walk of linear relaxation: relax, then transpose (CROWN; auto_LiRPA algorithm 1).

Rows over a start node are turned into rows over the roots. An affine step is pulled back exactly; a
relaxed step replaces the value by its lower line where the coefficient is positive and by its upper line
where it is negative. What is left is minimised over the regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from surebound.bounds.plan import Plan, Step
from surebound.linear.maps import LinearMap
from surebound.linear.pull import pull
from surebound.linear.relaxed import relaxed
from surebound.ops.record import Frame, Interval, Lines
from surebound.regions import Region

LinesOf = Callable[[str, LinearMap], Lines]
"""Lines of a relaxed node by its name, on the support of the rows that reach it: [G or 1, S or 1, *support]."""


@dataclass(frozen=True)
class Addend:
    """Something added to a node's coefficients and to the constant: a split's multiplier.

    rows [G, S, *shape], constant [G, S].
    """

    rows: LinearMap
    constant: Tensor


@dataclass(frozen=True)
class Walked:
    """Rows over the roots and their constant [G, S]; reached: coefficients of the nodes asked to be kept."""

    roots: Mapping[str, LinearMap]
    constant: Tensor
    reached: Mapping[str, LinearMap]

    def minimise(self, regions: Mapping[str, Region]) -> Tensor:
        """The lower bounds [G, S]."""
        bound = self.constant
        for name, rows in self.roots.items():
            bound = bound + regions[name].minimise(rows)
        return bound


def frame_of(step: Step, values: Mapping[str, Tensor], box: Interval) -> Frame:
    """The frame of a relaxed step on its operand's box [G, *shape]: tensors [G, 1, *shape]."""
    fixed = fixed_operands(step, values)
    return step.relaxation.frame(step.site, fixed, box.lower.unsqueeze(1), box.upper.unsqueeze(1))


def lines_of(step: Step, values: Mapping[str, Tensor], box: Interval, free: Tensor | None) -> Lines:
    """Lines of a relaxed step on its operand's box [G, *shape]; free [K, G, S or 1, *shape] or None."""
    frame = frame_of(step, values, box)
    chosen = step.relaxation.init(step.site, frame) if free is None else free
    return step.relaxation.lines(step.site, frame, chosen)


def zero(step: Step, values: Mapping[str, Tensor], box: Interval) -> Tensor:
    """bool [G, *shape]: where the relaxed step's value is zero on its operand's whole box."""
    frame = frame_of(step, values, box)
    low, high = step.relaxation.limits(step.site, frame)
    lines = step.relaxation.lines(step.site, frame, low.expand_as(step.relaxation.init(step.site, frame)))
    found = (low == high).all(0)
    for part in lines:
        found = found if part is None else found & (part == 0)
    return found.squeeze(1)


def lines_at(rows: LinearMap, lines: Lines) -> Lines:
    """Lines of a node on the support of rows over it."""
    return Lines(*(None if part is None else rows.at(part) for part in lines))  # pyright: ignore[reportArgumentType]


def fixed_operands(step: Step, values: Mapping[str, Tensor]) -> list[Tensor | None]:
    """Operand values of a step, None for the perturbed."""
    return [None if moves else values[name] for name, moves in zip(step.site.node.inputs, step.perturbed, strict=True)]


def walk(
    plan: Plan,
    values: Mapping[str, Tensor],
    start: str,
    rows: LinearMap,
    lines: LinesOf | None,
    addends: Mapping[str, Addend] | None = None,
    keep: frozenset[str] = frozenset(),
    live: Mapping[str, Tensor] = MappingProxyType({}),
) -> Walked:
    """Walk `rows` over `start` back to the roots.

    lines None: stop at non-affine steps, whose rows are returned among the roots.
    addends: by node, joined to the coefficients when the node is reached. keep: nodes whose coefficients
    are wanted. live: by node, flat positions [G, n] outside of which its value is zero.
    """
    if start not in plan.steps and start not in plan.roots:
        fixed = values[start]
        return Walked({}, rows.dot(fixed.unsqueeze(1) if plan.graph[start].batched else fixed[None, None]), {})
    pending: dict[str, LinearMap] = {start: rows}
    constant = torch.zeros(rows.rows, dtype=rows.dtype, device=rows.device)
    at_roots: dict[str, LinearMap] = {}
    reached: dict[str, LinearMap] = {}
    for name in plan.order(start):
        here = pending.pop(name, None)
        addend = None if addends is None else addends.get(name)
        if addend is not None:
            here = addend.rows if here is None else here + addend.rows
            constant = constant + addend.constant
        if here is None:
            continue
        if name in keep:
            reached[name] = here
        step = plan.steps.get(name)
        if step is None or (lines is None and not step.affine):
            at_roots[name] = here
            continue
        if step.affine:
            fixed = fixed_operands(step, values)
            maps, added = pull(step.site, step.op.forward, fixed, here, live.get(step.site.node.inputs[0]))
        else:
            assert lines is not None
            below, added = relaxed(here, lines(name, here))
            maps = [below] + [None] * (len(step.perturbed) - 1)
        if added is not None:
            constant = constant + added
        for operand, part in zip(step.site.node.inputs, maps, strict=True):
            if part is not None:
                pending[operand] = part if operand not in pending else pending[operand] + part
    return Walked(at_roots, constant, reached)
