"""How often a verifier cannot fix a neuron's sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating, require_radius
from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Method, Query
from surebound.data.dataset import in_unit
from surebound.errors import UsageError
from surebound.graph.ir import Graph, Node
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.regions import Box
from surebound.sparsify.basis import Basis
from surebound.sparsify.graft import ACTIVATIONS
from surebound.sparsify.sites import relu_sites

BATCH = 64
"""Images per bounding pass."""

BOUNDS: Mapping[str, Callable[[], Method]] = MappingProxyType(
    {"ibp": Ibp, "crown": Crown, "alpha-crown": lambda: AlphaCrown(intermediates="optimised")}
)
"""How pre-activations are bounded."""


def image_boxes(images: Tensor, eps: float) -> Box:
    """{x' : |x' - x| <= eps, 0 <= x' <= 1} for images [B, ...], in their dtype."""
    require_radius(eps)
    return Box((images - eps).clamp(min=0), (images + eps).clamp(max=1))


def activations(graph: Graph) -> list[Node]:
    """The graph's relu and graft nodes in the order in which they run."""
    return [node for node in graph.nodes if node.op in ("relu", "graft")]


def bounded_form(graph: Graph) -> tuple[Graph, list[Node]]:
    """The graph as it is bounded, and its nodes for `activations(graph)`: maxima have ReLUs of their own there."""
    own, prepared = {node.name for node in activations(graph)}, prepare(graph)
    return prepared, [node for node in activations(prepared) if node.name in own]


def unstable(graph: Graph, images: Tensor, eps: float, method: Method | None = None) -> list[Tensor]:
    """For each activation of `activations(graph)` bool [B, *shape]: l < 0 < u and not grafted.

    l, u: the boxes with which `method` (default IBP) bounds the pre-activations while images [B, ...] move by eps in
    the l-infinity norm within [0, 1].
    """
    chosen = Ibp() if method is None else method
    graph, nodes = bounded_form(graph)
    params = graph.values(images.dtype, images.device)
    spec = torch.zeros(1, 1, *graph.output.shape, dtype=images.dtype, device=images.device)
    found: list[list[Tensor]] = [[] for _ in nodes]
    for piece in images.split(BATCH):
        with torch.no_grad():
            query = Query(graph, params, {graph.input.name: image_boxes(piece, eps)}, spec)
            boxes = chosen.bound(query).boxes
        for node, flags in zip(nodes, found, strict=True):
            box = boxes[node.inputs[0]]
            crosses = (box.lower < 0) & (box.upper > 0)
            flags.append(crosses & ~params[node.inputs[1]] if node.op == "graft" else crosses)
    return [torch.cat(flags) for flags in found]


def by_site(network: nn.Module, graph: Graph, example: Tensor, values: list[Tensor]) -> dict[str, Tensor]:
    """One tensor per activation of the graph [*shape], by the names of the network's ReLU modules.

    Raises UsageError when ReLUs of the network are not modules.
    """
    sites = relu_sites(network, example, ACTIVATIONS)
    if [math.prod(shape) for shape in sites.values()] != [node.numel for node in activations(graph)]:
        raise UsageError(
            f"the network has {len(sites)} ReLU modules ({', '.join(sites)}) and {len(values)} ReLUs in its graph; "
            "use nn.ReLU() modules everywhere, one per place"
        )
    return {name: value.reshape(shape) for (name, shape), value in zip(sites.items(), values, strict=True)}


@dataclass(frozen=True)
class Unstable:
    """The fraction of images on which l < 0 < u; bounds: "ibp", "crown" or "alpha-crown"."""

    bounds: str = "ibp"

    def __post_init__(self) -> None:
        if self.bounds not in BOUNDS:
            raise UsageError(f"instability is told by the bounds {', '.join(BOUNDS)}, not by '{self.bounds}'")

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        with evaluating(network):
            graph = trace(network, basis.example)
            flags = unstable(graph, in_unit(basis.data.images), basis.eps, BOUNDS[self.bounds]())
        return by_site(network, graph, basis.example, [flag.double().mean(0) for flag in flags])
