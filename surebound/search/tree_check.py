"""Does a tree that was read cover its root?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surebound.errors import InvalidProof
from surebound.graph.ir import Graph
from surebound.search.tree import Tree


def check_tree(number: int, tree: Tree, graph: Graph, names: Sequence[str]) -> None:
    """The leaves cover the root: rows come in pairs, the two sides of one split of a row before them."""

    def refuse(row: int, why: str) -> InvalidProof:
        return InvalidProof(f"tree {number}, row {row}: {why}")

    parent, count = tree.parent, len(tree.parent)
    if not count or parent[0] != -1:
        raise refuse(0, "the first row has to be the root, with parent -1")
    below = np.arange(1, count)
    for row in below[(parent[1:] < 0) | (parent[1:] >= below)][:1]:
        raise refuse(int(row), f"its parent {parent[row]} does not come before it")
    for row in below[(tree.node[1:] < 0) | (tree.node[1:] >= len(tree.names))][:1]:
        raise refuse(int(row), f"node {tree.node[row]} is not one of the {len(tree.names)} named")
    for node in np.unique(tree.node[1:]).tolist():
        here = below[tree.node[1:] == node]
        if tree.names[node] not in names:
            raise refuse(int(here[0]), f"'{tree.names[node]}' is no value of this network that can be split")
        size = graph[tree.names[node]].numel
        for row in here[(tree.index[here] < 0) | (tree.index[here] >= size)][:1]:
            raise refuse(int(row), f"'{tree.names[node]}' has no position {tree.index[row]}, but {size}")
    for row in below[~np.isfinite(tree.threshold[1:])][:1]:
        raise refuse(int(row), "its threshold is not finite")
    if count % 2 == 0:
        raise refuse(count - 1, "rows after the first come in pairs")
    one, other = below[::2], below[1::2]
    same = (tree.sign[one] == -1) & (tree.sign[other] == 1)
    for name in ("parent", "node", "index", "threshold"):
        same &= getattr(tree, name)[one] == getattr(tree, name)[other]
    for row in one[~same][:1]:
        raise refuse(int(row), "it and the next are not the two sides of one split, -1 first")
    families = np.unique(parent[one], return_counts=True)
    for row in families[0][families[1] != 1][:1]:
        raise refuse(int(row), "it is split more than once")
