"""What a rule gets: one operation of the captured module, and the pieces that rules put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from surebound.errors import UnsupportedOp
from surebound.graph.ir import Node
from surebound.graph.torch_frontend.builder import MIXES, Builder, Value, leaves, op_name, values_in
from surebound.graph.torch_frontend.recording import as_float, pinned


@dataclass(frozen=True)
class Call:
    """One operation of the captured module.

    args: by schema name; what has no value yet is still the exporter's node. batched: does it depend on the input?
    shape: of its (first) result, as a `Value` has it. Axes of all methods are per sample, as in the graph.
    """

    builder: Builder
    node: fx.Node
    args: Mapping[str, Any]
    batched: bool
    shape: tuple[int, ...]

    @property
    def op(self) -> str:
        """Full name: 'aten.add.Tensor'."""
        return op_name(self.node)

    def refuse(self, reason: str) -> UnsupportedOp:
        """The error that names this operation and its line."""
        return self.builder.refusal(self.node, reason)

    def mixed(self, detail: str) -> UnsupportedOp:
        """The error for an operation across samples."""
        return self.refuse(MIXES + detail)

    # arguments

    def __getitem__(self, name: str) -> Any:
        """An argument; refuses it when it is a number or tensor that has no value in a graph."""
        for arg in leaves(self.args[name]):
            if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), Tensor):
                raise self.refuse("the size of an operand depends on the values of a tensor")
            if isinstance(arg, fx.Node):
                raise self.refuse("an argument is a number computed from the batch size or from tensors")
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that not all forms of the operation have."""
        return self[name] if name in self.args else default

    def fixed(self, name: str) -> Any:
        """An argument that must not depend on the network's input, such as a weight."""
        if isinstance(self[name], Value) and self[name].batched:
            raise self.refuse("its weights depend on the network's input")
        return self[name]

    def with_bias(self, *values: Value) -> list[Value]:
        """Operands, followed by the bias if there is one."""
        return [*values, self.fixed("bias")] if self["bias"] is not None else [*values]

    @property
    def operands(self) -> list[Value]:
        """All values among the arguments."""
        return values_in(self.args)

    def axis_of(self, value: Value, dim: int) -> int:
        """The axis for torch's `dim` of a value; refuses the batch axis."""
        dim = dim + value.rank if dim < 0 else dim
        if value.batched and dim == 0:
            raise self.mixed("it works along axis 0")
        return dim - value.batched

    def axes_of(self, value: Value, dims: int | Sequence[int] | None) -> tuple[int, ...]:
        """Axes for torch's `dims`; none or empty means all, the batch included."""
        listed = [dims] if isinstance(dims, int) else dims or range(value.rank)
        return tuple(sorted(self.axis_of(value, dim) for dim in listed))

    def indices(self, x: Value) -> list[int]:
        """The values of an index tensor, which become part of the graph."""
        if x.batched:
            raise self.refuse("its indices depend on the network's input")
        return pinned(self.builder, x).reshape(-1).tolist()

    # pieces

    def emit(self, op: str, inputs: Sequence[Value], shape: Sequence[int], /, **attrs: Any) -> Value:
        """Add a node; it is batched when an operand is."""
        if op not in self.builder.ops:
            raise self.refuse(f"the op table has no '{op}', which it is mapped to")
        name = self.builder.unique(self.node.name.replace("_native_batch_norm_legit_no_training", "batch_norm"))
        batched = any(value.batched for value in inputs)
        operands = tuple(value.name for value in inputs)
        place = self.builder.origin(self.node)
        self.builder.nodes[name] = Node(name, op, operands, attrs, tuple(shape), batched, place)
        return Value(name, tuple(shape), batched)

    def number(self, value: Any) -> Value:
        """A value as it is; a Python number as a constant without axes, made once."""
        if isinstance(value, Value):
            return value
        name = f"number {float(value)!r}"
        if name in self.builder.constants:
            return Value(name, (), False)
        return self.builder.constant(torch.tensor(float(value), dtype=torch.float64), name)

    def floating(self, x: Value) -> Value:
        """x as floats: a mask used as a number."""
        return x if x.floating else as_float(self.builder, x)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """x with another shape, in row-major order."""
        if x.shape == tuple(shape):
            return x
        return replace(self.emit("reshape", [x], shape, shape=tuple(shape)), floating=x.floating)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """x with its axes in another order; two transpositions that cancel vanish."""
        straight = list(range(len(perm)))
        node = self.builder.nodes[x.name]
        if list(perm) == straight:
            return x
        if node.op == "transpose" and [node.attrs["perm"][axis] for axis in perm] == straight:
            before = self.builder.nodes[node.inputs[0]]
            return Value(before.name, before.shape, before.batched)
        return self.emit("transpose", [x], [x.shape[axis] for axis in perm], perm=tuple(perm))

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """x[start:stop:step] along an axis."""
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        shape = (*x.shape[:axis], len(range(start, stop, step)), *x.shape[axis + 1 :])
        return self.emit("slice", [x], shape, axis=axis, start=start, stop=stop, step=step)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Values joined along an axis, empty ones left out."""
        parts = [part for part in parts if part.shape[axis] > 0] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        first = parts[0].shape
        shape = (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1 :])
        return self.emit("concat", parts, shape, axis=axis)

    def gather(self, x: Value, axis: int, indices: Sequence[int]) -> Value:
        """The entries `indices` along an axis; negative ones count from its end."""
        chosen = tuple(index % x.shape[axis] for index in indices)
        return self.emit("gather", [x], (*x.shape[:axis], len(chosen), *x.shape[axis + 1 :]), axis=axis, indices=chosen)

    def pad(self, x: Value, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Value:
        """x with a constant around it; one pair of widths for each axis."""
        if not any(before or after for before, after in pads):
            return x
        shape = [size + before + after for size, (before, after) in zip(x.shape, pads, strict=True)]
        return self.emit("pad", [x], shape, pads=tuple(pads), value=value)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """x repeated to a shape that it broadcasts to."""
        return x if x.shape == tuple(shape) else self.emit("expand", [x], shape, shape=tuple(shape))

    # broadcasting

    def beside_batch(self, value: Value, rank: int) -> Value:
        """An operand of a broadcast to torch rank `rank` whose axis 0 is the batch, without that axis.

        torch aligns axes from the right, the batch axis among them. So a batched operand needs the full rank, and
        an unbatched one that has the full rank must have size 1 there, which is dropped.
        """
        if value.batched and value.rank != rank:
            raise self.mixed(f"its batch axis meets axis {rank - value.rank} of an operand with more axes")
        if value.batched or value.rank < rank:
            return value
        if value.shape[0] != 1:
            raise self.mixed(f"an operand with {value.shape[0]} rows is spread over the samples")
        return self.reshape(value, value.shape[1:])

    def aligned(self, values: Sequence[Value]) -> list[Value]:
        """Operands of a broadcasting op such that broadcasting per sample means what torch's does."""
        rank = max(value.rank for value in values)
        batched = any(value.batched for value in values)
        return [self.beside_batch(value, rank) for value in values] if batched else list(values)

    def broadcast(self, op: str, values: Sequence[Value]) -> Value:
        """A broadcasting op."""
        values = self.aligned(values)
        return self.emit(op, values, torch.broadcast_shapes(*(value.shape for value in values)))

    def elementwise(self, op: str, *operands: Any) -> Value:
        """A broadcasting op on values, masks and numbers."""
        return self.broadcast(op, [self.floating(self.number(operand)) for operand in operands])

    def unary(self, op: str, x: Value, **attrs: Any) -> Value:
        """An op that keeps the shape."""
        return self.emit(op, [self.floating(x)], x.shape, **attrs)

    def scaled(self, x: Any, factor: Any) -> Any:
        """x * factor, left alone for factor 1."""
        return x if factor == 1 else self.elementwise("mul", x, factor)


Rule = Callable[[Call], "Value | tuple[Value, ...]"]
"""From an operation to the value, or values, that it computes."""
