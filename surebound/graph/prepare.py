"""The passes every graph goes through before it is bounded."""

from __future__ import annotations

from surebound.graph.check import check
from surebound.graph.ir import Graph
from surebound.graph.passes import expand_max, fuse_biases, recognise_grafts, sink_reshapes
from surebound.graph.products import expand_products


def prepare(graph: Graph) -> Graph:
    """The same network in the form the bounds like best: no reshapes in the way, grafts, maxima and
    products explicit, biases inside their linear nodes.
    """
    for rewrite in (recognise_grafts, expand_max, expand_products, sink_reshapes, fuse_biases):
        graph = check(rewrite(graph))
    return graph
