"""ONNX ops that act entry by entry, and what several rules share about operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from surebound.errors import ModelError
from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Array, Rule, Step, Value

LARGEST = float(np.finfo(np.float32).max)


def trimmed(array: Array, rank: int) -> Array:
    """The array without leading axes of size 1, as long as a partner of that rank keeps the result's rank."""
    while array.ndim > 1 and array.shape[0] == 1 and array.ndim <= rank:
        array = array[0]
    return array


def operands(step: Step, indices: Sequence[int]) -> list[Node]:
    """The inputs as nodes; constants lose leading axes of size 1 that the other operands provide."""
    values: list[Value] = [step.value(index) for index in indices]
    rank = max((len(value.shape) for value in values if isinstance(value, Node)), default=0)
    return [
        value if isinstance(value, Node) else step.parameter(index, trimmed(value, rank))
        for index, value in zip(indices, values, strict=True)
    ]


def lifted(step: Step, nodes: Sequence[Node]) -> list[Node]:
    """Batched operands brought to one rank by leading axes of size 1."""
    rank = max(len(node.shape) for node in nodes)
    shapes = [(1,) * (rank - len(node.shape)) + node.shape for node in nodes]
    return [step.reshape(node, to) if node.batched else node for node, to in zip(nodes, shapes, strict=True)]


def unary(op: str) -> Rule:
    """An op of one operand without attributes."""
    return lambda step: step.emit(op, (step.node(0),))


def binary(op: str) -> Rule:
    """Broadcasting arithmetic."""
    return lambda step: step.emit(op, operands(step, (0, 1)))


def scalar(step: Step, value: float, tag: str) -> Node:
    """A number as a parameter without axes, in float64: it may be no float32 (1/3), and none is rounded."""
    return step.parameter(None, np.asarray(value, np.float64), tag)


def alias(step: Step) -> Node:
    """An op that does nothing in inference."""
    return step.node(0)


def cast(step: Step) -> Node:
    """To the inputs' float type or a wider one: the graph computes in one dtype. Others round, which it does not."""
    to = step.attr("to")
    if to not in (step.builder.kind, TensorProto.DOUBLE):
        kind, known = TensorProto.DataType.Name(to), TensorProto.DataType.Name(step.builder.kind)
        raise step.refuse(
            f"a value that depends on the input is cast to {kind}, which rounds it more than {known}, the type of the "
            f"network's input; export the network in {known} throughout"
        )
    return step.node(0)


def folded(op: str) -> Rule:
    """An n-ary op as a chain of binary ones."""

    def rule(step: Step) -> Node:
        nodes = operands(step, range(len(step.call.inputs)))
        result = nodes[0]
        for node in nodes[1:]:
            pair = (result, node)
            result = step.emit(op, lifted(step, pair) if op in ("maximum", "minimum") else pair)
        return result

    return rule


def mean_of(step: Step) -> Node:
    """Sum of all inputs times 1/n."""
    count = scalar(step, 1 / len(step.call.inputs), ".share")
    total = folded("add")(step)
    assert isinstance(total, Node)
    return step.emit("mul", (total, count))


def extreme(op: str) -> Rule:
    """Max or Min; against one constant number it is a clip (or a relu)."""

    def rule(step: Step) -> Node:
        if len(step.call.inputs) == 2:
            for index in (0, 1):
                limit, x = step.value(index), step.value(1 - index)
                if isinstance(limit, Node) or not isinstance(x, Node) or np.unique(limit).size != 1:
                    continue
                if np.broadcast_shapes(limit.shape, x.shape) == x.shape:
                    return clipped(step, x, *((limit, None) if op == "maximum" else (None, limit)))
        result = folded(op)(step)
        assert isinstance(result, Node)
        return result

    return rule


def clipped(step: Step, x: Node, lower: Array | None, upper: Array | None) -> Node:
    """min(max(x, low), high), high everywhere where low > high; a relu for [0, inf), x itself for limits that
    never bind, as the largest number of a type does not. None is no limit.
    """
    low, high = -limit(step, lower, -1), limit(step, upper, 1)
    low = min(low, high)
    if (low, high) == (-math.inf, math.inf):
        return x
    return step.emit("relu", (x,)) if (low, high) == (0.0, math.inf) else step.emit("clip", (x,), min=low, max=high)


def limit(step: Step, array: Array | None, sign: int) -> float:
    """The number of a limit times its sign; infinity for none, and for the largest number of the array's type."""
    number = math.inf if array is None else sign * float(array.reshape(-1)[0])
    if math.isnan(number):
        raise ModelError(f"{step.call.origin}: a limit is NaN")
    if array is None or number >= np.finfo(array.dtype).max:
        return math.inf
    if abs(number) > LARGEST:
        raise step.refuse(f"the limit {sign * number:g} is no float32, in which the network is searched")
    return number


def clip(step: Step) -> Node:
    """Limits as attributes (up to opset 10) or as inputs."""

    def given(attr: str, index: int) -> Array | None:
        held = np.asarray(step.attr(attr), np.float32) if step.attr(attr) is not None else None
        return step.constant(index) if step.has(index) else held

    return clipped(step, step.node(0), given("min", 1), given("max", 2))


def absolute(step: Step) -> Node:
    """max(x, -x)."""
    x = step.node(0)
    return step.emit("maximum", (x, step.emit("neg", (x,))))


def power(step: Step) -> Node:
    """x to a constant power for which there is a rule: 0.5, -0.5, -1 and 0 to 4."""
    x, exponents = step.node(0), np.unique(step.constant(1))
    exponent = float(exponents[0]) if exponents.size == 1 else math.nan
    if exponent in (0.5, -0.5):
        root = step.emit("sqrt", (x,))
        return root if exponent > 0 else step.emit("reciprocal", (root,))
    if exponent == -1:
        return step.emit("reciprocal", (x,))
    if exponent not in (1, 2, 3, 4):
        raise step.refuse("only the exponents -1, -0.5, 0.5, 1, 2, 3 and 4 have a rule")
    square = x if exponent == 1 else step.emit("mul", (x, x))
    return square if exponent <= 2 else step.emit("mul", (square, x if exponent == 3 else square))


def where(step: Step) -> Node:
    """A choice that does not depend on the input."""
    step.constant(0)
    condition, x, y = operands(step, (0, 1, 2))
    return step.emit("where", (condition, x, y))
