"""ONNX activations and normalisations."""

from __future__ import annotations

import math

import numpy as np

from surebound.graph.ir import Node
from surebound.graph.onnx_builder import Step
from surebound.graph.onnx_elementwise import operands, scalar, trimmed
from surebound.graph.onnx_shapes import axis_of

SELU = 1.67326319217681884765625, 1.05070102214813232421875
"""alpha and gamma, as the standard rounds them."""


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


def hard_sigmoid(step: Step) -> Node:
    """min(max(alpha x + beta, 0), 1)."""
    scaled = step.emit("mul", (step.node(0), scalar(step, step.number("alpha", 0.2), ".alpha")))
    moved = step.emit("add", (scaled, scalar(step, step.number("beta", 0.5), ".beta")))
    return step.emit("clip", (moved,), min=0.0, max=1.0)


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


def softmax(step: Step) -> Node:
    """Over one axis; before opset 13 over all axes from one on, which is the same where these have size 1."""
    x = step.node(0)
    old = step.opset < 13
    axis = axis_of(step, int(step.attr("axis", 1 if old else -1)), len(x.shape))
    if old and math.prod(x.shape[axis:]) != x.shape[axis]:
        raise step.refuse("before opset 13 it normalises several axes at once; export the network with opset 13")
    return step.emit("softmax", (x,), axis=axis)


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
