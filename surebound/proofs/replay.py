"""A proof checked by bounding its leaves anew, in float64.

The tree is believed in nothing: that its leaves cover the region is checked, its bounds are not read, the boxes of the
roots are computed again in the way that it names. From the root down, whatever is not bounded above zero goes on to the
two children that the tree has for it; a leaf that is not is split further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from surebound.bounds.memory import Memory
from surebound.errors import InvalidProof
from surebound.graph.graph_original import GraphOriginal
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.properties import Property, check_fits
from surebound.search.ledger import Ledger
from surebound.search.mirrors import merge_mirrors
from surebound.search.problem import problem
from surebound.search.root_bounds import TIGHTENED, bound_roots, tighten_boxes
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import roots_of
from surebound.search.run import Run, VerifyConfig
from surebound.search.stages import Search
from surebound.search.tree import Forest, Tree

STEPS = 20
"""Of alpha and beta, for each leaf."""


@dataclass(frozen=True)
class Replayed:
    """margin: the least bound over all leaves, positive where the proof holds. leaves: of the proof; more: sub-problems
    made of those that had to be split further. reason: why the proof does not hold, empty where it does.
    """

    margin: float
    leaves: int
    more: int
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Is every leaf bounded above zero?"""
        return not self.reason


def replay(
    graph: Graph, prop: Property, trees: Sequence[Tree], timeout: float = 600.0, memory: int = 1 << 30
) -> Replayed:
    """Check a proof that a property of a network holds: one tree for each case and disjunct, in the property's order.

    Raises InvalidProof for trees that do not fit the network and the property, or do not cover the region; SpecError
    and UnsupportedOp as `verify`.
    """
    prepared = merge_mirrors(prepare(graph))
    check_fits(prop, prepared.input.numel, prepared.output.numel)
    roots = roots_of([prop], prepared.input.shape)
    if len(trees) != roots.count:
        raise InvalidProof(f"the proof has {len(trees)} trees, the property {roots.count} cases and disjuncts")
    of = problem(prepared, roots, torch.float64, Memory(memory))
    forest = Forest([*of.plan.operands, of.input])
    for number, tree in enumerate(trees):
        check_tree(number, tree, prepared, forest.names)
    config = VerifyConfig(timeout=timeout, attack="none", dtype=torch.float64, memory=memory, steps=STEPS)
    ledger = Ledger(roots.prop.numpy(), 1, timeout)
    boxes = RootBoxes(roots.region.groups)
    run = Run(of, [prop], GraphOriginal(graph), config, ledger, boxes, np.full(roots.count, np.inf))
    atoms = bound_roots(run)
    left = ledger.roots_open()
    tighten_boxes(run, left[[trees[root].root_bound == TIGHTENED for root in left.tolist()]])
    planted = [forest.plant(int(root), trees[root]) for root in left]
    before = forest.size
    if planted:
        Search(run, forest, atoms).go(np.concatenate(planted), lambda waiting, bound: None)
    count, more = sum(len(tree.leaves) for tree in trees), forest.size - before
    margin, verdict = ledger.proof_margin(0), ledger.verdicts[0]
    if margin is not None:
        return Replayed(margin, count, more)
    reason = "a leaf was not bounded above zero" if verdict is None else verdict.reason
    return Replayed(float(ledger.margin.min()), count, more, reason)


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
