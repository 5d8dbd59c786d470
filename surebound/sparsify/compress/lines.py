"""Grafted neurons go into layers: where some neurons between two linear layers are lines, a product of the weights
takes their place if it is no larger.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from surebound.graph.ir import Graph, Node
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


@dataclass(frozen=True)
class Sandwich:
    """A linear layer, its grafted neurons, and the linear layer that alone reads them."""

    first: Node
    graft: Node
    last: Node


def merge_lines(net: Frozen) -> Frozen:
    """y = V f(W x + b) + c, where f is a line a z + d for some neurons L and relu for others R, becomes

    y = V_R relu(W_R x + b_R) + (V_L a W_L) x + [c + V_L (a b_L + d)]

    wherever V_L a W_L has no more entries than V_L and W_L together. Layers merge from the front on.
    """
    for node in net.graph:
        found = mergeable(net, node)
        if found is not None:
            return merge_lines(merged(net, found))
    return net


def merged(net: Frozen, found: Sandwich) -> Frozen:
    """One layer of neurons less its lines."""
    making = Making(net)
    first, graft, last = found.first, found.graft, found.last
    (w, b), (v, c) = weight_and_bias(net, first), weight_and_bias(net, last)
    mask, slope, intercept = (net.tensors[name].expand(graft.shape) for name in graft.inputs[1:])
    bypass = v[:, mask] @ (slope[mask, None] * w[mask])
    constant = c + v[:, mask] @ (slope[mask] * b[mask] + intercept[mask])
    rest, x = ~mask, first.inputs[0]
    for node in net.graph:
        if node.name in (first.name, graft.name):
            continue
        if node.name != last.name:
            making.nodes.append(node)
            continue
        around = (x, making.put(f"{last.name}.lines", bypass), making.put(f"{last.name}.bias", constant))
        if bool(mask.all()):
            making.nodes.append(replace(last, inputs=around))
            continue
        count = (int(rest.sum()),)
        weights = making.put(f"{first.name}.weight", w[rest]), making.put(f"{first.name}.bias", b[rest])
        inner = replace(first, name=making.name(f"{first.name}.rest"), inputs=(x, *weights), shape=count)
        relu = Node(making.name(f"{graft.name}.rest"), "relu", (inner.name,), {}, count, origin=graft.origin)
        outer = (relu.name, making.put(f"{last.name}.weight", v[:, rest]))
        main = replace(last, name=making.name(f"{last.name}.main"), inputs=outer)
        side = replace(last, name=making.name(f"{last.name}.side"), inputs=around)
        total = replace(last, op="add", inputs=(main.name, side.name), attrs={})
        making.nodes += [inner, relu, main, side, total]
    return making.done()


def mergeable(net: Frozen, last: Node) -> Sandwich | None:
    """A linear layer whose input's lines are worth merging, with what is in front of it."""
    graph = net.graph
    if last.op != "linear" or len(last.shape) != 1 or not fixed(graph, last):
        return None
    graft = graph[last.inputs[0]]
    if graft.op != "graft" or not alone(graph, graft) or not fixed(graph, graft):
        return None
    first = graph[graft.inputs[0]]
    if first.op != "linear" or len(first.shape) != 1 or not alone(graph, first) or not fixed(graph, first):
        return None
    lines = int(net.tensors[graft.inputs[1]].expand(graft.shape).sum())
    ahead, behind = graph[first.inputs[0]].numel, last.shape[0]
    return Sandwich(first, graft, last) if lines and ahead * behind <= lines * (ahead + behind) else None


def fixed(graph: Graph, node: Node) -> bool:
    """Are all operands but the first numbers?"""
    return all(graph[name].op == "parameter" for name in node.inputs[1:])


def alone(graph: Graph, node: Node) -> bool:
    """Does exactly one node read it?"""
    return len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs
