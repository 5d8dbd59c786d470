"""Rules: arithmetic, sums and means, matrix products and batch norm."""

from __future__ import annotations

from collections.abc import Mapping

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


def reduction(op: str) -> Rule:
    """A sum or mean over axes."""

    def rule(c: Call) -> Value:
        x = c.floating(c["self"])
        axes = c.axes_of(x, c.get("dim"))
        return c.emit(op, [x], c.shape, axes=axes, keepdim=bool(c.get("keepdim"))) if axes else x

    return rule


def linear(c: Call) -> Value:
    """x W^T + b; weights without an axis of rows, which come without a bias, are one row."""
    x, weight = c["input"], c.fixed("weight")
    if len(weight.shape) == 2:
        return c.emit("linear", c.with_bias(x, weight), c.shape)
    row = c.reshape(weight, (1, *weight.shape))
    return c.reshape(c.emit("linear", [x, row], (*c.shape, 1)), c.shape)


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
    "aten.pow.Tensor_Scalar": power,
    "aten.square": power,
    "aten.sum": reduction("sum"),
    "aten.mean": reduction("mean"),
    "aten.linear": linear,
    "aten.matmul": matmul,
    "aten.mm": matmul,
    "aten.bmm": matmul,
    "aten.mv": matmul,
    "aten.addmm": addmm,
    "aten._native_batch_norm_legit_no_training": batch_norm,
}
