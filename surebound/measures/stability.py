"""How stable a network's neurons are: what makes bounds loose and searches long."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.bounds.crown import Crown
from surebound.bounds.ibp import propagate, unperturbed
from surebound.bounds.plan import plan
from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.graph.ir import Graph
from surebound.graph.torch_export import trace
from surebound.ops.record import Interval
from surebound.sparsify.criteria.instability import bounded_form, image_boxes, unstable

BATCH = 32
"""Images per pass."""


@dataclass(frozen=True)
class Layer:
    """One layer of neurons, means over images and neurons.

    unstable: fraction with l < 0 < u that are no lines, by interval bounds; crown: the same by CROWN. instability:
    -l u over the inputs of the ReLU; before_norm: the same in front of the batch norm before it, if there is one.
    width, width_before_norm: u - l at the same places.
    """

    name: str
    neurons: int
    unstable: float
    crown: float
    instability: float
    before_norm: float
    width: float
    width_before_norm: float


@dataclass(frozen=True)
class Stability:
    """All layers in order; the means below are over all neurons of the network."""

    layers: tuple[Layer, ...]

    def mean(self, measure: str) -> float:
        """Mean of a measure over neurons; 0 without any."""
        neurons = sum(layer.neurons for layer in self.layers)
        return sum(layer.neurons * getattr(layer, measure) for layer in self.layers) / max(1, neurons)


def stability(network: nn.Module, part: Part, eps: float) -> Stability:
    """Stability of every layer while each image moves by eps in the l-infinity norm within [0, 1].

    Li et al. 2022 call mean(-l u) instability; grafted neurons count as stable, and with 0. Raises DataError without
    images.
    """
    if len(part) == 0:
        raise DataError("stability is a mean over images and there are none")
    with evaluating(network):
        return stability_of(trace(network, part.images[:1]), part, eps)


def stability_of(graph: Graph, part: Part, eps: float) -> Stability:
    """`stability` of a traced network."""
    with torch.no_grad():
        flags = unstable(graph, part.images, eps, Crown())
    graph, nodes = bounded_form(graph)
    root, params = graph.input.name, {n: value.detach() for n, value in graph.values(part.images.dtype).items()}
    rules, values = plan(graph, (root,)), unperturbed(plan(graph, (root,)), params)
    totals = torch.zeros(len(nodes), 5, dtype=torch.float64)
    for images in part.images.split(BATCH):
        boxes = propagate(rules, values, {root: image_boxes(images, eps)}, lambda node, box: box, {})
        for place, node in enumerate(nodes):
            behind = graph[node.inputs[0]]
            front = behind.inputs[0] if behind.op == "batch_norm" else behind.name
            relu = torch.ones(()) if node.op == "relu" else (~params[node.inputs[1]]).double()
            here, before = boxes[behind.name], boxes[front]
            crossing = ((here.lower < 0) & (here.upper > 0)).double() * relu
            found = (crossing, product(here) * relu, product(before) * relu, width(here), width(before))
            totals[place] += torch.stack([value.flatten(1).mean(1).sum() for value in found])
    means = (totals / len(part)).tolist()
    return Stability(
        tuple(
            Layer(node.name, node.numel, mean[0], float(flag.double().mean()), *mean[1:])
            for node, mean, flag in zip(nodes, means, flags, strict=True)
        )
    )


def product(box: Interval) -> Tensor:
    """-l u."""
    return -(box.lower * box.upper).double()


def width(box: Interval) -> Tensor:
    """u - l."""
    return (box.upper - box.lower).double()
