"""The weights that pruning works on, and the channels that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.graph.ir import Graph, Node
from surebound.sparsify.masks import unmasked
from surebound.sparsify.sites import Masks
from surebound.training.trainee import Trainee

LAYERS: Mapping[str, tuple[type[nn.Module], ...]] = {"conv": (nn.Conv2d,), "all": (nn.Conv2d, nn.Linear)}
"""What may be pruned: the kernels of convolutions (Li et al. 2022), or all weights (Guo et al. 2018)."""


def weights(network: nn.Module, layers: str = "conv", ends: bool = True) -> dict[str, Tensor]:
    """The weights to prune as they take effect, by parameter name, in order. ends False: not the first and last ones.

    Raises UsageError when there are none.
    """
    if layers not in LAYERS:
        raise UsageError(f"what is pruned must be one of {', '.join(LAYERS)}, got '{layers}'")
    every = [(f"{name}.weight", part) for name, part in network.named_modules() if isinstance(part, LAYERS["all"])]
    inner = every if ends else every[1:-1]
    found: dict[str, Tensor] = {}
    for name, part in inner:
        if isinstance(part, LAYERS[layers]):
            found[name] = part.weight  # pyright: ignore[reportArgumentType]
    if not found:
        where = "" if ends else " without the first and the last layer"
        raise UsageError(f"the network has no weights to prune under layers = '{layers}'{where}")
    return found


@dataclass(frozen=True)
class Entries:
    """The weights of a layer, each by itself, by the parameter's name."""

    name: str
    shape: tuple[int, ...]

    def masks(self, network: nn.Module, kept: Tensor, before: Masks) -> dict[str, Tensor]:
        """The mask itself."""
        return {self.name: kept}

    def alive(self, before: Masks) -> Tensor:
        """bool: the weights that are left."""
        return before.get(self.name, torch.ones(self.shape, dtype=torch.bool))


def entries(network: nn.Module, layers: str = "conv", ends: bool = True) -> dict[str, Entries]:
    """What weight pruning may take, by the weight's name: see `weights`."""
    return {name: Entries(name, tuple(weight.shape)) for name, weight in weights(network, layers, ends).items()}


@dataclass(frozen=True)
class Channels:
    """The output channels of a layer (neurons, of a linear one).

    parameters: names of all that have one row per channel: weight and bias, and those of the norm behind it. scale: the
    norm's scale, None without a norm. activation: the node that answers to the channels, None where that is no ReLU.
    """

    parameters: tuple[str, ...]
    size: int
    scale: str | None
    activation: str | None

    def masks(self, network: nn.Module, kept: Tensor, before: Masks) -> dict[str, Tensor]:
        """Masks under which the channels that are not kept [C] answer 0 in front of their activation, and everything
        stays zero that was so under the masks `before`.
        """
        shapes = {name: network.get_parameter(name).shape for name in self.parameters}
        rows = {name: kept.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) for name, shape in shapes.items()}
        return {name: row & before[name] if name in before else row.clone() for name, row in rows.items()}

    def alive(self, before: Masks) -> Tensor:
        """bool [C]: the channels that have weights left."""
        weight = before.get(self.parameters[0])
        return torch.ones(self.size, dtype=torch.bool) if weight is None else weight.flatten(1).any(1)


def channels(network: nn.Module, example: Tensor, layers: str = "conv") -> dict[str, Channels]:
    """What channel pruning may take, by the weight's name, in order: every layer but those that answer.

    Found in the graph: the norm that reads a layer and nothing else does. example: one image [1, ...].
    Raises UsageError when there are none.
    """
    plain = unmasked(network)
    graph = Trainee(plain, example).source
    kinds = {"conv": ("conv2d",), "all": ("conv2d", "linear")}
    if layers not in kinds:
        raise UsageError(f"what is pruned must be one of {', '.join(kinds)}, got '{layers}'")
    found: dict[str, Channels] = {}
    for node in graph:
        if node.op not in kinds[layers] or graph[node.inputs[1]].op != "parameter" or answers(graph, node):
            continue
        rows = graph[node.inputs[1]].shape[0]
        norm = norm_behind(graph, node)
        scale = None if norm is None else norm.inputs[1]
        behind = () if norm is None else norm.inputs[1:3]
        if all(name in dict(plain.named_parameters()) for name in (*node.inputs[1:], *behind)):
            reader = activation_behind(graph, node if norm is None else norm)
            found[node.inputs[1]] = Channels((*node.inputs[1:], *behind), rows, scale, reader)
    if not found:
        raise UsageError("the network has no channels to prune: no layer stands between its input and its last one")
    return found


def norm_behind(graph: Graph, node: Node) -> Node | None:
    """The batch norm that reads a node, if nothing else does."""
    readers = [graph[name] for name in graph.consumers[node.name]]
    if len(readers) != 1 or readers[0].op != "batch_norm" or node.name in graph.outputs:
        return None
    return readers[0]


def activation_behind(graph: Graph, node: Node) -> str | None:
    """The ReLU, grafted or not, that reads a node, if nothing else does."""
    readers = graph.consumers[node.name]
    return readers[0] if len(readers) == 1 and graph[readers[0]].op in ("relu", "graft") else None


def answers(graph: Graph, node: Node) -> bool:
    """Is a layer the last one of its kind before the outputs, so that its channels are answers?"""
    behind = graph.dependents((node.name,)) - {node.name}
    return not any(graph[name].op in ("linear", "conv2d") for name in behind)
