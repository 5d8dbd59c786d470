"""Averages of a run's weights over its steps; running statistics of norms are averaged with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from surebound.errors import UsageError


class Averaging(Protocol):
    """How the weights of a step go into the average."""

    def share(self, step: int) -> float:
        """The part of the average that the weights after a step (from 1) make; the old average is the rest."""
        ...


@dataclass(frozen=True)
class Ema:
    """Older weights fade by the factor `decay` in every step, beginning with those the run begins with."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UsageError(f"the decay of averaged weights must lie in [0, 1), got {self.decay}")

    def share(self, step: int) -> float:
        return 1 - self.decay


@dataclass(frozen=True)
class Swa:
    """The plain mean of the weights after step `first` and every `every` steps from there (Izmailov et al. 2018).

    Before that step the average is the newest weights.
    """

    first: int
    every: int

    def __post_init__(self) -> None:
        if self.first < 1 or self.every < 1:
            raise UsageError(f"averaging needs a first step and a stride of at least 1, got {self.first}, {self.every}")

    def share(self, step: int) -> float:
        if step <= self.first:
            return 1.0
        taken, rest = divmod(step - self.first, self.every)
        return 0.0 if rest else 1 / (taken + 1)
