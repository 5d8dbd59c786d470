"""The beta-CROWN engine on the collapsed instance of one case: the same bounds for less work.

Sub-problems and their splits are those of the original network; only here are they read and made in terms of the
neurons that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.beta import Splits
from surebound.linear.maps import merged
from surebound.search.collapse import Collapsed, Kept, best_kept, collapse
from surebound.search.engine import Bounded
from surebound.search.neurons import NeuronEngine
from surebound.search.root_boxes import RootBoxes
from surebound.search.slots import Slots
from surebound.search.tree import Forest


class SmallForest:
    """The forest with the splits of neurons given as positions among those that are left."""

    def __init__(self, forest: Forest, collapsed: Collapsed) -> None:
        self.forest, self.names = forest, forest.names
        self.place: dict[int, Tensor] = {}
        for name, positions in collapsed.positions.items():
            place = torch.full((int(positions.max()) + 1,), -1)
            place[positions] = torch.arange(len(positions))
            self.place[self.names.index(name)] = place

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.forest[column]

    def paths(self, rows: NDArray[np.int64]) -> Splits:
        """As the forest's."""
        splits = self.forest.paths(rows)
        index = splits.index.clone()
        for number, place in self.place.items():
            here = (splits.node == number) & (splits.sign != 0)
            index[here] = place[index[here]]
        return replace(splits, index=index)


class CollapsedEngine:
    """Bounds sub-problems of one case on its collapsed network, from another engine's boxes as they are now."""

    name = NeuronEngine.name

    def __init__(self, engine: NeuronEngine, forest: Forest, case: int, kept: Kept, alive: Callable[[], None]) -> None:
        own = engine.boxes.take(torch.tensor([case]), torch.float64)
        self.collapsed = collapse(engine.problem, case, own, kept, alive)
        small = RootBoxes(1)
        small.put(torch.tensor([0]), self.collapsed.boxes, engine.boxes.methods[case])
        view = SmallForest(forest, self.collapsed)
        gaps = 1 / engine.scale
        self.inner = NeuronEngine(
            self.collapsed.problem, view, small, gaps, engine.steps, engine.rates, engine.refreshes, False
        )
        self.positions = {forest.names.index(name): at.numpy() for name, at in self.collapsed.positions.items()}

    @property
    def slots(self) -> Slots:
        return self.inner.slots

    @property
    def batch(self) -> int:
        return self.inner.batch

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        found = self.inner.bound(rows)
        choice = found.choice
        for number, positions in self.positions.items():
            here = choice.possible & (choice.node == number)
            choice.index[here] = positions[choice.index[here]]
        return found

    def adopt(self, engine: NeuronEngine, forest: Forest, rows: NDArray[np.int64]) -> None:
        """Take waiting sub-problems over from another engine, with the values that they start from."""
        theirs = forest["slot"][rows]
        slots, place, users = np.unique(theirs[theirs >= 0], return_inverse=True, return_counts=True)
        if not len(slots):
            return
        first = np.zeros(len(slots), np.int64)
        first[place] = rows[theirs >= 0]
        case = engine.problem.roots.within[torch.from_numpy(forest["root"][first].astype(np.int64))]
        depth = forest["depth"][first]
        free, beta, logits = engine.multipliers.load(torch.from_numpy(slots).long(), case, depth, torch.float32)
        names = {step.site.node.name: step.site.node.inputs[0] for step in engine.problem.plan.relaxed}
        left = {
            name: merged(value, 3)[..., self.collapsed.positions[names[name]]]
            for name, value in free.items()
            if names[name] in self.collapsed.positions and name in self.inner.relaxed
        }
        kept = self.inner.multipliers.store(torch.zeros_like(case), left, beta, logits, depth)
        self.inner.multipliers.users[kept] = users
        engine.slots.release(theirs)
        forest.columns["slot"][rows[theirs >= 0]] = kept[place]


def collapsed_engine(
    engine: NeuronEngine, forest: Forest, case: int, waiting: NDArray[np.int64], alive: Callable[[], None]
) -> CollapsedEngine | None:
    """An engine for a case that does with less work than the given one, and takes over the case's waiting sub-problems;
    None where there is none. alive: as in `Query`.
    """
    boxes = engine.boxes.take(torch.tensor([case]), torch.float64)
    roots = np.flatnonzero(engine.problem.roots.within.numpy() == case)
    also = {name: torch.from_numpy(np.unique(index)) for name, index in forest.splits(roots).items()}
    kept = best_kept(engine.problem, case, boxes, also)
    if kept is None:
        return None
    smaller = CollapsedEngine(engine, forest, case, kept, alive)
    smaller.adopt(engine, forest, waiting)
    return smaller
