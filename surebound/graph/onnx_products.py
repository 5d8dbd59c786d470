"""ONNX products: a linear layer where one side is constant, else a product of two values."""

from __future__ import annotations

import math

import numpy as np

from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Array, Step
from surebound.graph.onnx_elementwise import lifted, scalar


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
