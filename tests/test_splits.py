"""Several splits at once: what sub-problems become, and what these start from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from nets import mlp
from numpy.typing import NDArray

from surebound.graph.ir import evaluate
from surebound.properties import robust
from surebound.search.engine import Bounded, Choice
from surebound.search.ledger import Ledger
from surebound.search.multipliers import Multipliers
from surebound.search.neurons import ROOM
from surebound.search.pool import Pool
from surebound.search.problem import Problem
from surebound.search.run import VerifyConfig
from surebound.search.slots import Slots
from surebound.search.tree import Forest, Tree
from surebound.search.tree_check import check_tree
from surebound.search.verdict import Verified
from surebound.search.verify import verify

GRAPH = mlp(0, (3, 6, 6, 2))
NAMES = tuple(node.inputs[0] for node in GRAPH.nodes if node.op == "relu")


class Scripted:
    """An engine that proposes so many splits for each sub-problem of a round, and proves it where these are none."""

    name = "scripted"
    batch = 64

    def __init__(self, rounds: Sequence[Sequence[int]]) -> None:
        self.rounds, self.slots = list(rounds), Slots()

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        splits = np.array(self.rounds.pop(0))
        assert len(splits) == len(rows)
        shape = (len(rows), max(1, int(splits.max())))
        index = np.tile(np.arange(shape[1], dtype=np.int32), (len(rows), 1)) + len(self.rounds)
        choice = Choice(np.zeros(shape, np.int16), index, np.full(shape, 0.25), np.arange(shape[1]) < splits[:, None])
        slot = np.full(len(rows), -1, np.int32)
        slot[splits > 0] = self.slots.reserve(int((splits > 0).sum()))
        lower = np.where(splits > 0, -1.0 - np.arange(len(rows)), 1.0 + np.arange(len(rows)))
        return Bounded(lower, splits == 0, torch.zeros(len(rows), 3), choice, slot)


def searched(rounds: Sequence[Sequence[int]]) -> tuple[Tree, Ledger, Scripted]:
    """The tree of one root, how it stands, and the engine."""
    forest, engine = Forest([*NAMES, "x"]), Scripted(rounds)
    ledger = Ledger(np.zeros(1, np.int64), 1, 60.0)
    engine_of = np.array([engine.name], object)
    pool = Pool(cast(Problem, None), forest, {engine.name: engine}, engine_of, ledger, None, lambda waiting: None)
    begun = forest.append(parent=np.array([-1]), root=0, slot=-1, lower=-np.inf)
    pool.run(begun, lambda count, worst: None)
    return forest.tree(0, "crown"), ledger, engine


@pytest.mark.parametrize(
    ("rounds", "rows", "bounded"),
    [
        ([[1], [0, 0]], 3, 3),
        ([[3], [0] * 8], 15, 9),
        ([[2], [2, 1, 0, 1], [0] * 8], 17, 13),
        ([[2], [0, 3, 1, 0], [0] * 9 + [2], [0] * 4], 29, 19),
    ],
)
def test_all_children_of_several_splits_are_searched(rounds: list[list[int]], rows: int, bounded: int) -> None:
    tree, ledger, engine = searched(rounds)
    check_tree(0, tree, GRAPH, [*NAMES, "x"])
    assert len(tree.parent) == rows and ledger.nodes.tolist() == [bounded]
    assert not len(tree.open) and (tree.lower[tree.leaves] >= 1).all()
    inner = np.setdiff1d(np.arange(rows), tree.leaves)
    assert (tree.lower[inner] == -np.inf).all()
    assert ledger.open_count.tolist() == [0] and ledger.proof_margin(0) == 1.0
    assert (engine.slots.users == 0).all() and len(np.unique(engine.slots.unused)) == engine.slots.capacity


def test_children_start_from_the_multipliers_of_the_sub_problem_above() -> None:
    """The splits between have none yet; how many these are may differ within a batch."""
    kept = Multipliers({})
    case, logits = torch.zeros(3, dtype=torch.long), torch.zeros(3, 1)
    depth = np.array([2, 1, 0], np.int32)
    beta = torch.tensor([[[5.0, 7.0]], [[3.0, 0.0]], [[0.0, 0.0]]])
    slots = torch.from_numpy(kept.store(case, {}, beta, logits, depth)).long()
    _, found, _ = kept.load(slots, case, np.array([4, 2, 3], np.int32), torch.float32)
    assert found[:, 0].tolist() == [[0, 0, 5, 7], [0, 3, 0, 0], [0, 0, 0, 0]]
    _, same, _ = kept.load(slots[:1], case[:1], depth[:1], torch.float32)
    assert same[:, 0].tolist() == [[5, 7]]
    _, none, _ = kept.load(slots[2:], case[:1], depth[2:], torch.float32)
    assert none.shape == (1, 1, 0)


def test_a_root_with_room_is_split_on_several_neurons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 0)
    monkeypatch.setattr("surebound.search.stages.CLIPPED", 0)
    graph, x = mlp(1, (3, 12, 12, 2)), torch.zeros(3, dtype=torch.float64)
    label = int(evaluate(graph, graph.values(x.dtype), x[None])[graph.output.name].argmax())
    (found,) = verify(graph, [robust(x, label, 0.3, 2)], VerifyConfig(timeout=20, attack="none"))
    assert isinstance(found.verdict, Verified)
    (tree,) = found.verdict.trees
    depth = np.zeros(len(tree.parent), int)
    for row in range(1, len(depth)):
        depth[row] = depth[tree.parent[row]] + 1
    assert (np.bincount(depth)[:4] == [1, 2, 4, ROOM]).all()
    assert found.nodes < len(tree.parent)
