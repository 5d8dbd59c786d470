"""Rules: pooling over windows, sums and means over axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surebound.graph.torch_frontend.builder import Value
from surebound.graph.torch_frontend.call import Call, Rule
from surebound.graph.torch_frontend.rules_affine import image, pair


def axes_count(c: Call) -> int:
    """How many axes the windows have."""
    return 1 if "1d" in c.op else 2


def pooled(c: Call, op: str, **attrs: Any) -> Value:
    """A pooling node between reshapes to [C, H, W] and back."""
    spatial = axes_count(c)
    x = image(c, c["self"], spatial)
    out = c.shape[-2:] if spatial == 2 else (1, c.shape[-1])
    return c.reshape(c.emit(op, [x], (x.shape[0], *out), **attrs), c.shape)


def window(c: Call) -> dict[str, Any]:
    """What maximum and average have in common."""
    spatial = axes_count(c)
    return {
        "kernel": pair(c["kernel_size"], spatial, 1),
        "stride": pair(c["stride"] or c["kernel_size"], spatial, 1),
        "padding": pair(c["padding"], spatial, 0),
        "ceil_mode": bool(c["ceil_mode"]),
    }


def max_pool(c: Call) -> Value:
    """The largest value of each window, without its place."""
    return pooled(c, "max_pool2d", **window(c), dilation=pair(c["dilation"], axes_count(c), 1))


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
    sizes = pair([size // out for size, out in zip(given, wanted, strict=True)], spatial, 1)
    attrs = {"kernel": sizes, "stride": sizes, "padding": (0, 0), "ceil_mode": False}
    if largest:
        return pooled(c, "max_pool2d", **attrs, dilation=(1, 1))
    return pooled(c, "avg_pool2d", **attrs, count_include_pad=True)


def reduction(op: str) -> Rule:
    """A sum or mean over axes."""

    def rule(c: Call) -> Value:
        x = c.floating(c["self"])
        axes = c.axes_of(x, c.get("dim"))
        return c.emit(op, [x], c.shape, axes=axes, keepdim=bool(c.get("keepdim"))) if axes else x

    return rule


POOLING: Mapping[str, Rule] = {
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
    "aten.sum": reduction("sum"),
    "aten.mean": reduction("mean"),
}
