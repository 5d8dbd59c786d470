"""The graph that a captured module becomes, while it is being built: values, nodes and the batch axis."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from surebound.errors import UnsupportedOp
from surebound.graph.ir import Node
from surebound.graph.torch_frontend.export import origin
from surebound.graph.torch_frontend.live import Source, Step
from surebound.ops.record import Op

MIXES = "it mixes the batch axis (axis 0) with other axes or samples with each other: "


@dataclass(frozen=True)
class Value:
    """A tensor of the captured module as a graph node.

    batched: depends on the input, and torch's tensor has the batch axis in front. shape: without that axis; an
    unbatched tensor that was made for the batch size has size 1 in its place. floating: False for masks, indices.
    """

    name: str
    shape: tuple[int, ...]
    batched: bool
    floating: bool = True

    @property
    def rank(self) -> int:
        """The rank of torch's tensor."""
        return len(self.shape) + self.batched


def leaves(arg: Any) -> Iterator[Any]:
    """What an argument holds behind lists, tuples and mappings."""
    if isinstance(arg, (list, tuple, Mapping)):
        for item in arg.values() if isinstance(arg, Mapping) else arg:
            yield from leaves(item)
    else:
        yield arg


def values_in(arg: Any) -> list[Value]:
    """All values that an argument holds."""
    return [leaf for leaf in leaves(arg) if isinstance(leaf, Value)]


def op_name(node: fx.Node) -> str:
    """An operation's full name: 'aten.add.Tensor'."""
    return "getitem" if node.target is operator.getitem else str(node.target)


@dataclass
class Builder:
    """The graph under construction.

    symbol: the exporter's symbol for the batch size. dtype: the module's at trace time. nodes: in order.
    values: what the exporter's nodes have become (a tuple for several results). sources, constants, steps, fixed:
    the origins of parameter nodes, as `LiveParameters` has them. recorded: names of the steps.
    """

    module: nn.Module
    ops: Mapping[str, Op]
    symbol: Any
    dtype: torch.dtype
    nodes: dict[str, Node] = field(default_factory=dict)
    values: dict[fx.Node, Value | tuple[Value, ...]] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    recorded: dict[fx.Node, str] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """`name`, or the first free `name.N`."""
        candidate, count = name, 1
        while candidate in self.nodes or candidate in self.steps:
            count += 1
            candidate = f"{name}.{count}"
        return candidate

    def origin(self, node: fx.Node) -> str:
        """Module path and line of an operation."""
        return origin(node, type(self.module).__name__)

    def refusal(self, node: fx.Node, reason: str) -> UnsupportedOp:
        """The error that names an operation and its line."""
        made_from = str(node.meta.get("original_aten") or node.target)
        source = f"it comes from {made_from}; " if made_from != str(node.target) and op_name(node) != "getitem" else ""
        return UnsupportedOp(op_name(node), node.name, self.origin(node), source + reason)

    def parameter(self, name: str, shape: Sequence[int], floating: bool, place: str = "") -> Value:
        """Add a parameter node."""
        self.nodes[name] = Node(name, "parameter", (), {}, tuple(shape), False, place)
        return Value(name, tuple(shape), False, floating)

    def constant(self, tensor: Tensor, name: str = "constant") -> Value:
        """Add a parameter node for a tensor that belongs to the code."""
        name = self.unique(name)
        self.constants[name] = tensor
        return self.parameter(name, tensor.shape, tensor.is_floating_point())

    # sizes

    def for_one_sample(self, size: Any) -> int | None:
        """A number of the capture for a batch of one; None when it depends on the values of a tensor."""
        if isinstance(size, int):
            return size
        expression: Any = size.node.expr.subs(self.symbol, 1) if isinstance(size, torch.SymInt) else None
        return int(expression) if getattr(expression, "is_Integer", False) else None

    def shape_of(self, tensor: Tensor, batched: bool) -> tuple[int, ...] | None:
        """The shape of a `Value`; None when a size is unknown or the batch is elsewhere than on axis 0 alone."""
        sizes = list(tensor.shape)
        if batched:
            first = sizes.pop(0) if sizes else None
            fixed = all(isinstance(size, int) or size.node.expr.is_Integer for size in sizes)
            if not fixed or not isinstance(first, torch.SymInt) or first.node.expr != self.symbol:
                return None
        known = [size for size in map(self.for_one_sample, sizes) if size is not None]
        return tuple(known) if len(known) == len(sizes) else None

    def words(self, tensor: Tensor) -> str:
        """A shape with B for the batch size."""
        return "[" + ", ".join(re.sub(rf"\b{self.symbol}\b", "B", str(size)) for size in tensor.shape) + "]"
