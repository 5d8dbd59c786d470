"""The network as numbers: what compression rewrites, and the proof of each step by comparing outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surebound.errors import TraceMismatch
from surebound.graph.check import check
from surebound.graph.ir import FixedParameters, Graph, Node, evaluate
from surebound.graph.names import taken
from surebound.graph.passes import drop_unused, fuse_biases, recognise_grafts, settled, sink_reshapes
from surebound.graph.public import plainly_named, published

SLACK = 1e-9
"""Outputs may differ by this part of the largest value in the network; everything is computed in float64."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A graph and the numbers of its parameters, float64 and bool, by name."""

    graph: Graph
    tensors: Mapping[str, Tensor]

    @staticmethod
    def of(graph: Graph) -> Frozen:
        """The network as it is now, without a file's batch axis; what is computed from parameters alone becomes
        numbers.
        """
        whole = fuse_biases(sink_reshapes(recognise_grafts(graph)))
        whole = plainly_named(sink_reshapes(published(whole)))
        values = {name: value.detach().cpu() for name, value in whole.values(torch.float64).items()}
        small, computed = settled(whole)
        values |= evaluate(whole, values, {}, computed)
        return Frozen(small, {}).rewritten(small.nodes, values)

    def rewritten(self, nodes: Sequence[Node], tensors: Mapping[str, Tensor]) -> Frozen:
        """Other nodes and numbers; what nothing reads any more is dropped."""
        graph = check(drop_unused(replace(self.graph, nodes=tuple(nodes), original=None)))
        used = {node.name: tensors[node.name] for node in graph if node.op == "parameter"}
        return Frozen(replace(graph, parameters=FixedParameters(used)), used)

    def rounded(self) -> Frozen:
        """The network with the numbers that float32 makes of its own."""
        single = {n: value.float() if value.is_floating_point() else value for n, value in self.tensors.items()}
        doubles = {n: value.double() if value.is_floating_point() else value for n, value in single.items()}
        return Frozen(replace(self.graph, parameters=FixedParameters(single)), doubles)

    def outputs(self, x: Tensor) -> Tensor:
        """Float64 outputs [B, *]."""
        return evaluate(self.graph, self.tensors, x)[self.graph.output.name]


class Making:
    """The nodes and numbers of a network that is being rewritten, in topological order."""

    def __init__(self, net: Frozen) -> None:
        self.net = net
        self.nodes: list[Node] = []
        self.tensors = dict(net.tensors)
        self.used = {node.name for node in net.graph}

    def put(self, wanted: str, value: Tensor) -> str:
        """A number as a parameter; its name."""
        name = taken(wanted, self.used)
        self.tensors[name] = value
        self.nodes.append(Node(name, "parameter", (), {}, tuple(value.shape), batched=False))
        return name

    def name(self, wanted: str) -> str:
        """A name that nobody has yet."""
        return taken(wanted, self.used)

    def done(self) -> Frozen:
        """The network."""
        return self.net.rewritten(self.nodes, self.tensors)


def weight_and_bias(net: Frozen, layer: Node) -> tuple[Tensor, Tensor]:
    """Of a layer; a bias of zeros where it has none."""
    weight = net.tensors[layer.inputs[1]]
    return weight, net.tensors[layer.inputs[2]] if len(layer.inputs) > 2 else weight.new_zeros(weight.shape[0])


def require_equal(before: Frozen, expected: Tensor, after: Frozen, points: Tensor, step: str) -> float:
    """The largest difference from the outputs expected on points [B, *input shape]; raises TraceMismatch beyond
    rounding.
    """
    gap = float((expected.flatten(1) - after.outputs(points).flatten(1)).abs().max())
    numbers = [value for value in before.tensors.values() if value.is_floating_point() and value.numel()]
    scale = max(1.0, float(expected.abs().max()), *(float(value.abs().max()) for value in numbers))
    if not gap <= SLACK * scale:
        raise TraceMismatch(
            f"{step} changed the network's outputs by {gap:.3g}; this is a fault of surebound, please report it"
        )
    return gap


def points_of(graph: Graph, lower: float, upper: float, count: int = 64, seed: int = 0) -> Tensor:
    """Float64 points of a box: random ones, corners, the two ends."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(count, *graph.input.shape, dtype=torch.float64, generator=generator)
    corners = (torch.rand(count, *graph.input.shape, generator=generator) < 0.5).double()
    ends = torch.stack([torch.zeros(graph.input.shape), torch.ones(graph.input.shape)]).double()
    return lower + (upper - lower) * torch.cat([inside, corners, ends])
