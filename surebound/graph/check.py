"""Validity of a graph: what every pass may rely on and must leave behind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from surebound.errors import InvalidGraph
from surebound.graph.ir import SOURCES, Graph, Node

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "conv2d": ("stride", "padding", "dilation", "groups"),
        "conv_transpose2d": ("stride", "padding", "output_padding", "dilation", "groups"),
        "batch_norm": ("eps",),
        "leaky_relu": ("slope",),
        "clip": ("min", "max"),
        "max_pool2d": ("kernel", "stride", "padding", "dilation", "ceil_mode"),
        "avg_pool2d": ("kernel", "stride", "padding", "ceil_mode", "count_include_pad"),
        "pad": ("pads", "value"),
        "reshape": ("shape",),
        "transpose": ("perm",),
        "expand": ("shape",),
        "concat": ("axis",),
        "slice": ("axis", "start", "stop", "step"),
        "gather": ("axis", "indices"),
        "softmax": ("axis",),
        "sum": ("axes", "keepdim"),
        "mean": ("axes", "keepdim"),
    }
)
"""Attributes that an op cannot do without."""


def check(graph: Graph) -> Graph:
    """The graph itself when it is valid; InvalidGraph naming the first node that breaks a rule."""
    seen: dict[str, Node] = {}
    for node in graph.nodes:
        check_node(graph, node, seen)
        seen[node.name] = node
    for kind, names in (("input", graph.inputs), ("output", graph.outputs)):
        for name in names:
            if name not in seen:
                raise InvalidGraph(f"graph {kind} '{name}' is not a node")
    for node in graph.nodes:
        if (node.op == "input") != (node.name in graph.inputs):
            raise InvalidGraph(f"{place(node)}: op 'input' and the list of graph inputs {graph.inputs} disagree")
    if not graph.outputs:
        raise InvalidGraph("the graph has no output")
    return graph


def check_node(graph: Graph, node: Node, seen: Mapping[str, Node]) -> None:
    """One node, given those before it."""
    if node.name in seen:
        raise InvalidGraph(f"{place(node)}: the name is used twice")
    if not isinstance(node.shape, tuple) or not all(type(size) is int and size >= 0 for size in node.shape):
        raise InvalidGraph(f"{place(node)}: shape {node.shape!r} is not a tuple of non-negative ints")
    if node.op in SOURCES:
        if node.inputs:
            raise InvalidGraph(f"{place(node)}: a source reads nothing, but it lists {node.inputs}")
        if node.batched != (node.op == "input"):
            raise InvalidGraph(f"{place(node)}: batched={node.batched}, but inputs are batched and parameters are not")
        return
    if node.op not in graph.ops:
        raise InvalidGraph(f"{place(node)}: the op is not in the op table")
    for name in node.inputs:
        if name not in seen:
            known = "comes later" if name in graph.by_name else "does not exist"
            raise InvalidGraph(f"{place(node)}: operand '{name}' {known}")
    if node.batched != any(seen[name].batched for name in node.inputs):
        raise InvalidGraph(f"{place(node)}: batched={node.batched} does not follow from its operands")
    for attr in ATTRIBUTES.get(node.op, ()):
        if attr not in node.attrs:
            raise InvalidGraph(f"{place(node)}: attribute '{attr}' is missing")
    if node.op == "clip" and not node.attrs["min"] <= node.attrs["max"]:
        raise InvalidGraph(f"{place(node)}: limits [{node.attrs['min']}, {node.attrs['max']}] contain no number")


def place(node: Node) -> str:
    """How messages name a node."""
    origin = f" ({node.origin})" if node.origin else ""
    return f"node '{node.name}', op '{node.op}'{origin}"
