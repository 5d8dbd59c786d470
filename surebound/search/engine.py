"""What a bounding engine of the search does with a batch of sub-problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """The split an engine proposes for each sub-problem [N]; possible is False where nothing is left."""

    node: NDArray[np.int16]
    index: NDArray[np.int32]
    threshold: NDArray[np.float64]
    possible: NDArray[np.bool_]

    def put(self, at: NDArray[np.int64], other: Choice) -> None:
        """Fill in the splits of some sub-problems."""
        self.node[at], self.index[at] = other.node, other.index
        self.threshold[at], self.possible[at] = other.threshold, other.possible


@dataclass(frozen=True)
class Bounded:
    """lower [N] float64: the margin's bound; proven [N]: it is finite, positive and computed in float64.

    points [N, *shape]: where the bound is attained in the relaxation, worth trying on the network.
    choice: of the sub-problems that are not proven. slot [N]: where their multipliers are kept.
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
    def batch(self) -> int:
        """How many sub-problems to bound at once."""
        ...

    def bound(self, rows: NDArray[np.int64]) -> Bounded:
        """Bound the sub-problems and propose splits."""
        ...

    def release(self, slots: NDArray[np.int32]) -> None:
        """One of the two children of the sub-problems with these multipliers is done; -1 means none."""
        ...


def confirmed(lower: Tensor) -> NDArray[np.bool_]:
    """The rule of a proof: a finite, positive float64 margin."""
    assert lower.dtype == torch.float64
    return (torch.isfinite(lower) & (lower > 0)).numpy()
