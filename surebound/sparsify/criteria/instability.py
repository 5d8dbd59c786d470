"""How often a verifier cannot fix a neuron's sign."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating, require_radius
from surebound.bounds.crown import Crown
from surebound.bounds.query import Method, Query
from surebound.errors import UsageError
from surebound.graph.ir import Graph, Node
from surebound.graph.torch_export import trace
from surebound.regions import Box
from surebound.sparsify.graft import GraftedReLU
from surebound.sparsify.sites import relu_sites

BATCH = 64
"""Images per bounding pass."""


def image_boxes(images: Tensor, eps: float) -> Box:
    """{x' : |x' - x| <= eps, 0 <= x' <= 1} for images [B, ...], in their dtype."""
    require_radius(eps)
    return Box((images - eps).clamp(min=0), (images + eps).clamp(max=1))


def activations(graph: Graph) -> list[Node]:
    """The graph's relu and graft nodes in the order in which they run."""
    return [node for node in graph.nodes if node.op in ("relu", "graft")]


def unstable(graph: Graph, images: Tensor, eps: float, method: Method | None = None) -> list[Tensor]:
    """For each activation of `activations(graph)` bool [B, *shape]: l < 0 < u and not grafted.

    l, u: the boxes with which `method` (default CROWN with IBP intermediates) bounds the pre-activations while
    images [B, ...] move by eps in the l-infinity norm within [0, 1].
    """
    chosen = Crown(intermediates="ibp") if method is None else method
    params = graph.values(images.dtype, images.device)
    spec = torch.zeros(1, 1, *graph.output.shape, dtype=images.dtype, device=images.device)
    nodes = activations(graph)
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


def instability(network: nn.Module, images: Tensor, eps: float, method: Method | None = None) -> dict[str, Tensor]:
    """Per ReLU site the fraction of images [B, ...] on which each neuron is unstable, see `unstable`.

    eps is in the units of the pixels. Raises UsageError when ReLUs of the network are not modules.
    """
    sites = relu_sites(network, images[:1], (nn.ReLU, GraftedReLU))
    with evaluating(network):
        graph = trace(network, images[:1])
        flags = unstable(graph, images, eps, method)
    if [math.prod(shape) for shape in sites.values()] != [node.numel for node in activations(graph)]:
        raise UsageError(
            f"the network has {len(sites)} ReLU modules ({', '.join(sites)}) and {len(flags)} ReLUs in its graph; "
            "use nn.ReLU() modules everywhere, one per place"
        )
    return {
        name: flag.double().mean(0).reshape(shape) for (name, shape), flag in zip(sites.items(), flags, strict=True)
    }
