"""The collapsed instance: one case's network with what is affine in it composed into matrices.

Inside a case's region every neuron that its box shows to be stable is affine. Composed once, what is left are the
unstable neurons, each an affine function of the input and of the neurons left before it. The result is a graph like
any other; its bounds are those of the original from the same boxes, and a pass costs what its matrices cost.

Where the input is wide, as that of convolutions, the first layer stays as it is, and its active neurons are left as
well: later layers then read them instead of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from surebound.bounds.crown import Context, unstable_of, widest
from surebound.bounds.memory import chunked
from surebound.bounds.plan import Plan, Step
from surebound.bounds.query import nothing
from surebound.bounds.walk import lines_at, lines_of, walk, zero
from surebound.graph.check import check
from surebound.graph.ir import FixedParameters, Graph, Node
from surebound.linear.maps import Rows, merged
from surebound.ops.broadcast import align
from surebound.ops.record import Interval, Lines
from surebound.search.problem import Problem, problem

PER_NEURON, CONVOLVED = 100, 3
"""What a neuron or an input costs in a pass besides products, and what a product in a convolution costs, both counted
in products of matrices (docs/decisions.md).
"""

CHEAPER = 0.9
"""Collapsed where a pass is estimated to cost at most this part."""

Kept = Mapping[str, Tensor]
"""By relaxed node, the flat positions [U] of its neurons that are left."""


@dataclass(frozen=True)
class Collapsed:
    """problem: of one case, its boxes [1, U] by operand, and by operand which flat positions [U] of it are left."""

    problem: Problem
    boxes: Mapping[str, Interval]
    positions: Mapping[str, Tensor]


def can_collapse(plan: Plan) -> bool:
    """Is every relaxed value computed, read by one relaxed step only, and each entry of a step relaxed by itself?"""
    if any(step.relaxation.together for step in plan.relaxed):
        return False
    return all(len(steps) == 1 and name not in plan.roots for name, steps in plan.operands.items())


def best_kept(of: Problem, case: int, boxes: Mapping[str, Interval], also: Mapping[str, Tensor]) -> Kept | None:
    """The neurons that the cheapest collapsed network of a case keeps; None where the network itself is cheaper.

    boxes: of this case, float64 [1, *shape] by operand. also: flat positions by operand that have to be kept.
    """
    ctx = of.context(of.roots.region.take(torch.tensor([case])), torch.float64)
    prices = {}
    for active, read in ((frozenset(), of.graph.input.numel), (first_steps(of.plan), 0)):
        choice = kept(ctx, boxes, also, active)
        prices[collapsed_cost(of.plan, choice, read)] = choice
    cheapest = min(prices)
    return prices[cheapest] if cheapest <= CHEAPER * cost(of.plan, of.output) else None


def kept(ctx: Context, boxes: Mapping[str, Interval], also: Mapping[str, Tensor], active: frozenset[str]) -> Kept:
    """Which neurons are left: unstable ones, of the steps `active` all that are not surely zero, and `also`."""
    found: dict[str, Tensor] = {}
    for step in ctx.plan.relaxed:
        name, operand = step.site.node.name, step.site.node.inputs[0]
        mask = merged(unstable_of(ctx, step, boxes), 1)[0].clone()
        if name in active:
            mask |= ~merged(zero(step, ctx.values, boxes[operand]), 1)[0]
        mask[also.get(operand, torch.empty(0, dtype=torch.long))] = True
        if mask.any():
            found[name] = mask.nonzero().squeeze(1)
    return found


def first_steps(plan: Plan) -> frozenset[str]:
    """Relaxed steps that no other relaxed step comes before."""
    names = {step.site.node.name for step in plan.relaxed}
    return frozenset(name for name in names if names.isdisjoint(plan.order(plan.steps[name].site.node.inputs[0])))


def whole(plan: Plan, name: str, index: Tensor) -> bool:
    """Is it cheaper to compute the operand of a first step by its own ops than as a matrix times the input?"""
    return cost(plan, plan.steps[name].site.node.inputs[0]) < len(index) * plan.graph.input.numel


def collapsed_cost(plan: Plan, chosen: Kept, read: int) -> int:
    """What one row's walk through a collapsed network costs, about, in products of numbers.

    read: values of the input that layers after the first read.
    """
    found = PER_NEURON * (plan.graph.input.numel + sum(map(len, chosen.values())))
    first = first_steps(plan)
    for name, index in chosen.items():
        if name in first:
            found += min(cost(plan, plan.steps[name].site.node.inputs[0]), len(index) * plan.graph.input.numel)
        else:
            found += len(index) * read
        read += len(index)
    return found + read


def cost(plan: Plan, start: str) -> int:
    """What one row's walk from a node to the input costs, about, in products of numbers."""
    found = 0
    for name in plan.order(start):
        step = plan.steps.get(name)
        if step is None or not step.affine:
            found += PER_NEURON * plan.graph[name].numel
        elif step.site.node.op == "conv2d":
            found += CONVOLVED * step.site.operands[1].numel * prod(step.site.shape[1:])
        elif step.site.node.op == "conv_transpose2d":
            found += CONVOLVED * step.site.operands[1].numel * prod(step.site.operands[0].shape[1:])
        elif step.site.node.op in ("linear", "matmul"):
            found += step.site.node.numel * step.site.operands[0].shape[-1]
    return found


def collapse(
    of: Problem, case: int, boxes: Mapping[str, Interval], chosen: Kept, alive: Callable[[], None] = nothing
) -> Collapsed:
    """One case's network with its stable neurons composed, in float64.

    boxes: of this case, float64 [1, *shape] by operand. chosen: the neurons left, the unstable ones among them.
    alive: as in `Query`.
    """
    region = of.roots.region.take(torch.tensor([case]))
    ctx = replace(of.context(region, torch.float64), alive=alive)
    steps = [step for step in of.plan.relaxed if step.site.node.name in chosen]
    lines = {step.site.node.name: stable_lines(ctx, step, boxes, chosen) for step in of.plan.relaxed}
    first = first_steps(of.plan)
    builder = Builder(of.graph, of.params[torch.float64])
    for step in steps:
        node, operand = step.site.node, step.site.node.inputs[0]
        index = chosen[node.name]
        if node.name in first and whole(of.plan, node.name, index):
            builder.copied(operand, index)
        else:
            builder.linear(operand, *composed(ctx, operand, index, chosen, lines))
        builder.step(step, index, ctx.values)
    output = f"{of.output}:collapsed"
    builder.linear(output, *composed(ctx, of.output, torch.arange(of.graph.output.numel), chosen, lines))
    roots = replace(of.roots, region=region, within=torch.zeros_like(of.roots.within))
    left = {step.site.node.inputs[0]: chosen[step.site.node.name] for step in steps}
    small = {name: Interval(*(merged(end, 1)[:, index] for end in boxes[name])) for name, index in left.items()}
    return Collapsed(problem(builder.graph(output), roots, of.dtype, of.memory), small, left)


def stable_lines(ctx: Context, step: Step, boxes: Mapping[str, Interval], chosen: Kept) -> Lines:
    """A relaxed step's lines on its box, zero for the neurons that are left: their coefficients go no further."""
    lines = lines_of(step, ctx.values, boxes[step.site.node.inputs[0]], None)
    stays = torch.zeros(step.site.node.numel, dtype=torch.bool)
    stays[chosen.get(step.site.node.name, torch.empty(0, dtype=torch.long))] = True
    stays = stays.reshape(step.site.shape)
    below, above, slope, intercept = (None if part is None else part.masked_fill(stays, 0.0) for part in lines)
    assert below is not None and slope is not None
    return Lines(below, above, slope, intercept)


def composed(
    ctx: Context, start: str, index: Tensor, chosen: Kept, lines: Mapping[str, Lines]
) -> tuple[dict[str, Tensor], Tensor]:
    """Values of node `start` as an affine function: weights [U, n] by source (the input, and the neurons left before
    it), and the constant [U].
    """
    shape = ctx.plan.graph[start].shape

    def part(piece: slice) -> tuple[dict[str, Tensor], Tensor]:
        ctx.alive()
        rows = Rows(index[None, piece], torch.ones(1, len(index[piece]), dtype=torch.float64), shape)
        walked = walk(
            ctx.plan, ctx.values, start, rows, lambda name, at: lines_at(at, lines[name]), keep=frozenset(chosen)
        )
        found = {name: merged(rows.dense(), 2)[0] for name, rows in walked.roots.items()}
        for name, rows in walked.reached.items():
            found[name] = merged(rows.dense(), 2)[0][:, chosen[name]]
        return found, walked.constant[0]

    parts = chunked(part, len(index), ctx.memory.piece(widest(ctx, start), torch.float64))
    weights = {}
    for name in dict.fromkeys(name for found, _ in parts for name in found):
        columns = len(chosen[name]) if name in chosen else ctx.plan.graph[name].numel
        weight = torch.cat([found.get(name, constant.new_zeros(len(constant), columns)) for found, constant in parts])
        if weight.any():
            weights[name] = weight
    return weights, torch.cat([constant for _, constant in parts])


class Builder:
    """The collapsed graph in the making: every node is a vector; the input is read flat."""

    def __init__(self, original: Graph, tensors: Mapping[str, Tensor]) -> None:
        self.original, self.given = original, tensors
        self.tensors: dict[str, Tensor] = {}
        self.nodes: dict[str, Node] = {}
        self.flat = self.flattened(self.add(original.input))

    def add(self, node: Node) -> Node:
        """A node, unless there is one of its name."""
        return self.nodes.setdefault(node.name, node)

    def parameter(self, name: str, tensor: Tensor) -> str:
        """A tensor's name."""
        self.tensors[name] = tensor
        return self.add(Node(name, "parameter", (), {}, tuple(tensor.shape), batched=False)).name

    def flattened(self, node: Node) -> str:
        """The name of a node's values as a vector."""
        if len(node.shape) == 1:
            return node.name
        shape = (node.numel,)
        return self.add(Node(f"{node.name}:flat", "reshape", (node.name,), {"shape": shape}, shape)).name

    def copied(self, name: str, index: Tensor) -> None:
        """Node `name` as the values at some positions of the original's, computed by the original's nodes."""
        needed, full = self.original.ancestors([name]), f"{name}:full"
        for node in self.original.nodes:
            if node.op == "parameter" and node.name in needed:
                self.tensors[node.name] = self.given[node.name]
            if node.name in needed:
                self.add(node if node.name != name else replace(node, name=full))
        at = {"axis": 0, "indices": tuple(index.tolist())}
        self.add(Node(name, "gather", (self.flattened(self.nodes[full]),), at, (len(index),)))

    def linear(self, name: str, weights: Mapping[str, Tensor], constant: Tensor) -> None:
        """Node `name` as the sum of weights times its sources and a constant."""
        sources = tuple(self.flat if source == self.original.input.name else source for source in weights)
        if not sources:
            sources, weights = (self.flat,), {"": constant.new_zeros(len(constant), self.original.input.numel)}
        if len(sources) > 1:
            width = sum(self.nodes[source].numel for source in sources)
            sources = (self.add(Node(f"{name}:sources", "concat", sources, {"axis": 0}, (width,))).name,)
        weight = self.parameter(f"{name}:weight", torch.cat(list(weights.values()), 1))
        bias = self.parameter(f"{name}:bias", constant)
        self.add(Node(name, "linear", (*sources, weight, bias), {}, (len(constant),)))

    def step(self, step: Step, index: Tensor, values: Mapping[str, Tensor]) -> None:
        """A relaxed step on the neurons that are left."""
        node, others = step.site.node, []
        for other in step.site.operands[1:]:
            full = align(other, values[other.name], len(node.shape)).expand(1, *node.shape)
            others.append(self.parameter(f"{node.name}:{other.name}", full.reshape(-1)[index]))
        inputs = (node.inputs[0], *others)
        self.add(Node(node.name, node.op, inputs, node.attrs, (len(index),), True, node.origin))

    def graph(self, output: str) -> Graph:
        """What has been built."""
        nodes, tensors = tuple(self.nodes.values()), FixedParameters(self.tensors)
        return check(Graph(nodes, self.original.inputs, (output,), self.original.ops, tensors))
