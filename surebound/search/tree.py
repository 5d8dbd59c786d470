"""The split trees of all sub-problems, as growing arrays; a sub-problem is a row.

A row stores its parent, the split that made it, and what was proven about it. Everything else (its boxes,
its path of splits) follows from the root's data and the walk up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from surebound.bounds.beta import Splits

COLUMNS = {
    "parent": np.int64,
    "root": np.int32,
    "node": np.int16,
    "index": np.int32,
    "threshold": np.float64,
    "sign": np.int8,
    "depth": np.int32,
    "lower": np.float64,
    "priority": np.float64,
    "slot": np.int32,
    "child": np.int64,
}


@dataclass(frozen=True, repr=False)
class Tree:
    """The proof tree of one disjunct: rows in the order they were made, row 0 the root.

    Row i > 0 restricts its parent by sign[i] (z - threshold[i]) >= 0 for the value z of node names[node[i]]
    at flat position index[i]; the two children of a row stand next to each other, sign -1 first, and share the
    threshold, so they cover it. `lower[i]` is the float64 lower bound that closes leaf i (-inf where it was split).
    A leaf whose `lower` is not positive is open: the search ended before it was bounded, or it was not proven.
    root_bound: how the root's intermediate boxes were obtained.
    """

    names: tuple[str, ...]
    parent: NDArray[np.int64]
    node: NDArray[np.int16]
    index: NDArray[np.int32]
    threshold: NDArray[np.float64]
    sign: NDArray[np.int8]
    lower: NDArray[np.float64]
    root_bound: str

    def __repr__(self) -> str:
        return f"Tree({len(self.parent)} rows, {len(self.leaves)} leaves, root by {self.root_bound})"

    @property
    def leaves(self) -> NDArray[np.int64]:
        """Rows without children."""
        return np.setdiff1d(np.arange(len(self.parent)), self.parent[self.parent >= 0])

    @property
    def open(self) -> NDArray[np.int64]:
        """Leaves that are not proven."""
        lower = self.lower[self.leaves]
        return self.leaves[~((lower > 0) & np.isfinite(lower))]


def single(names: tuple[str, ...], root_bound: str, margin: float) -> Tree:
    """The tree of a root whose own bound closes it."""
    node, index, sign = np.zeros(1, np.int16), np.zeros(1, np.int32), np.zeros(1, np.int8)
    return Tree(names, np.full(1, -1), node, index, np.zeros(1), sign, np.full(1, margin), root_bound)


class Paths(Protocol):
    """Sub-problems as an engine reads them."""

    names: tuple[str, ...]

    def __getitem__(self, column: str) -> NDArray[Any]:
        """A column."""
        ...

    def paths(self, rows: NDArray[np.int64]) -> Splits:
        """The splits that lead to some rows."""
        ...


class Forest:
    """Append-only columns for all sub-problems of a search.

    Column "child": of rows of a planted tree the first of their two children; 0, which is no child, for others.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.size = 0
        self.columns = {name: np.empty(1024, dtype) for name, dtype in COLUMNS.items()}
        self.ordered = (np.empty(0, np.int64), np.zeros(1, np.int64))

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column][: self.size]

    def append(self, **values: NDArray[Any] | int | float) -> NDArray[np.int64]:
        """Add rows; scalars are repeated, missing columns are zero. Returns their positions."""
        count = max(len(v) for v in values.values() if isinstance(v, np.ndarray))
        while self.size + count > len(self.columns["parent"]):
            self.columns = {name: np.concatenate([c, np.empty_like(c)]) for name, c in self.columns.items()}
        rows = slice(self.size, self.size + count)
        for name, column in self.columns.items():
            column[rows] = values.get(name, 0)
        self.size += count
        return np.arange(rows.start, rows.stop)

    def plant(self, root: int, tree: Tree) -> NDArray[np.int64]:
        """Add a tree, to be searched again: the row [1] of its root."""
        rows = self.add(root, tree)
        self.columns["child"][rows[tree.parent[1::2]]] = rows[1::2]
        return rows[:1]

    def resume(self, root: int, tree: Tree) -> NDArray[np.int64]:
        """Add a tree whose search goes on, with what is proven of it: the rows of its open leaves."""
        rows = self.add(root, tree)
        self.columns["lower"][rows] = tree.lower
        self.columns["lower"][rows[tree.open]] = -np.inf
        return rows[tree.open]

    def add(self, root: int, tree: Tree) -> NDArray[np.int64]:
        """The rows of a tree, of which nothing but the splits is known."""
        number = np.array([self.names.index(name) for name in tree.names], np.int16)
        first, depth, above = self.size, np.zeros(len(tree.parent), np.int32), tree.parent
        while (above >= 0).any():
            depth += above >= 0
            above = np.where(above >= 0, tree.parent[above], -1)
        parent = np.where(tree.parent >= 0, tree.parent + first, -1)
        split = {name: getattr(tree, name) for name in ("index", "threshold", "sign")}
        return self.append(
            parent=parent,
            root=root,
            node=number[tree.node],
            depth=depth,
            slot=-1,
            lower=-np.inf,
            priority=-np.inf,
            **split,
        )

    def paths(self, rows: NDArray[np.int64]) -> Splits:
        """The splits on the way from each row to its root, deepest first, padded with sign 0."""
        depth = int(self["depth"][rows].max(initial=0))
        shape = (len(rows), depth)
        node, index = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        threshold, sign = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
        here = rows.copy()
        for level in range(depth):
            inside = self["depth"][here] > 0
            node[:, level] = self["node"][here]
            index[:, level] = self["index"][here]
            threshold[:, level] = self["threshold"][here]
            sign[:, level] = np.where(inside, self["sign"][here], 0)
            here = np.where(inside, self["parent"][here], here)
        return Splits(
            self.names,
            torch.from_numpy(node),
            torch.from_numpy(index),
            torch.from_numpy(threshold),
            torch.from_numpy(sign),
        )

    def rows(self, root: int) -> NDArray[np.int64]:
        """The rows of one root, in order; all are sorted at once when some have been added since."""
        order, ends = self.ordered
        if len(order) != self.size:
            count = int(self["root"].max(initial=0)) + 1
            small = self["root"].astype(np.uint16) if count <= 1 << 16 else self["root"]  # 16 bits are sorted by radix
            order = np.argsort(small, kind="stable")
            ends = np.concatenate([[0], np.cumsum(np.bincount(self["root"], minlength=count))])
            self.ordered = (order, ends)
        return order[ends[root] : ends[root + 1]] if root + 1 < len(ends) else order[:0]

    def splits(self, roots: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """What was split below some roots: by the name of the node the flat positions, one for each split."""
        rows = np.concatenate([np.empty(0, np.int64), *(self.rows(int(root)) for root in roots)])
        rows = rows[(self["parent"][rows] >= 0) & (self["sign"][rows] < 0)]
        nodes, index = self["node"][rows], self["index"][rows].astype(np.int64)
        return {self.names[node]: index[nodes == node] for node in np.unique(nodes)}

    def tree(self, root: int, root_bound: str, margin: float = -np.inf) -> Tree:
        """The tree of one root, renumbered; margin: what closed a root that was never searched."""
        rows = self.rows(root)
        if not len(rows):
            return single(self.names, root_bound, margin)
        parents = self["parent"][rows]
        return Tree(
            self.names,
            np.where(parents >= 0, np.searchsorted(rows, parents), -1),
            *(self[name][rows].copy() for name in ("node", "index", "threshold", "sign", "lower")),
            root_bound=root_bound,
        )
