"""Rules: element-wise functions, choices under fixed masks, and what leaves numbers as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from surebound.graph.torch_frontend.builder import Value
from surebound.graph.torch_frontend.call import Call, Rule
from surebound.graph.torch_frontend.rules_affine import binary


def unary(op: str) -> Rule:
    """An op of the same name and shape."""
    return lambda c: c.unary(op, c["self"])


def same(c: Call) -> Value:
    """Operations that change nothing about the numbers: clone, a cast between float dtypes."""
    x = c["self"]
    if not x.floating or not c.node.meta["val"].is_floating_point():
        raise c.refuse("a cast from or to a type that isn't floating-point is no continuous function")
    return x


def detach(c: Call) -> Value:
    """A detached activation is the same number; detached weights are left to torch, which stops their gradient."""
    if not c["self"].batched:
        raise c.refuse("it stops gradients")
    return c["self"]


def prelu(c: Call) -> Value:
    """relu(x) - w relu(-x), so that the slope stays a parameter."""
    x, w = c["self"], c["weight"]
    per_channel = w.shape if len(x.shape) <= 1 else (*w.shape, *[1] * (len(x.shape) - 1))
    slope = c.reshape(w, () if math.prod(w.shape) == 1 else per_channel)
    negative = c.elementwise("mul", slope, c.unary("relu", c.unary("neg", x)))
    return c.elementwise("sub", c.unary("relu", x), negative)


def clip(c: Call, x: Value, low: float | None, high: float | None) -> Value:
    """x limited to [low, high], high everywhere where low > high; None is no limit."""
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if math.isnan(low) or math.isnan(high):
        raise c.refuse("a limit is NaN")
    low = min(low, high)
    return c.unary("relu", x) if (low, high) == (0.0, math.inf) else c.unary("clip", x, min=low, max=high)


def clamp(c: Call) -> Value:
    """clamp, clamp_min, clamp_max, hardtanh; bounds that are tensors become maximum and minimum."""
    x, low, high = c["self"], c.get("min", c.get("min_val")), c.get("max", c.get("max_val"))
    if not isinstance(low, Value) and not isinstance(high, Value):
        return clip(c, x, low, high)
    x = x if low is None else c.elementwise("maximum", x, low)
    return x if high is None else c.elementwise("minimum", x, high)


def threshold(c: Call) -> Value:
    """Values below the threshold replaced by it."""
    if c["threshold"] != c["value"]:
        raise c.refuse("it jumps at its threshold, so it isn't continuous")
    return clip(c, c["self"], c["value"], None)


def hardsigmoid(c: Call) -> Value:
    """x / 6 + 1/2, limited to [0, 1]."""
    return clip(c, c.elementwise("add", c.elementwise("mul", c["self"], 1 / 6), 0.5), 0.0, 1.0)


def where(c: Call) -> Value:
    """self where the condition holds, else other; the condition is fixed."""
    condition = c["condition"]
    if condition.batched:
        raise c.refuse("its condition depends on the network's input; use relu, maximum, minimum or clamp")
    return c.broadcast("where", [condition, *(c.floating(c.number(c[name])) for name in ("self", "other"))])


ACTIVATIONS: Mapping[str, Rule] = {
    **{f"aten.{name}": same for name in ("clone", "alias", "contiguous", "_to_copy", "lift_fresh_copy", "to")},
    "aten.detach": detach,
    "aten.relu": unary("relu"),
    "aten.sigmoid": unary("sigmoid"),
    "aten.tanh": unary("tanh"),
    "aten.neg": unary("neg"),
    "aten.leaky_relu": lambda c: c.unary("leaky_relu", c["self"], slope=float(c["negative_slope"])),
    "aten.prelu": prelu,
    "aten._prelu_kernel": prelu,
    "aten.relu6": lambda c: clip(c, c["self"], 0.0, 6.0),
    **{f"aten.{name}": clamp for name in ("clamp", "clamp_min", "clamp_max", "hardtanh")},
    "aten.threshold": threshold,
    "aten.hardsigmoid": hardsigmoid,
    "aten.abs": lambda c: c.elementwise("maximum", c["self"], c.unary("neg", c["self"])),
    "aten.maximum": binary("maximum"),
    "aten.max.other": binary("maximum"),
    "aten.minimum": binary("minimum"),
    "aten.min.other": binary("minimum"),
    "aten.where": where,
}
