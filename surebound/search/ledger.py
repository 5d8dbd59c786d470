"""Who has been decided, what it cost, and what is still open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from surebound.search.verdict import Outcome, Unknown, Verdict

STAGES = ("attack", "bound", "search")


class Ledger:
    """Verdicts, charges and node counts by property; open sub-problems and margins by root."""

    def __init__(self, prop_of: NDArray[np.int64], properties: int, timeout: float) -> None:
        self.prop_of, self.timeout = prop_of, timeout
        self.verdicts: list[Verdict | None] = [None] * properties
        self.engine = ["crown"] * properties
        self.nodes = np.zeros(properties, np.int64)
        self.charged = np.zeros(properties)
        self.seconds = {stage: np.zeros(properties) for stage in STAGES}
        self.open_count = np.ones(len(prop_of), np.int64)
        self.margin = np.full(len(prop_of), np.inf)

    def undecided(self, roots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each root: does its property still lack a verdict?"""
        lacking = np.array([verdict is None for verdict in self.verdicts], bool)
        return lacking[self.prop_of[roots]]

    def roots_open(self) -> NDArray[np.int64]:
        """Roots with open sub-problems, of undecided properties."""
        roots = np.flatnonzero(self.open_count > 0)
        return roots[self.undecided(roots)]

    def refuted(self, prop: int) -> bool:
        """Are all roots of a property closed?"""
        return bool((self.open_count[self.prop_of == prop] == 0).all())

    def proof_margin(self, prop: int) -> float | None:
        """The least bound of a property's leaves if it has no verdict and they prove it: all roots are closed, by a
        margin that is finite and positive.
        """
        margin = float(self.margin[self.prop_of == prop].min())
        proven = self.verdicts[prop] is None and self.refuted(prop) and np.isfinite(margin) and margin > 0
        return margin if proven else None

    @property
    def finished(self) -> NDArray[np.bool_]:
        """By property: has it a verdict, or nothing left open?"""
        closed = np.bincount(self.prop_of, self.open_count > 0, len(self.verdicts)) == 0
        return closed | np.array([verdict is not None for verdict in self.verdicts], bool)

    def open_rows(self, roots: NDArray[np.int64]) -> None:
        """A search starts: the open sub-problems are of these roots."""
        found, counts = np.unique(roots, return_counts=True)
        self.open_count[found] = counts

    def close(self, roots: NDArray[np.int64], lower: NDArray[np.float64]) -> None:
        """Sub-problems proven, with their float64 margins."""
        np.subtract.at(self.open_count, roots, 1)
        np.minimum.at(self.margin, roots, lower)

    def split(self, roots: NDArray[np.int64], children: NDArray[np.int64]) -> None:
        """Sub-problems of these roots are replaced by their children, which have these."""
        np.subtract.at(self.open_count, roots, 1)
        np.add.at(self.open_count, children, 1)

    def end(self, roots: NDArray[np.int64], verdict: Verdict) -> None:
        """The properties of these roots have this verdict, unless they have one."""
        for prop in np.unique(self.prop_of[roots]):
            if self.verdicts[prop] is None:
                self.verdicts[prop] = verdict

    def end_expired(self) -> None:
        """Properties whose charge has reached the timeout are Unknown, unless nothing of them is open."""
        for prop in np.flatnonzero(self.charged >= self.timeout):
            if self.verdicts[prop] is None and not self.refuted(int(prop)):
                self.verdicts[prop] = Unknown(self.too_late, "timeout")

    def left(self, roots: NDArray[np.int64]) -> float:
        """Seconds that the properties of these roots may still spend, together."""
        props = np.unique(self.prop_of[roots])
        return float(np.maximum(self.timeout - self.charged[props], 0).sum())

    @property
    def too_late(self) -> str:
        """The reason of a timeout."""
        return f"not decided within {self.timeout:.3g} s"

    @contextmanager
    def charge(self, stage: str, roots: NDArray[np.int64], engine: str | None = None) -> Iterator[None]:
        """Charge the block's time to the properties of `roots`, by their number of rows, and name its engine.

        Where an engine is named, outside the attack each row is a sub-problem bounded; an attack is named by those only
        that it decides.
        """
        props, counts = np.unique(self.prop_of[roots], return_counts=True)
        began = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - began
            if len(props):
                self.charged[props] += spent * counts / counts.sum()
                self.seconds[stage][props] += spent
            if engine is not None:
                if stage != "attack":
                    self.nodes[props] += counts
                for prop in props.tolist():
                    if stage != "attack" or self.verdicts[prop] is not None:
                        self.engine[prop] = engine

    def outcome(self, prop: int, verdict: Verdict) -> Outcome:
        """Everything known about one property."""
        return Outcome(
            verdict,
            int(self.nodes[prop]),
            self.engine[prop],
            {stage: float(seconds[prop]) for stage, seconds in self.seconds.items()},
            float(self.charged[prop]),
        )
