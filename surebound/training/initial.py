"""Weights to start certified training from."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.errors import UsageError
from surebound.graph.ir import Graph, Node
from surebound.graph.torch_export import trace

Network = TypeVar("Network", bound=nn.Module)
WEIGHTED = ("linear", "conv2d")


def ibp_initial(network: Network, example: Tensor, seed: int = 0) -> Network:
    """A copy of the network whose interval bounds neither grow nor shrink from layer to layer (Shi et al. 2021).

    Weights w with more than one axis are drawn from N(0, 2 pi / n^2), n = fan-in. A layer maps half-widths r of boxes
    to |w| r, on average n E|w| mean(r) = n sqrt(2 / pi) sigma mean(r) = 2 mean(r), and a ReLU halves that. Layers that
    a sum of two paths feeds, directly or through ReLUs and reshapes, get half the weight. The last weight, biases and
    batch norm stay as they are.

    example: a batch [B, *input shape]. seed: of the draw, on the CPU. Raises UsageError when the network has no weight.
    """
    names = weights_of(network)
    if not names:
        raise UsageError("the network has no weights with more than one axis, so there is nothing to initialise")
    sums = fed_by_sums(network, example)
    result = copy.deepcopy(network)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names[:-1]:
            value = result.get_parameter(name)
            sigma = math.sqrt(2 * math.pi) / value[0].numel()
            share = 0.5 if id(network.get_parameter(name)) in sums else 1.0
            value.copy_(share * sigma * torch.randn(value.shape, generator=random))
    return result


def weights_of(network: nn.Module) -> list[str]:
    """Names of the weights with more than one axis, in the order in which the network lists them."""
    named = network.named_parameters()
    return [name for name, value in named if name.split(".")[-1] == "weight" and value.dim() > 1]


def fed_by_sums(network: nn.Module, example: Tensor) -> frozenset[int]:
    """Identities of the weights whose layer reads a sum of two paths, directly or through ReLUs and reshapes."""
    with evaluating(network):
        graph = trace(network, example)
    tensors = graph.parameters()
    layers = [node for node in graph.nodes if node.op in WEIGHTED]
    return frozenset(id(tensors[node.inputs[1]]) for node in layers if is_sum(graph, graph.by_name[node.inputs[0]]))


def is_sum(graph: Graph, node: Node) -> bool:
    """Whether a value is a sum of two others that depend on the input, up to ReLUs and reshapes."""
    while node.op in ("relu", "reshape"):
        node = graph.by_name[node.inputs[0]]
    return node.op == "add" and all(graph.by_name[name].batched for name in node.inputs)
