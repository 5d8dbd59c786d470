"""The pool: open sub-problems of many properties, bounded in full batches until all are decided.

Which sub-problems form a batch depends on bounds and counts only. A property's charge is its share of the
rows of every batch it took part in, times the batch's wall time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from surebound.search.engine import Choice, Engine
from surebound.search.ledger import Ledger
from surebound.search.problem import Problem
from surebound.search.tree import Forest
from surebound.search.verdict import Unknown

TryPoints = Callable[[NDArray[np.int64], Tensor], NDArray[np.float64]]
"""Look for witnesses: roots [N] and points [N, *shape], one each; returns how far each is from a violation."""


def lowest(values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` smallest values."""
    return np.argpartition(values, count)[:count] if count < len(values) else np.arange(len(values))


@dataclass(frozen=True)
class Pool:
    """One search: the forest, the engines by name, which engine each root uses, and the ledger of verdicts.

    persist: called before each batch with the sub-problems that wait; it may decide properties, and give engines more
    to start from or roots another engine.
    """

    problem: Problem
    forest: Forest
    engines: Mapping[str, Engine]
    engine_of: NDArray[np.object_]
    ledger: Ledger
    try_points: TryPoints | None
    persist: Callable[[NDArray[np.int64]], None]

    def run(self, waiting: NDArray[np.int64], report: Callable[[int, float], None]) -> None:
        """Branch and bound from some rows of the forest until nothing is waiting; they are all that is open of their
        roots. report(open, worst bound) after each batch.
        """
        self.ledger.open_rows(self.forest["root"][waiting])
        while True:
            self.persist(waiting)
            waiting = self.drop_decided(waiting)
            if not len(waiting):
                return
            batch, waiting = self.pick(waiting)
            waiting = np.concatenate([waiting, self.step(batch)])
            report(len(waiting), float(self.forest["lower"][waiting].min(initial=0.0)))

    def drop_decided(self, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
        """Forget sub-problems of properties that have a verdict by now."""
        self.ledger.end_expired()
        keep = self.ledger.undecided(self.forest["root"][waiting])
        gone = waiting[~keep]
        for name, engine in self.engines.items():
            engine.slots.release(self.forest["slot"][gone[self.engine_of[self.forest["root"][gone]] == name]])
        return waiting[keep]

    def pick(self, waiting: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sub-problems that share the first one's engine, and the rest.

        Half of a batch are those whose points are nearest to a violation, half those with the lowest bounds:
        both find witnesses that the other does not; a proof needs all of them in any order.
        """
        first = self.engine_of[self.forest["root"][waiting[0]]]
        alike = self.engine_of == first
        at = np.arange(len(waiting)) if alike.all() else np.flatnonzero(alike[self.forest["root"][waiting]])
        size = self.engines[str(first)].batch
        if len(at) > size:
            nearest = lowest(self.forest["priority"][waiting[at]], size // 2)
            others = np.delete(np.arange(len(at)), nearest)
            loosest = others[lowest(self.forest["lower"][waiting[at[others]]], size - len(nearest))]
            at = at[np.sort(np.concatenate([nearest, loosest]))]
        return waiting[at], np.delete(waiting, at)

    def step(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bound a batch, try its points on the network, split what stays open; returns the children."""
        roots = self.forest["root"][batch]
        engine = self.engines[str(self.engine_of[roots[0]])]
        with self.ledger.charge("search", roots, engine.name):
            found = engine.bound(batch)
            engine.slots.release(self.forest["slot"][batch])
            self.forest.columns["lower"][batch] = np.where(found.proven, found.lower, -np.inf)
            self.ledger.close(roots[found.proven], found.lower[found.proven])
            unproven = np.flatnonzero(~found.proven)
            priority = found.lower.copy()
            if self.try_points is not None and len(unproven):
                priority[unproven] = self.try_points(roots[unproven], found.points[unproven])
            planted = self.forest["child"][batch]
            stuck = unproven[~found.choice.possible[unproven, 0] & (planted[unproven] == 0)]
            self.ledger.end(roots[stuck], Unknown("a sub-problem cannot be split any further"))
            alive = ~found.proven & self.ledger.undecided(roots)
            known, new = np.flatnonzero(alive & (planted > 0)), np.flatnonzero(alive & (planted == 0))
            children, parents = self.split(batch[new], new, found.choice)
            children = np.concatenate([(planted[known, None] + np.arange(2)).ravel(), children])
            parents = np.concatenate([known.repeat(2), parents])
            self.ledger.split(roots[alive], roots[parents])
            engine.slots.retain(found.slot[parents])
            engine.slots.release(found.slot)
            self.wait(children, found.lower[parents], priority[parents], found.slot[parents])
            return children

    def split(
        self, rows: NDArray[np.int64], at: NDArray[np.int64], choice: Choice
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What some rows are split into, and which sub-problem of the choice (`at` of the rows) each comes from.

        The rows between, where several splits are made one after the other, are never bounded.
        """
        ended: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for level in range(choice.possible.shape[1]):
            further = choice.possible[at, level]
            ended.append((rows[~further], at[~further]))
            parents, at = rows[further].repeat(2), at[further].repeat(2)
            if not len(at):
                break
            rows = self.forest.append(
                parent=parents,
                root=self.forest["root"][parents],
                node=choice.node[at, level],
                index=choice.index[at, level],
                threshold=choice.threshold[at, level],
                sign=np.tile(np.array([-1, 1], np.int8), len(at) // 2),
                depth=self.forest["depth"][parents] + 1,
                lower=-np.inf,
                slot=-1,
            )
        else:
            ended.append((rows, at))
        found, owner = (np.concatenate(parts) for parts in zip(*ended, strict=True))
        return found, owner

    def wait(
        self,
        rows: NDArray[np.int64],
        lower: NDArray[np.float64],
        priority: NDArray[np.float64],
        slot: NDArray[np.int32],
    ) -> None:
        """Children wait with their parent's bound, its point's distance from a violation, and its slot.

        A bound that was not confirmed is none: only what is proven has a positive one in the forest.
        """
        columns = self.forest.columns
        columns["lower"][rows] = np.where(np.isfinite(lower), np.minimum(lower, 0), -np.inf)
        columns["priority"][rows] = np.nan_to_num(priority, nan=-np.inf)
        columns["slot"][rows] = slot
