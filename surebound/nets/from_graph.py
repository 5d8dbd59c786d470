"""A module from a graph: what was compressed or read from a file can be trained, grafted and pruned like others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from surebound.graph.ir import Graph, Node, Site
from surebound.graph.names import taken
from surebound.nets.grafted import GraftedReLU
from surebound.ops import OPS

Operands = Sequence[Node]


def conv_module(node: Node, operands: Operands) -> nn.Module:
    weight, attrs = operands[0].shape, node.attrs
    size, groups = (weight[2], weight[3]), attrs["groups"]
    shape = (attrs["stride"], attrs["padding"], attrs["dilation"])
    return nn.Conv2d(weight[1] * groups, weight[0], size, *shape, groups, bias=len(operands) > 1)


def linear_module(node: Node, operands: Operands) -> nn.Module:
    rows, columns = operands[0].shape
    return nn.Linear(columns, rows, bias=len(operands) > 1)


def norm_module(node: Node, operands: Operands) -> nn.Module:
    kind = nn.BatchNorm2d if len(node.shape) == 3 else nn.BatchNorm1d
    return kind(operands[0].numel, eps=node.attrs["eps"])


MODULES: Mapping[str, tuple[Callable[[Node, Operands], nn.Module], tuple[str, ...]]] = MappingProxyType(
    {
        "relu": (lambda node, operands: nn.ReLU(), ()),
        "graft": (
            lambda node, operands: GraftedReLU(torch.zeros(node.shape, dtype=torch.bool)),
            ("mask", "slope", "intercept"),
        ),
        "conv2d": (conv_module, ("weight", "bias")),
        "linear": (linear_module, ("weight", "bias")),
        "batch_norm": (norm_module, ("weight", "bias", "running_mean", "running_var")),
    }
)
"""Ops that are modules, so that criteria, masks and training find them, and what their operands behind the first are
called there. All other ops are computed as the op table says, with constants that stay as they are.
"""


class GraphNet(nn.Module):
    """Runs nodes one after the other. nodes: as `described` gives them; numbers are arbitrary until they are loaded."""

    def __init__(self, nodes: Sequence[Mapping[str, Any]], inputs: str, outputs: str) -> None:
        super().__init__()
        self.nodes = tuple(node_of(each) for each in nodes)
        self.by_name = {node.name: node for node in self.nodes}
        truths = {each["name"] for each in nodes if each.get("truth")}
        self.source, self.answer = inputs, outputs
        used = {*dir(self), "member"}
        self.member = {node.name: taken(node.name.replace(".", "_"), used) for node in self.nodes}
        loose = {self.source}
        for node in self.nodes:
            operands = [self.by_name[name] for name in node.inputs]
            if node.op in MODULES and all(each.op == "parameter" for each in operands[1:]):
                self.add_module(self.member[node.name], MODULES[node.op][0](node, operands[1:]))
                loose.update(node.inputs[:1])
            else:
                loose.update(node.inputs)
        for node in self.nodes:
            if node.op == "parameter" and node.name in loose:
                kind = torch.bool if node.name in truths else torch.float32
                self.register_buffer(self.member[node.name], torch.zeros(node.shape, dtype=kind))

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {self.source: x}
        for node in self.nodes:
            own = self.member[node.name]
            if own in self._buffers:
                values[node.name] = self.get_buffer(own)
            elif own in self._modules:
                values[node.name] = self.get_submodule(own)(values[node.inputs[0]])
            elif node.inputs:
                site = Site(node, tuple(self.by_name[name] for name in node.inputs))
                values[node.name] = OPS[node.op].forward(site, *(values[name] for name in node.inputs))
        shape = self.by_name[self.answer].shape
        own = next((place for place, size in enumerate(shape[:-1]) if size != 1), len(shape) - 1)
        return values[self.answer].flatten(1, 1 + own)  # without a file's batch axis, which is part of a sample here

    def load_values(self, values: Mapping[str, Tensor]) -> None:
        """Take over the numbers of the graph's parameters, by node name."""
        state: dict[str, Tensor] = {}
        for node in self.nodes:
            own = self.member[node.name]
            if own in self._buffers:
                state[own] = values[node.name]
            elif own in self._modules:
                for part, name in zip(MODULES[node.op][1], node.inputs[1:], strict=False):
                    state[f"{own}.{part}"] = values[name].expand(self.get_submodule(own).state_dict()[part].shape)
        self.load_state_dict({**self.state_dict(), **state})


def graph_net(nodes: Sequence[Mapping[str, Any]], inputs: str, outputs: str) -> GraphNet:
    """The network of `described`, without its weights."""
    return GraphNet(nodes, inputs, outputs)


def described(graph: Graph) -> dict[str, Any]:
    """The arguments of `graph_net` for a graph with one input and one output, as plain values."""
    truths = {name for name, value in graph.values(torch.float32).items() if value.dtype == torch.bool}
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "attrs": dict(node.attrs),
            "shape": list(node.shape),
            "batched": node.batched,
            **({"truth": True} if node.name in truths else {}),
        }
        for node in graph
    ]
    return {"nodes": nodes, "inputs": graph.input.name, "outputs": graph.output.name}


def module_of(graph: Graph) -> GraphNet:
    """A graph as a module with its numbers, in evaluation mode."""
    made = graph_net(**described(graph))
    made.load_values(graph.values(torch.float32))
    return made.eval()


def node_of(each: Mapping[str, Any]) -> Node:
    """A node from plain values."""
    attrs = {name: frozen(value) for name, value in each["attrs"].items()}
    return Node(each["name"], each["op"], tuple(each["inputs"]), attrs, tuple(each["shape"]), each["batched"])


def frozen(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value
