"""Places in growing tables for what sub-problems leave to their children."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Slots:
    """Numbers of places, each with its users: the sub-problem that it was reserved for, then that one's children."""

    def __init__(self) -> None:
        self.unused: NDArray[np.int32] = np.empty(0, np.int32)
        self.capacity = 0
        self.users: NDArray[np.int32] = np.zeros(0, np.int32)

    def reserve(self, count: int) -> NDArray[np.int32]:
        """Slots for `count` sub-problems, one user each."""
        if len(self.unused) < count:
            more = max(count, self.capacity, 256)
            self.unused = np.concatenate([self.unused, np.arange(self.capacity, self.capacity + more, dtype=np.int32)])
            self.capacity += more
            self.users = np.concatenate([self.users, np.zeros(more, np.int32)])
        slots, self.unused = self.unused[:count], self.unused[count:]
        self.users[slots] = 1
        return slots

    def retain(self, slots: NDArray[np.int32]) -> None:
        """One more user of a slot, for each time that it is named; -1 is ignored."""
        np.add.at(self.users, slots[slots >= 0], 1)

    def release(self, slots: NDArray[np.int32]) -> None:
        """One user of a slot is done with it, for each time that it is named; -1 is ignored."""
        slots = slots[slots >= 0]
        np.subtract.at(self.users, slots, 1)
        done = np.unique(slots)
        self.unused = np.concatenate([self.unused, done[self.users[done] == 0]])


def grown(table: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A table of at least `shape`, holding what the old one held."""
    if table is not None and tuple(table.shape) == shape:
        return table
    larger = torch.zeros(shape, dtype=dtype)
    if table is not None and table.numel():
        larger[tuple(slice(0, size) for size in table.shape)] = table
    return larger
