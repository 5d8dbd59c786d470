"""The layout in which users see a network: without the axis of size 1 that a file's values have for the batch."""

from __future__ import annotations

import math
from dataclasses import replace

from surebound.graph.ir import Graph, Node
from surebound.graph.names import taken
from surebound.graph.original import OnnxOriginal
from surebound.graph.passes import drop_unused


def public_shape(graph: Graph, node: Node) -> tuple[int, ...]:
    """An input's or output's shape in the file, without the batch axis."""
    from_onnx = isinstance(graph.original, OnnxOriginal)
    return node.shape[1:] if from_onnx and len(node.shape) > 1 and node.shape[0] == 1 else node.shape


def published(graph: Graph) -> Graph:
    """The graph with inputs and outputs in the file's layout and linear layers on vectors where possible.

    Each change is a pair of reshapes around what stays as it was; `sink_reshapes` cancels them.
    """
    graph = drop_unused(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        operands = graph.operands(node)
        if node.op == "input" and public_shape(graph, node) != node.shape:
            nodes.append(replace(node, name=inner(node.name, "file"), shape=public_shape(graph, node)))
            nodes.append(viewed(node.name, nodes[-1], node.shape))
        elif node.op == "linear" and math.prod(node.shape[:-1]) == 1 < len(node.shape) and operands[0].batched:
            nodes.append(viewed(inner(node.name, "row"), operands[0], operands[0].shape[-1:]))
            layer = replace(node, name=inner(node.name, "vector"), shape=node.shape[-1:])
            nodes.append(replace(layer, inputs=(nodes[-1].name, *node.inputs[1:])))
            nodes.append(viewed(node.name, nodes[-1], node.shape))
        else:
            nodes.append(node)
    for name in dict.fromkeys(graph.outputs):
        nodes.append(viewed(inner(name, "file.out"), graph[name], public_shape(graph, graph[name])))
    outputs = [inner(name, "file.out") for name in graph.outputs]
    inputs = tuple(node.name for node in nodes if node.op == "input")
    return replace(graph.with_nodes(nodes, outputs), inputs=inputs)


def inner(name: str, role: str) -> str:
    """The name of a helper node, which no user's node has."""
    return f"{name}//{role}"


def viewed(name: str, base: Node, shape: tuple[int, ...]) -> Node:
    """A reshape node."""
    return Node(name, "reshape", (base.name,), {"shape": shape}, shape, base.batched, base.origin)


def plainly_named(graph: Graph) -> Graph:
    """The graph without the names of helper nodes, wherever the user's are free."""
    used = {node.name for node in graph.nodes}
    names = {name: name for name in used}
    for node in graph.nodes:
        if "//" in node.name:
            names[node.name] = taken(node.name.partition("//")[0], used)
    nodes = [replace(node, name=names[node.name], inputs=tuple(names[i] for i in node.inputs)) for node in graph.nodes]
    inputs, outputs = (tuple(names[name] for name in ends) for ends in (graph.inputs, graph.outputs))
    return replace(graph, nodes=tuple(nodes), inputs=inputs, outputs=outputs)
