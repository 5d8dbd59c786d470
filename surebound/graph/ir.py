"""The network as a value: an immutable list of nodes, and `evaluate`, which runs it.

Shapes never contain the sample axis. A node is `batched` when its value has one (axis 0 of its tensor),
and everything computed from a batched node is batched. Parameters, buffers and constants are nodes like
any other (op "parameter"); their tensors are fetched by name from `Graph.parameters` at every query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from surebound.errors import ModelError

if TYPE_CHECKING:
    from surebound.ops.record import Op

SOURCES = ("input", "parameter")
"""Ops without operands: their values are given, not computed."""


@dataclass(frozen=True)
class Node:
    """One value of the network and how it is computed.

    name: unique in its graph. op: a key of the op table. inputs: names of operand nodes.
    attrs: static arguments (ints, floats, tuples). shape: without the sample axis.
    origin: where it comes from, for messages (module path and file:line, or the ONNX node).
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    batched: bool = True
    origin: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def numel(self) -> int:
        """Number of values per sample."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __reduce__(self) -> tuple[Any, ...]:
        return Node, (self.name, self.op, self.inputs, dict(self.attrs), self.shape, self.batched, self.origin)


class Parameters(Protocol):
    """Where a graph's parameter nodes get their tensors from, anew at every query."""

    def __call__(self) -> Mapping[str, Tensor]:
        """Tensors by node name, in their own dtype and device."""
        ...


@dataclass(frozen=True)
class FixedParameters:
    """Numbers that belong to a file."""

    tensors: Mapping[str, Tensor]

    def __call__(self) -> Mapping[str, Tensor]:
        return self.tensors


class Original(Protocol):
    """The network as the user gave it; verdicts are checked against it, not against the graph."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [B, *output shape] for inputs [B, *input shape] of any float dtype."""
        ...


def only(names: tuple[str, ...], kind: str) -> str:
    """The single name of a kind that a computation is about."""
    if len(names) != 1:
        listed = ", ".join(names) or "none"
        raise ModelError(f"this needs a network with one {kind}, but it has {len(names)} ({listed})")
    return names[0]


@dataclass(frozen=True)
class Graph:
    """A network: nodes in topological order, the names of its inputs and outputs.

    `ops` is the table that gives each node's op its meaning, `parameters` the source of tensors,
    `original` the network it was made from (None for graphs built by hand).
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: Mapping[str, Op]
    parameters: Parameters
    original: Original | None = None

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return MappingProxyType({node.name: node for node in self.nodes})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """For each node the names of the nodes that read it, in topological order."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node.name)
        return MappingProxyType({name: tuple(users) for name, users in found.items()})

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What others have worked out about this graph, to be found again: it never changes."""
        return {}

    @property
    def input(self) -> Node:
        """The only input node; ModelError when there are several."""
        return self.by_name[only(self.inputs, "input")]

    @property
    def output(self) -> Node:
        """The only output node; ModelError when there are several."""
        return self.by_name[only(self.outputs, "output")]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    def operands(self, node: Node) -> tuple[Node, ...]:
        """The nodes that `node` reads."""
        return tuple(self.by_name[name] for name in node.inputs)

    def dependents(self, roots: Sequence[str] | frozenset[str]) -> frozenset[str]:
        """Names of all nodes whose value depends on one of `roots`, the roots included."""
        reached = set(roots)
        for node in self.nodes:
            if any(name in reached for name in node.inputs):
                reached.add(node.name)
        return frozenset(reached)

    def ancestors(self, names: Sequence[str]) -> frozenset[str]:
        """Names of all nodes that `names` are computed from, themselves included."""
        needed = set(names)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return frozenset(needed)

    def with_nodes(self, nodes: Sequence[Node], outputs: Sequence[str] | None = None) -> Graph:
        """The same network with other nodes."""
        return replace(self, nodes=tuple(nodes), outputs=self.outputs if outputs is None else tuple(outputs))

    def values(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The parameters' tensors now, floats cast to `dtype` (differentiably), on `device`."""
        tensors = self.parameters()
        return {
            node.name: tensors[node.name].to(device, dtype)
            if tensors[node.name].is_floating_point()
            else tensors[node.name].to(device)
            for node in self.nodes
            if node.op == "parameter"
        }

    def to_onnx(self, path: str) -> None:
        """Write the network as an ONNX file with a symbolic batch axis (see `graph.onnx_export`)."""
        from surebound.graph.onnx_export import export

        export(self, path)


@dataclass(frozen=True)
class Site:
    """A node together with its operand nodes: what an op's functions get to know about where they run."""

    node: Node
    operands: tuple[Node, ...]

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.node.attrs

    @property
    def shape(self) -> tuple[int, ...]:
        return self.node.shape


def evaluate(
    graph: Graph,
    params: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor] | Tensor,
    wanted: Sequence[str] | None = None,
    on_value: Callable[[Node, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run the network forward.

    params: tensors of the parameter nodes, as `graph.values` gives them. inputs: tensors [B, *shape] by
    input name, or one tensor for a graph with one input. wanted: names whose values are returned
    (default: the outputs); only what they need is computed. on_value may replace a value when it is known.
    """
    names = graph.outputs if wanted is None else tuple(wanted)
    given = {graph.input.name: inputs} if isinstance(inputs, Tensor) else dict(inputs)
    needed = graph.ancestors(names)
    values: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.name not in needed:
            continue
        if node.name in given:
            value = given[node.name]
        elif node.op == "parameter":
            value = params[node.name]
        else:
            site = Site(node, graph.operands(node))
            value = graph.ops[node.op].forward(site, *(values[name] for name in node.inputs))
        values[node.name] = value if on_value is None else on_value(node, value)
    return {name: values[name] for name in names}
