"""What a bounding engine of the search does with a batch of sub-problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.search.slots import Slots


@dataclass(frozen=True)
class Choice:
    """The splits an engine proposes for each sub-problem [N, L], to be made one after the other: those before the first
    that is not possible. Nothing is left to split where that is so of all.
    """

    node: NDArray[np.int16]
    index: NDArray[np.int32]
    threshold: NDArray[np.float64]
    possible: NDArray[np.bool_]

    def among(self, count: int, at: NDArray[np.int64]) -> Choice:
        """The splits of those `at` some places among `count` sub-problems; nothing is possible for the others."""
        place, known = np.zeros(count, np.int64), np.zeros((count, 1), np.bool_)
        place[at], known[at] = np.arange(len(at)), True
        return Choice(self.node[place], self.index[place], self.threshold[place], self.possible[place] & known)


@dataclass(frozen=True)
class Bounded:
    """lower [N] float64: the margin's bound; proven [N]: it is finite, positive and computed in float64.

    points [N, *shape]: where the bound is attained in the relaxation, worth trying on the network.
    choice: of the sub-problems that are not proven. slot [N]: where their multipliers are kept, -1 for no place.
    """

    lower: NDArray[np.float64]
    proven: NDArray[np.bool_]
    points: Tensor
    choice: Choice
    slot: NDArray[np.int32]


class Engine(Protocol):
    """Bounds sub-problems given by their rows in the forest."""

    name: str

    @property
    def slots(self) -> Slots:
        """Where sub-problems leave what their children start from."""
        ...

    @property
    def batch(self) -> int:
        """How many sub-problems to bound at once."""
        ...

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        """Bound the sub-problems and propose splits."""
        ...


def confirmed(lower: Tensor) -> NDArray[np.bool_]:
    """The rule of a proof: a finite, positive float64 margin."""
    assert lower.dtype == torch.float64
    return (torch.isfinite(lower) & (lower > 0)).numpy()
