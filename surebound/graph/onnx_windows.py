"""ONNX ops over images: convolution, pooling, batch norm.

The file's layout (1, C, H, W) or (1, C, L) becomes (C, H, W) by a reshape before the op and one behind it;
`passes.sink_reshapes` cancels them between neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surebound.errors import ModelError
from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Array, Step
from surebound.graph.passes import separable_max

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A sliding window in two dimensions (a one-dimensional one slides over the second)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair

    @property
    def symmetric(self) -> bool:
        """Padded alike on both sides."""
        return self.before == self.after

    @property
    def pads(self) -> tuple[Pair, Pair, Pair]:
        """Padding of a (C, H, W) value."""
        return (0, 0), (self.before[0], self.after[0]), (self.before[1], self.after[1])

    def reach(self, axis: int) -> int:
        """Size of the dilated kernel."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def count(self, sizes: Pair, ceil: bool) -> Pair:
        """Number of window positions per axis; none starts in the padding behind the data."""

        def along(axis: int) -> int:
            room = sizes[axis] + self.before[axis] + self.after[axis] - self.reach(axis)
            found = (-(-room // self.stride[axis]) if ceil else room // self.stride[axis]) + 1
            return found - (ceil and (found - 1) * self.stride[axis] >= sizes[axis] + self.before[axis])

        return along(0), along(1)


def image(step: Step, x: Node) -> Node:
    """(1, C, H, W) or (1, C, L) as (C, H, W)."""
    if len(x.shape) not in (3, 4):
        raise step.refuse(f"operand of shape {x.shape}; only one and two spatial dimensions have a rule")
    if x.shape[0] != 1:
        raise step.refuse(f"the file fixes the batch at {x.shape[0]}; export it with batch 1 or a symbolic batch")
    return step.reshape(x, x.shape[1:] if len(x.shape) == 4 else (x.shape[1], 1, x.shape[2]))


def batch(step: Step, y: Node, x: Node) -> Node:
    """(C, H, W) back in the layout of the operand x."""
    return step.reshape(y, (1, *y.shape) if len(x.shape) == 4 else (1, y.shape[0], y.shape[2]))


def window(step: Step, x: Node, kernel: Sequence[int]) -> Window:
    """The window from the attributes, for x in the file's layout."""
    sizes, rank = x.shape[2:], len(x.shape) - 2
    stride = tuple(step.attr("strides", [1] * rank))
    dilation = tuple(step.attr("dilations", [1] * rank))
    pads = tuple(step.attr("pads", [0] * 2 * rank))
    if not len(kernel) == len(stride) == len(dilation) == rank or len(pads) != 2 * rank:
        raise ModelError(f"{step.call.origin}: the window's attributes do not fit an operand of shape {x.shape}")
    mode = step.attr("auto_pad", "NOTSET")
    before, after = pads[:rank], pads[rank:]
    if mode == "VALID":
        before = after = (0,) * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        if any(d != 1 for d in dilation):
            raise step.refuse(f"auto_pad '{mode}' with dilations, which runtimes read differently; export it with pads")
        total = [max((-(-size // s) - 1) * s + k - size, 0) for size, s, k in zip(sizes, stride, kernel, strict=True)]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        before, after = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode != "NOTSET":
        raise ModelError(f"{step.call.origin}: auto_pad '{mode}' does not exist")
    if min(before + after) < 0:
        raise step.refuse("negative padding")

    def pair(values: Sequence[int], filler: int) -> Pair:
        first, second = values if rank == 2 else (filler, values[0])
        return int(first), int(second)

    return Window(pair(kernel, 1), pair(stride, 1), pair(dilation, 1), pair(before, 0), pair(after, 0))


def conv(step: Step) -> Node:
    """Convolution with constant weights; uneven padding becomes a pad node."""
    x, weight = step.node(0), step.constant(1)
    data = image(step, x)
    w = window(step, x, weight.shape[2:])
    flat = weight if weight.ndim == 4 else weight[:, :, None, :]
    layer = [padded(step, data, w), step.parameter(1, flat)]
    if step.has(2):
        layer.append(step.parameter(2, step.constant(2)))
    padding = w.before if w.symmetric else (0, 0)
    groups = int(step.attr("group", 1))
    y = step.emit("conv2d", layer, stride=w.stride, padding=padding, dilation=w.dilation, groups=groups)
    return batch(step, y, x)


def conv_transpose(step: Step) -> Node:
    """Transposed convolution with constant weights; uneven padding is cut off behind."""
    x, weight = step.node(0), step.constant(1)
    if step.attr("output_shape") is not None or step.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise step.refuse("its padding depends on the shape that is wanted; export it with pads")
    data = image(step, x)
    w = window(step, x, weight.shape[2:])
    layer = [data, step.parameter(1, weight if weight.ndim == 4 else weight[:, :, None, :])]
    if step.has(2):
        layer.append(step.parameter(2, step.constant(2)))
    more = tuple(int(size) for size in step.attr("output_padding", [0] * (len(x.shape) - 2)))
    y = step.emit(
        "conv_transpose2d",
        layer,
        stride=w.stride,
        padding=w.before if w.symmetric else (0, 0),
        output_padding=more if len(more) == 2 else (0, *more),
        dilation=w.dilation,
        groups=int(step.attr("group", 1)),
    )
    for axis in (0, 1) if not w.symmetric else ():
        stop = y.shape[axis + 1] - w.after[axis]
        y = step.emit("slice", (y,), axis=axis + 1, start=w.before[axis], stop=stop, step=1)
    return batch(step, y, x)


def resize(step: Step) -> Node:
    """Nearest neighbours, as indices along each axis."""
    x = step.node(0)
    mode, nearest = step.attr("mode", "nearest"), step.attr("nearest_mode", "round_prefer_floor")
    centred = step.attr("coordinate_transformation_mode", "half_pixel")
    if step.opset < 11:
        nearest, centred = "floor", "asymmetric"
    if mode != "nearest" or nearest not in NEAREST or centred not in ("half_pixel", "asymmetric"):
        raise step.refuse(f"mode '{mode}' ({centred}, {nearest}); only nearest neighbours have a rule")
    place = 1 if step.opset < 11 else 2
    scales = step.attr("scales") if step.call.op == "Upsample" and step.opset < 9 else None
    if scales is None and step.has(place) and step.constant(place).size:
        scales = step.constant(place).reshape(-1).tolist()
    if scales is None:
        scales = [new / old for new, old in zip(step.constant(3).reshape(-1).tolist(), x.shape, strict=True)]
    for axis, scale in enumerate(scales):
        size = x.shape[axis]
        count = math.floor(size * scale)
        at = np.arange(count)
        at = (at + 0.5) / scale - 0.5 if centred == "half_pixel" else at / scale
        indices = tuple(NEAREST[nearest](at).astype(np.int64).clip(0, size - 1).tolist())
        if indices != tuple(range(size)):
            x = step.emit("gather", (x,), axis=axis, indices=indices)
    return x


NEAREST = {"floor": np.floor, "round_prefer_floor": lambda at: np.ceil(at - 0.5)}
"""How a place between two values is rounded."""


def padded(step: Step, data: Node, w: Window) -> Node:
    """The value with the window's padding when that is uneven, else unchanged."""
    return data if w.symmetric else step.emit("pad", (data,), pads=w.pads, value=0.0)


def max_pool(step: Step) -> Node:
    """Pooling by maximum; padding that the pooling op cannot express becomes gathers."""
    x = step.node(0)
    return pooled_max(step, x, window(step, x, step.attr("kernel_shape")), bool(step.attr("ceil_mode", 0)))


def pooled_max(step: Step, x: Node, w: Window, ceil: bool) -> Node:
    """Maximum over a window."""
    data = image(step, x)
    small = all(2 * w.before[axis] <= w.kernel[axis] for axis in (0, 1))
    if w.symmetric and small:
        y = step.emit(
            "max_pool2d",
            (data,),
            kernel=w.kernel,
            stride=w.stride,
            padding=w.before,
            dilation=w.dilation,
            ceil_mode=ceil,
        )
        return batch(step, y, x)
    y = separable_max(
        data,
        w.count((data.shape[1], data.shape[2]), ceil),
        (w.kernel, w.stride, w.before, w.dilation),
        lambda node, axis, indices: step.emit("gather", (node,), axis=axis, indices=indices),
        lambda a, b: step.emit("maximum", (a, b)),
    )
    if y is None:
        raise step.refuse("a window lies in the padding altogether")
    return batch(step, y, x)


def average_pool(step: Step) -> Node:
    """Pooling by average, with or without the padding counted."""
    x = step.node(0)
    data, w = image(step, x), window(step, x, step.attr("kernel_shape"))
    counted, ceil = bool(step.attr("count_include_pad", 0)), bool(step.attr("ceil_mode", 0))
    if w.dilation != (1, 1):
        raise step.refuse(f"dilation {w.dilation}")
    if w.symmetric and all(2 * w.before[axis] <= w.kernel[axis] for axis in (0, 1)):
        return batch(step, mean_pool(step, data, w, w.before, ceil, counted), x)
    if ceil:
        raise step.refuse("ceil_mode together with uneven padding")
    y = mean_pool(step, step.emit("pad", (data,), pads=w.pads, value=0.0), w, (0, 0), False, True)
    if not counted:
        share = shares(w, data.shape, y.shape)
        if share is None:
            raise step.refuse("a window lies in the padding altogether")
        y = step.emit("mul", (y, step.parameter(None, share, ".window")))
    return batch(step, y, x)


def mean_pool(step: Step, data: Node, w: Window, padding: Pair, ceil: bool, counted: bool) -> Node:
    """The average pooling node."""
    return step.emit(
        "avg_pool2d",
        (data,),
        kernel=w.kernel,
        stride=w.stride,
        padding=padding,
        ceil_mode=ceil,
        count_include_pad=counted,
    )


def shares(w: Window, sizes: Sequence[int], out: Sequence[int]) -> Array | None:
    """Kernel size over the number of data points in each window: [out H, out W]; None when one has none."""

    def inside(axis: int) -> Array:
        starts = np.arange(out[axis + 1]) * w.stride[axis] - w.before[axis]
        return np.minimum(starts + w.kernel[axis], sizes[axis + 1]) - np.maximum(starts, 0)

    points = inside(0), inside(1)
    return None if min(map(np.min, points)) < 1 else math.prod(w.kernel) / np.outer(*points)


def global_max_pool(step: Step) -> Node:
    x = step.node(0)
    sizes = x.shape[2:] if len(x.shape) == 4 else (1, *x.shape[2:])
    if len(sizes) != 2:
        raise step.refuse(f"operand of shape {x.shape}; only one and two spatial dimensions have a rule")
    return pooled_max(step, x, Window((sizes[0], sizes[1]), (1, 1), (1, 1), (0, 0), (0, 0)), False)


def global_average_pool(step: Step) -> Node:
    x = step.node(0)
    return step.emit("mean", (x,), axes=tuple(range(2, len(x.shape))), keepdim=True)


def batch_norm(step: Step) -> Node:
    """Batch norm with running statistics, over axis 1 of the file's layout."""
    x = step.node(0)
    if not step.attr("spatial", 1):
        raise step.refuse("only the form with running statistics per channel has a rule")
    if len(x.shape) < 2 or x.shape[0] != 1:
        raise step.refuse(f"operand of shape {x.shape}; the first axis has to be a batch of 1")
    numbers = [step.parameter(index, step.constant(index)) for index in (1, 2, 3, 4)]
    eps = step.number("epsilon", 1e-5)
    y = step.emit("batch_norm", [step.reshape(x, x.shape[1:]), *numbers], eps=eps)
    return step.reshape(y, x.shape)
