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
from surebound.search.tree_check import check_tree

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
