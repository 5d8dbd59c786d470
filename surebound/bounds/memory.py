"""How much may be held at once, and the cutting of work into pieces that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from surebound.errors import OutOfMemory

T = TypeVar("T")
COPIES = 6
"""Tensors of a walk's size that are alive at its widest point (coefficients, choice of lines, results)."""


@dataclass(frozen=True)
class Memory:
    """A budget in bytes for one pass, and the bytes of rows that are best worked on at once.

    On a CPU rows that fit into its caches are walked fastest (docs/decisions.md); they also keep the peak low.
    """

    budget: int = 1 << 30
    at_once: int = 1 << 26

    def rows(self, widest: int, dtype: torch.dtype) -> int:
        """How many rows over a node of `widest` values fit."""
        return max(1, self.budget // (COPIES * max(1, widest) * torch.finfo(dtype).bits // 8))

    def piece(self, values: int, dtype: torch.dtype) -> int:
        """How many rows that hold `values` numbers each are worked on at once."""
        return max(1, min(self.budget, self.at_once) // (max(1, values) * torch.finfo(dtype).bits // 8))


def pieces(total: int, size: int) -> Iterator[slice]:
    """Cut range(total) into slices of at most `size`."""
    for begin in range(0, total, size):
        yield slice(begin, min(begin + size, total))


def chunked(fn: Callable[[slice], T], total: int, size: int) -> list[T]:
    """fn on each piece; a piece that runs out of memory is halved and tried again.

    Raises OutOfMemory when a single item does not fit.
    """
    results: list[T] = []
    begin = 0
    while begin < total:
        piece = slice(begin, min(begin + size, total))
        try:
            results.append(fn(piece))
            begin = piece.stop
        except (torch.OutOfMemoryError, MemoryError) as error:
            if piece.stop - piece.start == 1:
                raise OutOfMemory(f"one row of {total} does not fit into memory: {error}") from error
            size = (piece.stop - piece.start + 1) // 2
    return results
