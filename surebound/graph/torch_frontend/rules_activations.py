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


def gelu(c: Call) -> Value:
    """x (1 + erf(x / sqrt 2)) / 2, or torch's approximation of it with tanh."""
    x = c["self"]
    if c.get("approximate", "none") == "none":
        bell = c.unary("erf", c.elementwise("mul", x, math.sqrt(0.5)))
    else:
        cube = c.elementwise("mul", c.elementwise("mul", x, x), x)
        inner = c.elementwise("add", x, c.elementwise("mul", cube, 0.044715))
        bell = c.unary("tanh", c.elementwise("mul", inner, math.sqrt(2 / math.pi)))
    return c.elementwise("mul", c.elementwise("mul", x, 0.5), c.elementwise("add", bell, 1.0))


def softplus(c: Call) -> Value:
    """log(1 + exp(beta x)) / beta; torch's usual threshold changes nothing that float32 could tell."""
    x, beta = c["self"], float(c.get("beta", 1))
    if c.get("threshold", 20) < 20:
        raise c.refuse("below a threshold of 20 it jumps, so it isn't continuous")
    return c.scaled(c.unary("softplus", c.scaled(x, beta)), 1 / beta)


def elu(c: Call) -> Value:
    """Of the elu with alpha = 1, which is convex, and relu: for x > 0 the sum is scale x."""
    x, alpha, scale = c["self"], float(c.get("alpha", 1)), float(c.get("scale", 1))
    inner = float(c.get("input_scale", 1))
    result = c.scaled(c.unary("elu", c.scaled(x, inner)), scale * alpha)
    rest = scale * (1 - alpha * inner)
    return result if rest == 0 else c.elementwise("add", result, c.scaled(c.unary("relu", x), rest))


def celu(c: Call) -> Value:
    """alpha elu(x / alpha)."""
    alpha = float(c.get("alpha", 1))
    return c.scaled(c.unary("elu", c.scaled(c["self"], 1 / alpha)), alpha)


def rounded(c: Call) -> Value:
    """To integers."""
    if c.get("decimals", 0):
        raise c.refuse("only rounding to integers has a rule")
    return c.unary("round", c["self"])


def softmax(c: Call) -> Value:
    """Over one axis of the sample."""
    x = c["self"]
    return c.unary("softmax", x, axis=c.axis_of(x, int(c["dim"])))


def attention(c: Call) -> Value:
    """softmax(q k' scale) v, without a mask."""
    if c.get("attn_mask") is not None or c.get("is_causal", False) or c.get("enable_gqa", False):
        raise c.refuse("only attention of all tokens to all tokens has a rule")
    query, key, value = c["query"], c["key"], c["value"]
    scale = c.get("scale")
    rank = len(key.shape)
    turned = c.transpose(key, (*range(rank - 2), rank - 1, rank - 2))
    pairs = (*query.shape[:-1], key.shape[-2])
    scores = c.scaled(c.emit("matmul", [query, turned], pairs), query.shape[-1] ** -0.5 if scale is None else scale)
    return c.emit("matmul", [c.unary("softmax", scores, axis=len(pairs) - 1), value], c.shape)


def layer_norm(c: Call) -> Value:
    """(x - mean) / sqrt(variance + eps) over the last axes, then weight and bias."""
    x = c["input"]
    axes = tuple(range(len(x.shape) - len(c["normalized_shape"]), len(x.shape)))
    if min(axes, default=0) < 0 or not x.batched:
        raise c.mixed("it normalises over the samples")
    small = (*x.shape[: axes[0]], *[1] * len(axes))
    gap = c.elementwise("sub", x, c.emit("mean", [x], small, axes=axes, keepdim=True))
    spread = c.emit("mean", [c.elementwise("mul", gap, gap)], small, axes=axes, keepdim=True)
    root = c.unary("sqrt", c.elementwise("add", spread, float(c["eps"])))
    result = c.elementwise("div", gap, root)
    result = result if c["weight"] is None else c.elementwise("mul", result, c.fixed("weight"))
    return result if c["bias"] is None else c.elementwise("add", result, c.fixed("bias"))


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
    "aten.erf": unary("erf"),
    "aten.exp": unary("exp"),
    "aten.sin": unary("sin"),
    "aten.cos": unary("cos"),
    "aten.softplus": softplus,
    "aten.elu": elu,
    "aten.celu": celu,
    "aten.atan": unary("atan"),
    "aten.sign": unary("sign"),
    "aten.floor": unary("floor"),
    "aten.ceil": unary("ceil"),
    "aten.round": rounded,
    "aten.log": unary("log"),
    "aten.sqrt": unary("sqrt"),
    "aten.rsqrt": lambda c: c.unary("reciprocal", c.unary("sqrt", c["self"])),
    "aten.reciprocal": unary("reciprocal"),
    "aten.gelu": gelu,
    "aten.silu": lambda c: c.elementwise("mul", c["self"], c.unary("sigmoid", c["self"])),
    "aten.softmax": softmax,
    "aten._softmax": softmax,
    "aten.scaled_dot_product_attention": attention,
    "aten.layer_norm": layer_norm,
    "aten.native_layer_norm": layer_norm,
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
