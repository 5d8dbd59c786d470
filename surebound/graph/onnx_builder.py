"""The graph that an ONNX file becomes, while it is being built: constants, nodes, and the step at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from surebound.errors import ModelError, UnsupportedOp
from surebound.graph.ir import Node, Site
from surebound.ops.record import Op

Array = NDArray[Any]
Value = Node | Array
"""What a name in an ONNX file stands for here: a node, or numbers known before the network runs."""


def infer_shape(
    node: Node, operands: Sequence[Node], ops: Mapping[str, Op], boolean: frozenset[str]
) -> tuple[int, ...]:
    """The per-sample shape of `node`, by running its op without data on two samples.

    boolean: names of the operands that hold truth values. Raises RuntimeError (or what the op raises)
    when the operands do not fit.
    """
    samples = 2
    shapes = [operand.shape for operand in operands]
    try:
        guess = tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        guess = shapes[0]
    values = [
        torch.empty(
            (samples,) * operand.batched + operand.shape,
            dtype=torch.bool if operand.name in boolean else torch.float32,
            device="cpu",
        )
        for operand in operands
    ]
    result = ops[node.op].forward(Site(replace(node, shape=guess), tuple(operands)), *values)
    if not node.batched:
        return tuple(result.shape)
    if result.dim() == 0 or result.shape[0] != samples:
        raise RuntimeError(f"the result {list(result.shape)} has no sample axis")
    return tuple(result.shape[1:])


@dataclass(frozen=True)
class Call:
    """One node of the ONNX file."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    name: str
    origin: str

    @staticmethod
    def of(proto: onnx.NodeProto, file: str) -> Call:
        """The node with its attributes decoded."""
        attrs = {item.name: helper.get_attribute_value(item) for item in proto.attribute}
        decoded = {key: value.decode() if isinstance(value, bytes) else value for key, value in attrs.items()}
        name = proto.name or next((output for output in proto.output if output), "")
        origin = f"{file}: {proto.op_type} '{name}'"
        return Call(proto.op_type, tuple(proto.input), tuple(proto.output), decoded, name, origin)


@dataclass
class Builder:
    """Nodes and numbers so far; `reserved` are names that belong to values of the file, `kind` is the element
    type of the network's inputs (ONNX's number for the widest one).
    """

    file: str
    opset: int
    kind: int
    ops: Mapping[str, Op]
    reserved: frozenset[str]
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def unique(self, wanted: str, owner: bool = False) -> str:
        """`wanted`, or with a number appended when it is taken; only its owner gets the name of a value."""
        name, count = wanted, 1
        while name in self.used or (name in self.reserved and not owner):
            count += 1
            name, owner = f"{wanted}.{count}", False
        self.used.add(name)
        return name

    def add(self, node: Node) -> Node:
        """Append a node whose name is already unique."""
        self.nodes.append(node)
        return node

    def bind(self, name: str, value: Node, fresh: int) -> None:
        """Let the ONNX name stand for a node; a node made since position `fresh` takes that name over."""
        made = [node for node in self.nodes[fresh:] if node.op != "parameter"]
        if any(node is value for node in made) and name not in self.used:
            old, value = value.name, replace(value, name=self.unique(name, owner=True))
            self.nodes[fresh:] = [
                value
                if node.name == old
                else replace(node, inputs=tuple(name if read == old else read for read in node.inputs))
                for node in self.nodes[fresh:]
            ]
        self.values[name] = value


@dataclass(frozen=True)
class Step:
    """What the rule of one ONNX op gets: its call, its operands, and the means to emit nodes."""

    builder: Builder
    call: Call

    @property
    def opset(self) -> int:
        """Version of the operator set that the file uses."""
        return self.builder.opset

    def refuse(self, reason: str) -> UnsupportedOp:
        """The error for a form of the op that has no rule."""
        return UnsupportedOp(self.call.op, self.call.name, self.call.origin, reason)

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute or its default."""
        return self.call.attrs.get(name, default)

    def number(self, name: str, default: float) -> float:
        """A float attribute, or its default as the standard has it: a float32, also where the network is in float64."""
        return float(np.float32(self.attr(name, default)))

    def has(self, index: int) -> bool:
        """Is the optional input there?"""
        return index < len(self.call.inputs) and self.call.inputs[index] != ""

    def value(self, index: int) -> Value:
        """Input `index`: a node or numbers. ModelError when nothing computes it."""
        if not self.has(index):
            raise ModelError(f"{self.call.origin}: input {index} is missing")
        name = self.call.inputs[index]
        if name not in self.builder.values:
            raise ModelError(
                f"{self.call.origin}: nothing before it computes '{name}' (the nodes may be out of order, "
                "or it is a secondary output that has no rule)"
            )
        return self.builder.values[name]

    def constant(self, index: int) -> Array:
        """Input `index`, which must be known numbers; UnsupportedOp otherwise."""
        value = self.value(index)
        if isinstance(value, Node):
            raise self.refuse(f"input {index} ('{self.call.inputs[index]}') depends on the network's input")
        return value

    def node(self, index: int) -> Node:
        """Input `index` as a node; numbers become a parameter."""
        value = self.value(index)
        return value if isinstance(value, Node) else self.parameter(index, value)

    def integers(self, attr: str, index: int) -> tuple[int, ...] | None:
        """Integers given as an attribute in old operator sets and as an input in new ones; None if absent."""
        if attr in self.call.attrs:
            found = self.call.attrs[attr]
            return tuple(int(item) for item in (found if isinstance(found, Sequence) else [found]))
        return tuple(int(item) for item in self.constant(index).reshape(-1)) if self.has(index) else None

    def parameter(self, index: int | None, array: Array, tag: str = "") -> Node:
        """A parameter node for the numbers of input `index`, or derived from them as `tag` says."""
        name = (self.call.outputs[0] if index is None else self.call.inputs[index]) + tag
        origin = f"{self.builder.file}: tensor '{name}'"
        if array.dtype == np.bool_:
            tensor = torch.from_numpy(np.array(array))
        elif array.dtype in (np.float32, np.float64):
            tensor = torch.from_numpy(np.array(array, order="C"))
        elif np.issubdtype(array.dtype, np.integer):
            raise self.refuse(f"'{name}' holds {array.dtype}: computing with integers")
        else:
            tensor = torch.from_numpy(array.astype(np.float32))
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{origin} contains NaN or infinity: train or export the model again")
        return self.shared(name, tensor, origin)

    def shared(self, name: str, tensor: Tensor, origin: str) -> Node:
        """The parameter node of that name; one that already holds the same numbers is used again."""
        builder = self.builder
        for node in (node for node in builder.nodes if node.op == "parameter" and node.origin == origin):
            held = builder.tensors[node.name]
            if held.dtype == tensor.dtype and held.shape == tensor.shape and torch.equal(held, tensor):
                return node
        unique = builder.unique(name, owner=True)
        builder.tensors[unique] = tensor
        return builder.add(Node(unique, "parameter", shape=tuple(tensor.shape), batched=False, origin=origin))

    def emit(self, op: str, operands: Sequence[Node], **attrs: Any) -> Node:
        """Append a node; its shape comes from the op itself. ModelError when the operands do not fit."""
        builder = self.builder
        wanted = f"{self.call.outputs[0]}.{op}"
        batched = any(operand.batched for operand in operands)
        inputs = tuple(operand.name for operand in operands)
        node = Node(wanted, op, inputs, attrs, (), batched, self.call.origin)
        boolean = frozenset(name for name, tensor in builder.tensors.items() if tensor.dtype == torch.bool)
        try:
            shape = infer_shape(node, operands, builder.ops, boolean)
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(operand.shape) for operand in operands)
            raise ModelError(f"{self.call.origin}: shapes {shapes} do not fit: {error}") from error
        return builder.add(replace(node, name=builder.unique(wanted), shape=shape))

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        """x with another shape; x itself when it has that shape already."""
        target = tuple(int(size) for size in shape)
        return x if x.shape == target else self.emit("reshape", (x,), shape=target)


Rule = Callable[[Step], "Node | list[Node]"]
"""From an ONNX op to the node, or nodes, that it computes."""
