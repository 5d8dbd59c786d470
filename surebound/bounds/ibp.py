"""Interval bound propagation (Gowal et al. 2018): one forward pass of element-wise boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from surebound.bounds.plan import Plan
from surebound.graph.ir import Node, Site
from surebound.ops.record import Interval
from surebound.regions import Region


def sound(box: Interval) -> Interval:
    """The box with its ends opened where the arithmetic failed: NaN says nothing, and what overflowed away from
    the other side is only known to be beyond the largest number.
    """
    most = torch.finfo(box.lower.dtype).max
    return Interval(
        box.lower.nan_to_num(nan=-torch.inf, posinf=most, neginf=-torch.inf),
        box.upper.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-most),
    )


def intersect(a: Interval, b: Interval) -> Interval:
    """The common part of two sound boxes, ends of `b` that are NaN apart; where they miss each other, by
    rounding or because no input is left, `a` is kept: it lies where the node's op is defined.
    """
    b = sound(b)
    lower, upper = torch.maximum(a.lower, b.lower), torch.minimum(a.upper, b.upper)
    fits = lower <= upper
    return Interval(torch.where(fits, lower, a.lower), torch.where(fits, upper, a.upper))


def unperturbed(plan: Plan, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of all nodes that nothing perturbs and something perturbed reads."""
    graph = plan.graph
    values: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "parameter":
            values[node.name] = params[node.name]
        elif node.op != "input" and node.name not in plan.steps and all(name in values for name in node.inputs):
            site = Site(node, graph.operands(node))
            values[node.name] = graph.ops[node.op].forward(site, *(values[name] for name in node.inputs))
    return values


def propagate(
    plan: Plan,
    values: Mapping[str, Tensor],
    regions: Mapping[str, Region],
    refine: Callable[[Node, Interval], Interval],
    boxes: dict[str, Interval],
) -> dict[str, Interval]:
    """Fill `boxes` with the box [G, *shape] of every perturbed node, in topological order.

    refine(node, box) may return a tighter box for a node before anything reads it.
    """
    for node in plan.graph.nodes:
        if node.name in plan.roots:
            boxes[node.name] = Interval(regions[node.name].lower, regions[node.name].upper)
            continue
        step = plan.steps.get(node.name)
        if step is None:
            continue
        operands = [
            boxes[name] if moves else Interval(values[name], values[name])
            for name, moves in zip(node.inputs, step.perturbed, strict=True)
        ]
        boxes[node.name] = refine(node, sound(step.op.interval(step.site, *operands)))
    return boxes
