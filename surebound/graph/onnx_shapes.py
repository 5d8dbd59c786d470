"""ONNX ops that move, copy, cut or gather values about."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from surebound.errors import ModelError
from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Rule, Step


def axis_of(step: Step, axis: int, rank: int) -> int:
    """A non-negative axis; ModelError when it is out of range."""
    if not -rank <= axis < rank:
        raise ModelError(f"{step.call.origin}: axis {axis} is out of range for rank {rank}")
    return axis % rank


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
