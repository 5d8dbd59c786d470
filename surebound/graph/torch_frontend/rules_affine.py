"""Rules: arithmetic, matrix products, convolutions and batch norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from surebound.graph.torch_frontend.builder import Value
from surebound.graph.torch_frontend.call import Call, Rule


def binary(op: str) -> Rule:
    """op(self, other), with other scaled by alpha where torch has an alpha."""
    return lambda c: c.elementwise(op, c["self"], c.scaled(c["other"], c.get("alpha", 1)))


def reversed_subtraction(c: Call) -> Value:
    """other - alpha self."""
    return c.elementwise("sub", c["other"], c.scaled(c["self"], c["alpha"]))


def power(c: Call) -> Value:
    """x to the power of 1, 2, 3 or 4 as products."""
    x, exponent = c["self"], c.get("exponent", 2)
    if exponent not in (1, 2, 3, 4):
        raise c.refuse("only the exponents 1, 2, 3 and 4 have a rule")
    square = x if exponent == 1 else c.elementwise("mul", x, x)
    return square if exponent <= 2 else c.elementwise("mul", square, x if exponent == 3 else square)


def present(*values: Value | None) -> list[Value]:
    """Operands without the optional ones that are missing."""
    return [value for value in values if value is not None]


def linear(c: Call) -> Value:
    """x W^T + b."""
    return c.emit("linear", present(c["input"], c.fixed("weight"), c.fixed("bias")), c.shape)


def product(c: Call, x: Value, y: Value) -> Value:
    """torch.matmul(x, y); with a fixed matrix on the right it is a linear layer."""
    if not y.batched and y.rank == 2 and x.rank > 1:
        return c.emit("linear", [x, c.transpose(y, (1, 0))], (*x.shape[:-1], y.shape[1]))
    if (x.batched and x.rank == 2 and y.rank > 1) or (y.batched and y.rank < 3):
        raise c.mixed("it multiplies a matrix that holds the samples as rows or columns")
    return c.emit("matmul", c.aligned([x, y]), c.shape)


def matmul(c: Call) -> Value:
    """Products of two vectors, matrices or stacks of matrices."""
    x, y = c.operands
    return product(c, x, y)


def addmm(c: Call) -> Value:
    """beta self + alpha mat1 mat2."""
    scaled = c.scaled(product(c, c["mat1"], c["mat2"]), c["alpha"])
    return c.elementwise("add", scaled, c.scaled(c["self"], c["beta"]))


def pair(value: int | list[int], spatial: int, neutral: int) -> tuple[int, int]:
    """A window's setting for two axes; with one spatial axis the first axis gets the neutral value."""
    listed = [value] if isinstance(value, int) else value
    return (neutral, listed[0]) if spatial == 1 else (listed[0], listed[-1])


def image(c: Call, x: Value, spatial: int) -> Value:
    """x as [C, H, W]: a signal gets H = 1, a value without channels one channel."""
    shape = x.shape if len(x.shape) == spatial + 1 else (1, *x.shape)
    if len(shape) != spatial + 1:
        raise c.mixed(f"it takes {spatial} spatial axes behind batch and channels, and gets {list(x.shape)} per sample")
    return c.reshape(x, shape if spatial == 2 else (shape[0], 1, shape[1]))


def convolution(c: Call) -> Value:
    """A convolution over one or two axes; one over one axis is one over two whose first has size 1."""
    x, weight, bias = c["input"], c.fixed("weight"), c.fixed("bias")
    spatial = len(weight.shape) - 2
    if c.get("transposed") or spatial not in (1, 2):
        raise c.refuse("only convolutions over one or two axes that aren't transposed have a rule")
    if len(x.shape) != spatial + 1:
        raise c.mixed(f"a convolution over {spatial} axes needs [batch, channels, ...]")
    out = c.shape
    if spatial == 1:
        weight, out = c.reshape(weight, (*weight.shape[:2], 1, weight.shape[2])), (c.shape[0], 1, c.shape[1])
    dilation = pair(c["dilation"], spatial, 1)
    x, padding = padded(c, image(c, x, spatial), spatial, (weight.shape[2:], dilation))
    attrs = {"stride": pair(c["stride"], spatial, 1), "padding": padding, "dilation": dilation, "groups": c["groups"]}
    return c.reshape(c.emit("conv2d", present(x, weight, bias), out, **attrs), c.shape)


def padded(c: Call, x: Value, spatial: int, window: tuple[Any, Any]) -> tuple[Value, tuple[int, int]]:
    """The image and the padding left to the convolution; 'same' with odd totals pads one more behind."""
    if not isinstance(c["padding"], str):
        return x, pair(c["padding"], spatial, 0)
    total = [step * (width - 1) if c["padding"] == "same" else 0 for width, step in zip(*window, strict=True)]
    if all(size % 2 == 0 for size in total):
        return x, (total[0] // 2, total[1] // 2)
    return c.pad(x, [(0, 0), *((size // 2, size - size // 2) for size in total)]), (0, 0)


def batch_norm(c: Call) -> Value:
    """Batch norm with running statistics."""
    x = c["input"]
    weight = c.builder.constant(torch.ones(x.shape[0])) if c["weight"] is None else c.fixed("weight")
    bias = c.builder.constant(torch.zeros(x.shape[0])) if c["bias"] is None else c.fixed("bias")
    operands = [x, weight, bias, c.fixed("running_mean"), c.fixed("running_var")]
    return c.emit("batch_norm", operands, x.shape, eps=float(c["eps"]))


AFFINE: Mapping[str, Rule] = {
    "aten.add": binary("add"),
    "aten.sub": binary("sub"),
    "aten.mul": binary("mul"),
    "aten.div.Tensor": binary("div"),
    "aten.div.Scalar": binary("div"),
    "aten.rsub": reversed_subtraction,
    "aten.reciprocal": lambda c: c.elementwise("div", 1.0, c["self"]),
    "aten.pow.Tensor_Scalar": power,
    "aten.square": power,
    "aten.linear": linear,
    "aten.matmul": matmul,
    "aten.mm": matmul,
    "aten.bmm": matmul,
    "aten.mv": matmul,
    "aten.addmm": addmm,
    "aten.conv1d": convolution,
    "aten.conv2d": convolution,
    "aten.convolution": convolution,
    "aten._native_batch_norm_legit_no_training": batch_norm,
}
