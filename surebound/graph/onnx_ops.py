"""What each ONNX op becomes: one rule per op, from a `Step` to the node (or nodes) that it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import numpy as np
from onnx import TensorProto

from surebound.errors import ModelError
from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Array, Step, Value
from surebound.graph.onnx_windows import (
    average_pool,
    batch_norm,
    conv,
    conv_transpose,
    global_average_pool,
    global_max_pool,
    max_pool,
    resize,
)

Rule = Callable[[Step], "Node | list[Node]"]
LARGEST = float(np.finfo(np.float32).max)
SELU = 1.67326319217681884765625, 1.05070102214813232421875
"""alpha and gamma, as the standard rounds them."""


def axis_of(step: Step, axis: int, rank: int) -> int:
    """A non-negative axis; ModelError when it is out of range."""
    if not -rank <= axis < rank:
        raise ModelError(f"{step.call.origin}: axis {axis} is out of range for rank {rank}")
    return axis % rank


# ---------------------------------------------------------------- element-wise


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


def leaky_relu(step: Step) -> Node:
    return step.emit("leaky_relu", (step.node(0),), slope=step.number("alpha", 0.01))


def prelu(step: Step) -> Node:
    """relu(x) - slope relu(-x); with one slope a leaky relu."""
    x, slope = step.node(0), step.constant(1)
    if np.unique(slope).size == 1:
        return step.emit("leaky_relu", (x,), slope=float(slope.reshape(-1)[0]))
    below = step.emit("relu", (step.emit("neg", (x,)),))
    falling = step.emit("mul", (below, step.parameter(1, trimmed(slope, len(x.shape)))))
    return step.emit("sub", (step.emit("relu", (x,)), falling))


def absolute(step: Step) -> Node:
    """max(x, -x)."""
    x = step.node(0)
    return step.emit("maximum", (x, step.emit("neg", (x,))))


def hard_sigmoid(step: Step) -> Node:
    """min(max(alpha x + beta, 0), 1)."""
    scaled = step.emit("mul", (step.node(0), scalar(step, step.number("alpha", 0.2), ".alpha")))
    moved = step.emit("add", (scaled, scalar(step, step.number("beta", 0.5), ".beta")))
    return step.emit("clip", (moved,), min=0.0, max=1.0)


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


def layer_norm(step: Step) -> Node:
    """(x - mean) / sqrt(variance + epsilon) over the axes from one on, then scale and bias."""
    x = step.node(0)
    if len(step.call.outputs) > 1:
        raise step.refuse("its mean and deviation are outputs, too")
    axes = tuple(range(axis_of(step, int(step.attr("axis", -1)), len(x.shape)), len(x.shape)))
    gap = step.emit("sub", (x, step.emit("mean", (x,), axes=axes, keepdim=True)))
    spread = step.emit("mean", (step.emit("mul", (gap, gap)),), axes=axes, keepdim=True)
    floor = scalar(step, step.number("epsilon", 1e-5), ".epsilon")
    result = step.emit("div", (gap, step.emit("sqrt", (step.emit("add", (spread, floor)),))))
    result = step.emit("mul", (result, operands(step, (0, 1))[1]))
    return step.emit("add", (result, operands(step, (0, 2))[1])) if step.has(2) else result


def softmax(step: Step) -> Node:
    """Over one axis; before opset 13 over all axes from one on, which is the same where these have size 1."""
    x = step.node(0)
    old = step.opset < 13
    axis = axis_of(step, int(step.attr("axis", 1 if old else -1)), len(x.shape))
    if old and math.prod(x.shape[axis:]) != x.shape[axis]:
        raise step.refuse("before opset 13 it normalises several axes at once; export the network with opset 13")
    return step.emit("softmax", (x,), axis=axis)


def elu(step: Step) -> Node:
    """Of the elu with alpha = 1, which is convex, and relu."""
    return elu_of(step, step.node(0), step.number("alpha", 1.0))


def elu_of(step: Step, x: Node, alpha: float) -> Node:
    """The elu with alpha is alpha elu(x) + (1 - alpha) relu(x)."""
    result = step.emit("elu", (x,))
    if alpha == 1:
        return result
    rest = step.emit("mul", (step.emit("relu", (x,)), scalar(step, 1 - alpha, ".rest")))
    return step.emit("add", (step.emit("mul", (result, scalar(step, alpha, ".alpha"))), rest))


def selu(step: Step) -> Node:
    """gamma times an elu."""
    inner = elu_of(step, step.node(0), step.number("alpha", SELU[0]))
    return step.emit("mul", (inner, scalar(step, step.number("gamma", SELU[1]), ".gamma")))


def celu(step: Step) -> Node:
    """alpha elu(x / alpha)."""
    alpha = step.number("alpha", 1.0)
    inner = step.emit("elu", (step.emit("mul", (step.node(0), scalar(step, 1 / alpha, ".inverse"))),))
    return step.emit("mul", (inner, scalar(step, alpha, ".alpha")))


def where(step: Step) -> Node:
    """A choice that does not depend on the input."""
    step.constant(0)
    condition, x, y = operands(step, (0, 1, 2))
    return step.emit("where", (condition, x, y))


# ---------------------------------------------------------------- products


def gemm(step: Step) -> Node:
    """alpha A B + beta C: a linear layer when B is constant."""
    alpha, beta = step.number("alpha", 1.0), step.number("beta", 1.0)
    a, b = step.node(0), step.value(1)
    if step.attr("transA", 0):
        a = step.emit("transpose", (a,), perm=(1, 0))
    if isinstance(b, Node):
        b = step.emit("transpose", (b,), perm=(1, 0)) if step.attr("transB", 0) else b
        return plus_c(step, scaled_by(step, step.emit("matmul", (a, b)), alpha, ".alpha"), beta)
    weight = times(b if step.attr("transB", 0) else b.T, alpha)
    tag = ("" if step.attr("transB", 0) else ".T") + ("" if alpha == 1 else f".times.{alpha}")
    layer = [a, step.parameter(1, weight, tag)]
    c = step.value(2) if step.has(2) else None
    if c is None or isinstance(c, Node) or math.prod(c.shape[:-1]) != 1 or beta == 0:
        return plus_c(step, step.emit("linear", layer), beta)
    bias = times(np.broadcast_to(c, (1, weight.shape[0])).reshape(-1), beta)
    return step.emit("linear", [*layer, step.parameter(2, bias, "" if beta == 1 else f".times.{beta}")])


def times(array: Array, factor: float) -> Array:
    """The array times a number; in float64, so that nothing is rounded."""
    return array if factor == 1 else array.astype(np.float64) * factor


def scaled_by(step: Step, x: Node, factor: float, tag: str) -> Node:
    """x times a number."""
    return x if factor == 1 else step.emit("mul", (x, scalar(step, factor, tag)))


def plus_c(step: Step, product: Node, beta: float) -> Node:
    """Gemm's third operand where it does not fit into a bias."""
    if not step.has(2) or beta == 0:
        return product
    return step.emit("add", (product, scaled_by(step, step.node(2), beta, ".beta")))


def matmul(step: Step) -> Node:
    """A linear layer when one side is a constant matrix, else a product of two values."""
    a, b = step.value(0), step.value(1)
    if isinstance(a, Node) and not isinstance(b, Node):
        matrix = b.reshape(b.shape[-2:]) if b.ndim > 2 and math.prod(b.shape[:-2]) == 1 else b
        if matrix.ndim == 2 and len(a.shape) >= b.ndim - (b.ndim == 2):
            return step.emit("linear", (a, step.parameter(1, matrix.T, ".T")))
        if matrix.ndim == 1:
            y = step.emit("linear", (a, step.parameter(1, matrix[None], ".row")))
            return step.reshape(y, y.shape[:-1])
    if isinstance(b, Node) and not isinstance(a, Node) and a.ndim == 2 and b.shape[1:] in ((), (1,)):
        y = step.emit("linear", (step.reshape(b, b.shape[:1]), step.parameter(0, a)))
        return step.reshape(y, a.shape[:1] + b.shape[1:])
    return product(step, step.node(0), step.node(1))


def product(step: Step, a: Node, b: Node) -> Node:
    """Two values multiplied: both as stacks of matrices of one rank, vectors as a row and a column."""
    row, column = len(a.shape) == 1, len(b.shape) == 1
    left = step.reshape(a, (1, *a.shape)) if row else a
    right = step.reshape(b, (*b.shape, 1)) if column else b
    y = step.emit("matmul", lifted(step, (left, right)))
    shape = y.shape[:-1] if column else y.shape
    return step.reshape(y, shape[: len(shape) - 2 + column] + shape[len(shape) - 1 + column :] if row else shape)


# ---------------------------------------------------------------- moving values about


def reshape(step: Step) -> Node:
    """Target with 0 (copy the size) and -1 (what is left)."""
    x, wanted = step.node(0), [int(size) for size in step.constant(1).reshape(-1)]
    target = wanted
    if not step.attr("allowzero", 0):
        target = [x.shape[i] if size == 0 and i < len(x.shape) else size for i, size in enumerate(target)]
    if target.count(-1) == 1:
        rest = math.prod(size for size in target if size != -1)
        target = [x.numel // max(rest, 1) if size == -1 else size for size in target]
    if min(target, default=0) < 0 or math.prod(target) != x.numel:
        raise ModelError(
            f"{step.call.origin}: cannot reshape {x.shape} to {wanted} "
            "(is the batch size fixed in the target? export the model with batch 1)"
        )
    return step.reshape(x, target)


def flatten(step: Step) -> Node:
    x = step.node(0)
    rank = len(x.shape)
    axis = int(step.attr("axis", 1))
    axis = rank if axis == rank else axis_of(step, axis, max(rank, 1))
    return step.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def transpose(step: Step) -> Node:
    x = step.node(0)
    perm = tuple(int(axis) for axis in step.attr("perm", range(len(x.shape))[::-1]))
    return x if perm == tuple(range(len(x.shape))) else step.emit("transpose", (x,), perm=perm)


def squeeze(step: Step) -> Node:
    x, axes = step.node(0), step.integers("axes", 1)
    rank = len(x.shape)
    gone = {i for i in range(rank) if x.shape[i] == 1} if axes is None else {axis_of(step, a, rank) for a in axes}
    return step.reshape(x, [size for axis, size in enumerate(x.shape) if axis not in gone])


def unsqueeze(step: Step) -> Node:
    x, axes = step.node(0), step.integers("axes", 1) or ()
    rank = len(x.shape) + len(axes)
    new = {axis_of(step, axis, rank) for axis in axes}
    sizes = iter(x.shape)
    return step.reshape(x, [1 if axis in new else next(sizes) for axis in range(rank)])


def expand(step: Step) -> Node:
    x = step.node(0)
    try:
        shape = np.broadcast_shapes(x.shape, tuple(int(size) for size in step.constant(1)))
    except ValueError as error:
        raise ModelError(f"{step.call.origin}: {error}") from error
    return x if shape == x.shape else step.emit("expand", (x,), shape=shape)


def concat(step: Step) -> Node:
    nodes = [step.node(index) for index in range(len(step.call.inputs))]
    axis = axis_of(step, int(step.attr("axis", 1)), len(nodes[0].shape))
    return nodes[0] if len(nodes) == 1 else step.emit("concat", nodes, axis=axis)


def tile(step: Step) -> Node:
    """Copies one after the other along each axis."""
    x, repeats = step.node(0), step.constant(1)
    for axis, count in enumerate(repeats.tolist()):
        if count != 1:
            x = step.emit("concat", (x,) * count, axis=axis)
    return x


def cut(step: Step, x: Node, axis: int, start: int, stop: int, stride: int = 1) -> Node:
    """Part of one axis; x itself for the whole axis."""
    if (start, stop, stride) == (0, x.shape[axis], 1):
        return x
    return step.emit("slice", (x,), axis=axis, start=start, stop=stop, step=stride)


def limits_of(size: int, start: int, stop: int, stride: int) -> tuple[int, int]:
    """First index and end as the standard has them: a start before the data is 0 for steps backwards too."""
    start, stop = (value + size if value < 0 else value for value in (start, stop))
    if stride < 0:
        return min(max(start, 0), size - 1), min(max(stop, -1), size - 1)
    return min(max(start, 0), size), min(max(stop, 0), size)


def slices(step: Step) -> Node:
    """One slice per axis; a negative step becomes a gather."""
    x = step.node(0)
    starts, stops = step.integers("starts", 1) or (), step.integers("ends", 2) or ()
    axes = step.integers("axes", 3) or tuple(range(len(starts)))
    strides = step.integers("steps", 4) or (1,) * len(starts)
    for axis, start, stop, stride in zip(axes, starts, stops, strides, strict=True):
        axis = axis_of(step, axis, len(x.shape))
        first, last = limits_of(x.shape[axis], start, stop, stride)
        picked = range(first, last, stride)
        if stride < 0:
            x = step.emit("gather", (x,), axis=axis, indices=tuple(picked))
        else:
            x = cut(step, x, axis, first, max(first, last), stride)
    return x


def split(step: Step) -> list[Node]:
    """Given sizes, or equal parts (the last one may be smaller from opset 18 on)."""
    x, sizes = step.node(0), step.integers("split", 1)
    axis = axis_of(step, int(step.attr("axis", 0)), len(x.shape))
    parts = int(step.attr("num_outputs", len(step.call.outputs)))
    if sizes is None:
        size = -(-x.shape[axis] // parts)
        sizes = tuple(min(size, x.shape[axis] - i * size) for i in range(parts))
    ends = np.cumsum((0, *sizes)).tolist()
    return [cut(step, x, axis, start, stop) for start, stop in pairwise(ends)]


def gather(step: Step) -> Node:
    """Constant indices along one axis; a run of neighbours becomes a slice."""
    x, indices = step.node(0), step.constant(1)
    axis = axis_of(step, int(step.attr("axis", 0)), len(x.shape))
    size = x.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise ModelError(f"{step.call.origin}: an index is out of range for an axis of size {size}")
    picked = tuple(int(index) % size for index in indices.reshape(-1))
    if picked and picked == tuple(range(picked[0], picked[0] + len(picked))):
        y = cut(step, x, axis, picked[0], picked[-1] + 1)
    else:
        y = step.emit("gather", (x,), axis=axis, indices=picked)
    return step.reshape(y, x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def reduce(op: str) -> Rule:
    """Sum or mean over axes."""

    def rule(step: Step) -> Node:
        x, axes = step.node(0), step.integers("axes", 1)
        if not axes and step.attr("noop_with_empty_axes", 0):
            return x
        rank = len(x.shape)
        chosen = tuple(sorted(axis_of(step, axis, rank) for axis in axes)) if axes else tuple(range(rank))
        return step.emit(op, (x,), axes=chosen, keepdim=bool(step.attr("keepdims", 1)))

    return rule


def reduced_max(sign: int) -> Rule:
    """The maximum (sign 1) or minimum (-1) over axes, as one window over what is reduced."""

    def rule(step: Step) -> Node:
        x, axes = step.node(0), step.integers("axes", 1)
        rank = len(x.shape)
        if not axes and step.attr("noop_with_empty_axes", 0):
            return x
        gone = sorted({axis_of(step, axis, rank) for axis in axes}) if axes else list(range(rank))
        kept = [axis for axis in range(rank) if axis not in gone]
        perm, shape = (*kept, *gone), x.shape
        x = x if perm == tuple(range(rank)) else step.emit("transpose", (x,), perm=perm)
        x = x if sign > 0 else step.emit("neg", (x,))
        lead, count = math.prod(shape[axis] for axis in kept), math.prod(shape[axis] for axis in gone)
        attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
        x = step.emit("max_pool2d", (step.reshape(x, (lead, 1, count)),), kernel=(1, count), **attrs)
        x = x if sign > 0 else step.emit("neg", (x,))
        keep = bool(step.attr("keepdims", 1))
        return step.reshape(x, [1 if axis in gone else shape[axis] for axis in range(rank) if keep or axis in kept])

    return rule


def pad(step: Step) -> Node:
    """Constant padding; negative widths crop."""
    x = step.node(0)
    rank = len(x.shape)
    widths = step.integers("pads", 1)
    if widths is None:
        raise ModelError(f"{step.call.origin}: no pads")
    axes = step.integers("axes", 3) if step.opset >= 18 else None
    chosen = [axis_of(step, axis, rank) for axis in axes] if axes is not None else list(range(rank))
    if len(widths) != 2 * len(chosen):
        raise ModelError(f"{step.call.origin}: {len(widths)} pads for {len(chosen)} axes")
    pairs = {axis: (widths[i], widths[i + len(chosen)]) for i, axis in enumerate(chosen)}
    for axis, (before, after) in pairs.items():
        x = cut(step, x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    pads = tuple((max(before, 0), max(after, 0)) for before, after in (pairs.get(axis, (0, 0)) for axis in range(rank)))
    if not any(width for pair in pads for width in pair):
        return x
    mode = step.attr("mode", "constant")
    if mode != "constant":
        raise step.refuse(f"mode '{mode}'; only constant padding has a rule")
    value = float(step.constant(2).reshape(-1)[0]) if step.has(2) else step.number("value", 0.0)
    if not math.isfinite(value):
        raise step.refuse(f"padding with {value}")
    return step.emit("pad", (x,), pads=pads, value=value)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Abs": absolute,
        "Add": binary("add"),
        "Atan": unary("atan"),
        "AveragePool": average_pool,
        "BatchNormalization": batch_norm,
        "Cast": cast,
        "Ceil": unary("ceil"),
        "Celu": celu,
        "Clip": clip,
        "Concat": concat,
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "Cos": unary("cos"),
        "Div": binary("div"),
        "Dropout": alias,
        "Elu": elu,
        "Erf": unary("erf"),
        "Exp": unary("exp"),
        "Expand": expand,
        "Flatten": flatten,
        "Floor": unary("floor"),
        "Gather": gather,
        "Gemm": gemm,
        "GlobalAveragePool": global_average_pool,
        "GlobalMaxPool": global_max_pool,
        "HardSigmoid": hard_sigmoid,
        "Identity": alias,
        "LayerNormalization": layer_norm,
        "LeakyRelu": leaky_relu,
        "Log": unary("log"),
        "MatMul": matmul,
        "Max": extreme("maximum"),
        "MaxPool": max_pool,
        "Mean": mean_of,
        "Min": extreme("minimum"),
        "Mul": binary("mul"),
        "Neg": unary("neg"),
        "PRelu": prelu,
        "Pad": pad,
        "Pow": power,
        "Reciprocal": unary("reciprocal"),
        "ReduceMax": reduced_max(1),
        "ReduceMean": reduce("mean"),
        "ReduceMin": reduced_max(-1),
        "ReduceSum": reduce("sum"),
        "Relu": unary("relu"),
        "Reshape": reshape,
        "Resize": resize,
        "Round": unary("round"),
        "Selu": selu,
        "Sigmoid": unary("sigmoid"),
        "Sign": unary("sign"),
        "Sin": unary("sin"),
        "Slice": slices,
        "Softmax": softmax,
        "Softplus": unary("softplus"),
        "Split": split,
        "Sqrt": unary("sqrt"),
        "Squeeze": squeeze,
        "Sub": binary("sub"),
        "Sum": folded("add"),
        "Tanh": unary("tanh"),
        "Tile": tile,
        "Transpose": transpose,
        "Unsqueeze": unsqueeze,
        "Upsample": resize,
        "Where": where,
    }
)
"""Rules by ONNX op. Ops on constants need none: they are folded before."""

DEFINED = frozenset(
    {
        *("CastLike", "Gelu", "GroupNormalization", "HardSwish", "LogSoftmax", "MeanVarianceNormalization", "Mish"),
        *("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "RMSNormalization"),
        *("Softsign", "Swish"),
    }
)
"""Ops that are replaced by the ops of which the standard makes them."""
