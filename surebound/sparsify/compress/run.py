"""All steps of compression, each compared with the network before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from surebound.errors import UsageError
from surebound.graph.ir import SOURCES, Graph
from surebound.sparsify.compress.channels import remove_constant_channels
from surebound.sparsify.compress.frozen import Frozen, points_of, require_equal
from surebound.sparsify.compress.lines import merge_lines, plain_activations
from surebound.sparsify.compress.norms import fold_norms


@dataclass(frozen=True)
class Step:
    """What a step left: numbers of parameters and of neurons, and by how much outputs differ from those before it."""

    name: str
    parameters: int
    neurons: int
    gap: float


@dataclass(frozen=True)
class Compressed:
    """The smaller network, float32, and the steps to it; the first one is the network as it came."""

    graph: Graph
    steps: tuple[Step, ...]


def compress(graph: Graph, lower: float = 0.0, upper: float = 1.0) -> Compressed:
    """The network without norms behind layers, channels that are constant over inputs in [lower, upper], and lines
    between linear layers where merging them saves weights.

    Outputs are equal for all inputs in the domain, up to rounding (`require_equal`, 1e-9 in float64 on 130 points).
    Raises UsageError for a domain that is none, TraceMismatch when outputs change.
    """
    if not lower < upper:
        raise UsageError(f"the domain of inputs must have an end above its beginning, got [{lower}, {upper}]")
    net = Frozen.of(graph)
    points = points_of(net.graph, lower, upper)
    steps = [Step("as it came", *sizes(net), 0.0)]
    work: tuple[tuple[str, Callable[[Frozen], Frozen]], ...] = (
        ("fold norms", fold_norms),
        ("remove constant channels", lambda net: remove_constant_channels(net, lower, upper)),
        ("grafts without lines", plain_activations),
        ("merge lines", merge_lines),
    )
    for name, step in work:
        made = step(net)
        steps.append(Step(name, *sizes(made), require_equal(net, made, points, name)))
        net = made
    return Compressed(net.as_float(), tuple(steps))


def sizes(net: Frozen) -> tuple[int, int]:
    """Numbers of parameters and of neurons (relaxed entries, lines among them)."""
    values = (node for node in net.graph if node.batched and node.op not in SOURCES)
    neurons = sum(node.numel for node in values if net.graph.ops[node.op].relax is not None)
    return sum(value.numel() for value in net.tensors.values()), neurons
