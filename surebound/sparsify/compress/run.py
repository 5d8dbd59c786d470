"""All steps of compression, each compared with the network before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from surebound.errors import ModelError, UsageError
from surebound.graph.ir import SOURCES, Graph, evaluate
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
    """The smaller network and the steps to it; the first one is the network as it came, the last one the network with
    its numbers rounded to float32. exact: before that, so that what is proven of it holds for the network as it came.
    """

    graph: Graph
    exact: Graph
    steps: tuple[Step, ...]


def compress(graph: Graph, lower: float = 0.0, upper: float = 1.0) -> Compressed:
    """The network without norms behind layers, channels that are constant over inputs in [lower, upper], and lines
    between linear layers where merging them saves weights.

    Outputs are equal for all inputs in the domain, up to rounding (`require_equal`, 1e-9 in float64 on 130 points).
    Raises UsageError for a domain that is none, ModelError for a network that float32 cannot hold, TraceMismatch when
    outputs change.
    """
    if not (lower < upper and math.isfinite(upper - lower)):
        raise UsageError(f"the domain of inputs must have an end above its beginning, got [{lower}, {upper}]")
    net = Frozen.of(graph)
    points = points_of(net.graph, lower, upper)
    with torch.no_grad():
        came = evaluate(graph, graph.values(torch.float64), points.reshape(-1, *graph.input.shape))[graph.output.name]
    steps = [Step("as it came", *sizes(net), require_equal(net, came, net, points, "reading it"))]
    work: tuple[tuple[str, Callable[[Frozen], Frozen]], ...] = (
        ("fold norms", fold_norms),
        ("remove constant channels", lambda net: remove_constant_channels(net, lower, upper)),
        ("grafts without lines", plain_activations),
        ("merge lines", merge_lines),
    )
    for name, step in work:
        made = step(net)
        steps.append(Step(name, *sizes(made), require_equal(net, net.outputs(points), made, points, name)))
        net = made
    rounded = net.rounded()
    gap = float((net.outputs(points) - rounded.outputs(points)).abs().max())
    if not math.isfinite(gap):
        raise ModelError("the smaller network has numbers that float32 cannot hold; its weights are too large")
    steps.append(Step("single precision", *sizes(rounded), gap))
    return Compressed(rounded.graph, net.graph, tuple(steps))


def sizes(net: Frozen) -> tuple[int, int]:
    """Numbers of parameters and of neurons (relaxed entries, lines among them)."""
    values = (node for node in net.graph if node.batched and node.op not in SOURCES)
    neurons = sum(node.numel for node in values if net.graph.ops[node.op].relax is not None)
    return sum(value.numel() for value in net.tensors.values()), neurons
