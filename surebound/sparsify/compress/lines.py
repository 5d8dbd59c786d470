"""Grafted neurons go into layers: where neurons of a linear layer, or whole channels of a convolution, are lines that
only one layer reads, a product of the weights takes their place if it is no larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from surebound.graph.ir import Graph, Node
from surebound.sparsify.compress.channels import LAYERS
from surebound.sparsify.compress.frozen import Frozen, Making, weight_and_bias


def plain_activations(net: Frozen) -> Frozen:
    """Grafts without any line are ReLUs."""
    nodes = [
        replace(node, op="relu", inputs=node.inputs[:1])
        if node.op == "graft" and not bool(net.tensors[node.inputs[1]].any())
        else node
        for node in net.graph
    ]
    return net.rewritten(nodes, net.tensors)


@dataclass(frozen=True, eq=False)
class Sandwich:
    """A layer, its neurons, and the layer that alone reads them. lines: bool, which outputs of the first (neurons of a
    linear layer, channels of a convolution) are lines that can be merged.
    """

    first: Node
    graft: Node
    last: Node
    lines: Tensor

    @property
    def columns(self) -> Tensor:
        """bool: which columns of the last layer's weight read them; several for a channel that is flattened."""
        flat = self.graft.numel // self.first.shape[0] if self.last.op == "linear" else 1
        return self.lines.repeat_interleave(flat)


def merge_lines(net: Frozen) -> Frozen:
    """y = V f(W x + b) + c, where f is a line a z + d for some neurons L and relu for others R, becomes

    y = V_R relu(W_R x + b_R) + (V_L a W_L) x + [c + V_L (a b_L + d)]

    wherever V_L a W_L has no more entries than V_L and W_L together. L are neurons of a linear layer or channels of a
    convolution, all of whose places are lines; in front of a convolution, which must pad nothing, the same line (the
    product is a convolution). Layers merge from the front on.
    """
    for node in net.graph:
        found = mergeable(net, node)
        if found is None:
            continue
        weight, bias = product(net, found)
        (w, _), (v, _) = weight_and_bias(net, found.first), weight_and_bias(net, found.last)
        if weight.numel() <= w[found.lines].numel() + v[:, found.columns].numel():
            return merge_lines(plain_activations(merged(net, found, weight, bias)))
    return net


def product(net: Frozen, found: Sandwich) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that stands for the lines, with the last layer's bias in it."""
    first, last, lines = found.first, found.last, found.lines
    (w, b), (v, c) = weight_and_bias(net, first), weight_and_bias(net, last)
    slope, intercept = (net.tensors[name].expand(found.graft.shape)[lines] for name in found.graft.inputs[2:])
    w, b, v = w[lines], b[lines], v[:, found.columns]
    if first.op == "linear":
        return v @ (slope[:, None] * w), c + v @ (slope * b + intercept)
    if last.op == "conv2d":
        slope, intercept = slope[:, 0, 0], intercept[:, 0, 0]
        apart = [a * b for a, b in zip(first.attrs["stride"], last.attrs["dilation"], strict=True)]
        kernel = F.conv_transpose2d(v * slope[:, None, None], w, stride=apart, dilation=first.attrs["dilation"])
        return kernel, c + v.sum((2, 3)) @ (slope * b + intercept)
    shape = (len(v), *net.graph[first.inputs[0]].shape)
    behind = v.unflatten(1, slope.shape) * slope
    rows = conv2d_input(shape, w, behind, *(first.attrs[name] for name in ("stride", "padding", "dilation")))
    return rows.flatten(1), c + v @ (slope * b[:, None, None] + intercept).flatten()


def merged(net: Frozen, found: Sandwich, weight: Tensor, bias: Tensor) -> Frozen:
    """One layer of neurons less its lines, with the layer that stands for them beside it."""
    making = Making(net)
    first, graft, last, rest = found.first, found.graft, found.last, ~found.lines
    (w, b), (v, _) = weight_and_bias(net, first), weight_and_bias(net, last)
    for node in net.graph:
        if node.name in (first.name, graft.name):
            continue
        if node.name != last.name:
            making.nodes.append(node)
            continue
        x = net.graph[first.inputs[0]]
        read = flattened(making, x) if last.op == "linear" else x.name
        weights = making.put(f"{last.name}.lines", weight), making.put(f"{last.name}.bias", bias)
        side = replace(last, inputs=(read, *weights), attrs=together(first, last))
        if not bool(rest.any()):
            making.nodes.append(side)
            continue
        weights = making.put(f"{first.name}.weight", w[rest]), making.put(f"{first.name}.bias", b[rest])
        shape = (int(rest.sum()), *first.shape[1:])
        inner = replace(first, name=making.name(f"{first.name}.rest"), inputs=(x.name, *weights), shape=shape)
        making.nodes.append(inner)
        parts = [making.put(name, net.tensors[name].expand(graft.shape)[rest]) for name in graft.inputs[1:]]
        outer = replace(graft, name=making.name(f"{graft.name}.rest"), inputs=(inner.name, *parts), shape=shape)
        making.nodes.append(outer)
        read = flattened(making, outer) if last.op == "linear" else outer.name
        inputs = (read, making.put(f"{last.name}.weight", v[:, ~found.columns]))
        main = replace(last, name=making.name(f"{last.name}.main"), inputs=inputs)
        side = replace(side, name=making.name(f"{last.name}.side"))
        total = replace(last, op="add", inputs=(main.name, side.name), attrs={})
        making.nodes += [main, side, total]
    return making.done()


def together(first: Node, last: Node) -> dict[str, Any]:
    """The attributes of two layers as one: strides multiply, padding is the first one's, the product is dilated."""
    if last.op == "linear":
        return dict(last.attrs)
    stride = tuple(a * b for a, b in zip(first.attrs["stride"], last.attrs["stride"], strict=True))
    return {**first.attrs, "stride": stride, "dilation": (1, 1)}


def flattened(making: Making, node: Node) -> str:
    """A value along one axis."""
    if len(node.shape) == 1:
        return node.name
    name, shape = making.name(f"{node.name}.flat"), (node.numel,)
    making.nodes.append(Node(name, "reshape", (node.name,), {"shape": shape}, shape, origin=node.origin))
    return name


def mergeable(net: Frozen, last: Node) -> Sandwich | None:
    """A layer that reads nothing but another's neurons, with those that are lines which could be merged."""
    graph = net.graph
    if not plain(graph, last):
        return None
    graft = graph[last.inputs[0]]
    if last.op == "linear" and graft.op == "reshape" and alone(graph, graft):
        graft = graph[graft.inputs[0]]
    if graft.op != "graft" or not alone(graph, graft) or not fixed(graph, graft):
        return None
    first = graph[graft.inputs[0]]
    if not plain(graph, first) or not alone(graph, first) or (first.op, last.op) == ("linear", "conv2d"):
        return None
    mask, slope, intercept = (
        net.tensors[name].expand(graft.shape).reshape(graft.shape[0], -1) for name in graft.inputs[1:]
    )
    lines = mask.all(1)
    if last.op == "conv2d":
        even = (slope == slope[:, :1]).all(1) & (intercept == intercept[:, :1]).all(1)
        lines &= even & (max(last.attrs["padding"]) == 0)
    return Sandwich(first, graft, last, lines) if bool(lines.any()) else None


def plain(graph: Graph, node: Node) -> bool:
    """Is it a layer of fixed weights, with one axis or as a convolution that reads all channels?"""
    whole = len(node.shape) == 1 or (node.op == "conv2d" and node.attrs["groups"] == 1)
    return node.op in LAYERS and whole and fixed(graph, node)


def fixed(graph: Graph, node: Node) -> bool:
    """Are all operands but the first numbers?"""
    return all(graph[name].op == "parameter" for name in node.inputs[1:])


def alone(graph: Graph, node: Node) -> bool:
    """Does exactly one node read it?"""
    return len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs
