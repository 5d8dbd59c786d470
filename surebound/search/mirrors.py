"""Neurons that compute the same, or the same with the other sign, become one.

relu(-s) = relu(s) - s: of all neurons of a layer whose operands are s or -s one is kept, and what reads the others
reads it and, past the activation, s itself:

    sum_i c_i relu(s) + sum_j d_j relu(-s)  =  (sum_i c_i + sum_j d_j) relu(s) - (sum_j d_j) s

Minima and maxima written with relu, min(x, y) = (relu(x + y) - relu(-x - y) - relu(x - y) - relu(y - x)) / 2, become
x - relu(x - y) in this way: of four neurons one is left, and the sum x + y no longer passes through two relaxations
that know nothing of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from surebound.graph.ir import FixedParameters, Graph, Node
from surebound.graph.passes import drop_unused


@dataclass(frozen=True)
class Twins:
    """Neurons by groups of equal operands up to the sign.

    first [n]: the kept neuron of each one's group. sign [n]: 1 where the operand is the kept one's, -1 where it is the
    negative. rank [n]: its place among the members of its group.
    """

    first: Tensor
    sign: Tensor
    rank: Tensor

    def gathered(self, weight: Tensor, only: Tensor) -> Tensor | None:
        """Columns of weight [m, n] of the members in `only` [n] added up in their group's column, zero in the others;
        None where the sums are not exact in float64.
        """
        total = torch.zeros_like(weight, dtype=torch.float64)
        for rank in range(int(self.rank.max()) + 1):
            here = (only & (self.rank == rank)).nonzero().squeeze(1)
            before, term = total[:, self.first[here]], weight[:, here].double()
            after = before + term
            lost = (before - (after - (after - before))) + (term - (after - before))
            if bool((lost != 0).any()):
                return None
            total[:, self.first[here]] = after
        return total


def twins(weight: Tensor, bias: Tensor) -> Twins | None:
    """Groups of the rows of [weight | bias] that are equal up to the sign; None where all are different."""
    if len(weight.abs().amax(1).unique()) == len(weight):
        return None
    rows = torch.cat([weight, bias.unsqueeze(1)], 1)
    leading = rows.gather(1, (rows != 0).to(torch.int8).argmax(1, keepdim=True)).squeeze(1)
    sign = torch.where(leading < 0, -1.0, 1.0).to(rows)
    groups = torch.unique(rows * sign.unsqueeze(1) + 0.0, dim=0, return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count == len(rows):
        return None
    order = groups.argsort(stable=True)
    start = torch.bincount(groups).cumsum(0) - torch.bincount(groups)
    rank = torch.empty_like(groups)
    rank[order] = torch.arange(len(rows)) - start[groups[order]]
    first = order[start][groups]
    return Twins(first, sign * sign[first], rank)


def merge_mirrors(graph: Graph) -> Graph:
    """The same network with its weights of now as its parameters, and twins merged in every relu that is between linear
    layers, where that is exact. Every neuron keeps its name and place; those merged into others get the operand 0.
    """
    given = {name: value.detach() for name, value in graph.parameters().items()}
    result = replace(graph, parameters=FixedParameters(given))
    for node in reversed(graph.nodes):
        if node.op == "relu" and node.batched:
            result = merged_at(result, node)
    return drop_unused(result)


@dataclass(frozen=True)
class Layer:
    """A linear layer with fixed weight [m, n] and bias [m]."""

    node: Node
    weight: Tensor
    bias: Tensor


def fixed_layer(graph: Graph, node: Node) -> Layer | None:
    """A linear layer that has weights of its own; None for other nodes."""
    operands = graph.operands(node)
    if node.op != "linear" or any(operand.op != "parameter" for operand in operands[1:]):
        return None
    tensors = [graph.parameters()[name] for name in node.inputs[1:]]
    return Layer(node, tensors[0], tensors[1] if len(tensors) > 1 else tensors[0].new_zeros(len(tensors[0])))


def merged_at(graph: Graph, relu: Node) -> Graph:
    """The graph with the twins of one relu merged."""
    before = graph[relu.inputs[0]]
    layer = fixed_layer(graph, before)
    readers = [fixed_layer(graph, graph[name]) for name in graph.consumers[relu.name]]
    after = [reader for reader in readers if reader is not None]
    seen_outside = {before.name, relu.name} & set(graph.outputs) or graph.consumers[before.name] != (relu.name,)
    found = None if layer is None or seen_outside or len(after) < len(readers) else twins(layer.weight, layer.bias)
    if layer is None or found is None:
        return graph
    rewriting = Rewriting(relu, layer)
    made: dict[str, list[Node]] = {}
    read = torch.zeros_like(found.sign, dtype=torch.bool)
    for reader in after:
        through, past = found.gathered(reader.weight, found.sign != 0), found.gathered(reader.weight, found.sign < 0)
        if through is None or past is None:
            return graph
        read |= (through != 0).any(0)
        made[reader.node.name] = rewriting.around(replace(reader, weight=through), -past)
    kept = Layer(before, layer.weight * read.unsqueeze(1), layer.bias * read)
    made[before.name] = rewriting.linear(kept, before.name, before.inputs[0])
    nodes = [new for node in graph.nodes for new in made.get(node.name, [node])]
    return replace(graph, nodes=tuple(nodes), parameters=FixedParameters({**graph.parameters(), **rewriting.tensors}))


@dataclass(frozen=True)
class Rewriting:
    """Makes the nodes around one relu and the layer before it; tensors: the new weights."""

    relu: Node
    layer: Layer
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def linear(self, layer: Layer, name: str, source: str) -> list[Node]:
        """The nodes of a linear layer over `source`."""
        nodes: list[Node] = []
        for part, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            own = f"{name}//{part} at {self.relu.name}"
            self.tensors[own] = tensor
            nodes.append(Node(own, "parameter", (), {}, tuple(tensor.shape), False, layer.node.origin))
        shape = (*layer.node.shape[:-1], len(layer.weight))
        made = Node(name, "linear", (source, *(node.name for node in nodes)), {}, shape, True, layer.node.origin)
        return [*nodes, made]

    def around(self, reader: Layer, past: Tensor) -> list[Node]:
        """What reads the relu, and past it the kept neurons' operands for which `past` [m, n] has coefficients."""
        used = (past != 0).any(0)
        name = reader.node.name
        if not used.any():
            return self.linear(reader, name, self.relu.name)
        operands = Layer(self.layer.node, self.layer.weight[used], self.layer.bias[used])
        linear = Layer(reader.node, past[:, used], torch.zeros_like(reader.bias))
        parts = tuple(f"{name}//{part}" for part in ("operands", "past", "through"))
        return [
            *self.linear(operands, parts[0], self.layer.node.inputs[0]),
            *self.linear(linear, parts[1], parts[0]),
            *self.linear(reader, parts[2], self.relu.name),
            Node(name, "add", parts[1:], {}, reader.node.shape, True, reader.node.origin),
        ]
