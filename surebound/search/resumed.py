"""Searches that go on where an earlier one ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from surebound.errors import InvalidProof
from surebound.graph.ir import Graph
from surebound.search.ledger import Ledger
from surebound.search.root_bounds import TIGHTENED, tighten_boxes
from surebound.search.run import Run
from surebound.search.tree import Forest, Tree
from surebound.search.tree_check import check_tree


def trees_by_root(
    begun: Mapping[int, Sequence[Tree]], prop_of: NDArray[np.int64], graph: Graph, names: Sequence[str]
) -> dict[int, Tree]:
    """The trees of earlier searches, checked; InvalidProof for those that do not fit network and property."""
    found: dict[int, Tree] = {}
    for prop, trees in begun.items():
        roots = np.flatnonzero(prop_of == prop)
        if len(roots) != len(trees):
            raise InvalidProof(f"{len(trees)} trees were begun, the property has {len(roots)} cases and disjuncts")
        for number, (root, tree) in enumerate(zip(roots.tolist(), trees, strict=True)):
            check_tree(number, tree, graph, names)
            found[root] = tree
    return found


def first_rows(run: Run, forest: Forest, roots: NDArray[np.int64], trees: Mapping[int, Tree]) -> NDArray[np.int64]:
    """The sub-problems that a search starts with: of roots with a tree its open leaves, else the roots themselves.

    What an earlier search proved stays proven, from boxes of the root as it had them.
    """
    begun = np.array([root for root in roots.tolist() if root in trees], np.int64)
    others = np.setdiff1d(roots, begun)
    rows = [forest.append(parent=np.full(len(others), -1, np.int64), root=others, slot=-1, lower=-np.inf)]
    tighten_boxes(run, begun[[trees[root].root_bound == TIGHTENED for root in begun.tolist()]])
    for root in begun.tolist():
        rows.append(forest.resume(root, trees[root]))
        keep(run.ledger, root, trees[root], len(rows[-1]))
    return np.concatenate(rows)


def keep(ledger: Ledger, root: int, tree: Tree, open_: int) -> None:
    """Count the leaves of a root that are open, and the margin of those that are proven."""
    proven = np.setdiff1d(tree.leaves, tree.open)
    ledger.open_count[root] = open_
    ledger.margin[root] = min(ledger.margin[root], tree.lower[proven].min(initial=np.inf))
