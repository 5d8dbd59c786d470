"""Rules: convolutions and pooling. Windows over one axis are windows over two, the first of size 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surebound.graph.torch_frontend.builder import Value
from surebound.graph.torch_frontend.call import Call, Rule


def axes_count(c: Call) -> int:
    """How many axes the windows have."""
    return 1 if "1d" in c.op else 2


def pair(c: Call, value: int | list[int], neutral: int) -> tuple[int, int]:
    """A window's setting for two axes; with windows over one the first axis gets the neutral value."""
    listed = [value] if isinstance(value, int) else value
    return (neutral, listed[0]) if axes_count(c) == 1 else (listed[0], listed[-1])


def image(c: Call, x: Value) -> Value:
    """x as [C, H, W]: a signal gets H = 1, a value without channels one channel."""
    axes = axes_count(c)
    shape = x.shape if len(x.shape) == axes + 1 else (1, *x.shape)
    if len(shape) != axes + 1:
        raise c.mixed(f"it takes {axes} spatial axes behind batch and channels, and gets {list(x.shape)} per sample")
    return c.reshape(x, (shape[0], *(1,) * (2 - axes), *shape[1:]))


def convolution(c: Call) -> Value:
    """A convolution; its padding is a node of its own where it isn't the same on both sides."""
    x, weight, axes = c["input"], c.fixed("weight"), axes_count(c)
    if len(weight.shape) != axes + 2:
        raise c.refuse("only convolutions over one or two axes have a rule")
    if len(x.shape) != axes + 1:
        raise c.mixed(f"a convolution over {axes} axes needs [batch, channels, ...]")
    single = (1,) * (2 - axes)
    weight = c.reshape(weight, (*weight.shape[:2], *single, *weight.shape[2:]))
    if c.get("transposed") or "conv_transpose" in c.op:
        attrs = {name: pair(c, c[name], neutral) for name, neutral in TRANSPOSED.items()}
        operands, shape = c.with_bias(image(c, x), weight), (c.shape[0], *single, *c.shape[1:])
        return c.reshape(c.emit("conv_transpose2d", operands, shape, groups=c["groups"], **attrs), c.shape)
    dilation = pair(c, c["dilation"], 1)
    reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    x, padding = padded(c, image(c, x), reach)
    attrs = {"stride": pair(c, c["stride"], 1), "padding": padding, "dilation": dilation, "groups": c["groups"]}
    result = c.emit("conv2d", c.with_bias(x, weight), (c.shape[0], *single, *c.shape[1:]), **attrs)
    return c.reshape(result, c.shape)


TRANSPOSED = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
"""Settings of a transposed convolution, and what they are along an axis that is not there."""


def padded(c: Call, x: Value, reach: list[int]) -> tuple[Value, tuple[int, int]]:
    """The image and the padding left to the convolution; 'same' pads by a window's reach, if odd one more behind."""
    if not isinstance(c["padding"], str):
        return x, pair(c, c["padding"], 0)
    total = reach if c["padding"] == "same" else [0, 0]
    if total[0] % 2 == total[1] % 2 == 0:
        return x, (total[0] // 2, total[1] // 2)
    return c.pad(x, [(0, 0), *((size // 2, size - size // 2) for size in total)]), (0, 0)


def pooled(c: Call, op: str, **attrs: Any) -> Value:
    """A pooling node between reshapes to [C, H, W] and back."""
    x = image(c, c["self"])
    out = c.shape[-2:] if axes_count(c) == 2 else (1, c.shape[-1])
    return c.reshape(c.emit(op, [x], (x.shape[0], *out), **attrs), c.shape)


def window(c: Call) -> dict[str, Any]:
    """What maximum and average have in common."""
    return {
        "kernel": pair(c, c["kernel_size"], 1),
        "stride": pair(c, c["stride"] or c["kernel_size"], 1),
        "padding": pair(c, c["padding"], 0),
        "ceil_mode": bool(c["ceil_mode"]),
    }


def max_pool(c: Call) -> Value:
    """The largest value of each window, without its place."""
    return pooled(c, "max_pool2d", **window(c), dilation=pair(c, c["dilation"], 1))


def avg_pool(c: Call) -> Value:
    """The mean of each window."""
    if c.get("divisor_override") is not None:
        raise c.refuse("divisor_override has no rule")
    return pooled(c, "avg_pool2d", **window(c), count_include_pad=bool(c["count_include_pad"]))


def adaptive_pool(c: Call) -> Value:
    """Adaptive pooling to sizes that divide the input's; the average to size one is a mean over axes."""
    x, spatial, largest = c["self"], axes_count(c), "max" in c.op
    given, wanted = x.shape[-spatial:], c.shape[-spatial:]
    if any(size % out for size, out in zip(given, wanted, strict=True)):
        raise c.refuse(f"adaptive pooling from {list(given)} to {list(wanted)} has windows of different sizes")
    if not largest and set(wanted) == {1}:
        axes = tuple(range(len(x.shape) - spatial, len(x.shape)))
        return c.emit("mean", [x], c.shape, axes=axes, keepdim=True)
    sizes = pair(c, [size // out for size, out in zip(given, wanted, strict=True)], 1)
    attrs = {"kernel": sizes, "stride": sizes, "padding": (0, 0), "ceil_mode": False}
    if largest:
        return pooled(c, "max_pool2d", **attrs, dilation=(1, 1))
    return pooled(c, "avg_pool2d", **attrs, count_include_pad=True)


def upsampled(c: Call) -> Value:
    """Nearest neighbours: each value repeated."""
    x = c.get("self", c.get("input"))
    for axis in range(1, len(c.shape)):
        size, wanted = x.shape[axis], c.shape[axis]
        if size != wanted:
            x = c.gather(x, axis, [place * size // wanted for place in range(wanted)])
    return x


def largest(c: Call, x: Value, gone: Sequence[int], shape: tuple[int, ...]) -> Value:
    """The maximum over axes, as one window over what is reduced."""
    perm = [axis for axis in range(len(x.shape)) if axis not in gone] + [*gone]
    count = math.prod(x.shape[axis] for axis in gone)
    x = c.transpose(x, perm)
    lead = math.prod(x.shape) // max(count, 1)
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    x = c.emit("max_pool2d", [c.reshape(x, (lead, 1, count))], (lead, 1, 1), kernel=(1, count), **attrs)
    return c.reshape(x, shape)


def amax(c: Call) -> Value:
    return largest(c, c["self"], c.axes_of(c["self"], c.get("dim")), c.shape)


def amin(c: Call) -> Value:
    """-max(-x)."""
    x = c["self"]
    return c.unary("neg", largest(c, c.unary("neg", x), c.axes_of(x, c.get("dim")), c.shape))


def log_softmax(c: Call) -> Value:
    """x - m - log(sum(exp(x - m))), m the largest entry: differences of entries are those of x, whatever bounds m."""
    x = c["self"]
    axis = c.axis_of(x, int(c["dim"]))
    one = tuple(1 if place == axis else size for place, size in enumerate(x.shape))
    gap = c.elementwise("sub", x, largest(c, x, (axis,), one))
    total = c.emit("sum", [c.unary("exp", gap)], one, axes=(axis,), keepdim=True)
    return c.elementwise("sub", gap, c.unary("log", total))


WINDOWS: Mapping[str, Rule] = {
    "aten.conv_transpose1d": convolution,
    "aten.conv_transpose2d": convolution,
    "aten.upsample_nearest1d": upsampled,
    "aten.upsample_nearest2d": upsampled,
    "aten.amax": amax,
    "aten.amin": amin,
    "aten.log_softmax": log_softmax,
    "aten._log_softmax": log_softmax,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.convolution": convolution,
    "aten.max_pool1d": max_pool,
    "aten.max_pool2d": max_pool,
    "aten.max_pool2d_with_indices": max_pool,
    "aten.avg_pool1d": avg_pool,
    "aten.avg_pool2d": avg_pool,
    "aten.adaptive_avg_pool1d": adaptive_pool,
    "aten.adaptive_avg_pool2d": adaptive_pool,
    "aten._adaptive_avg_pool2d": adaptive_pool,
    "aten.adaptive_max_pool1d": adaptive_pool,
    "aten.adaptive_max_pool2d": adaptive_pool,
}
