"""Radii of perturbations over a run: a new shape is a class and a row of `SHAPES`.

Batches count from 0, epochs from 1, as in the papers' settings: a ramp with start=11 and length=80 begins with the
first batch of epoch 11 and is at its target when epoch 91 begins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from surebound.attacks.adversarial import require_radius
from surebound.errors import UsageError


@dataclass(frozen=True)
class Progress:
    """Where a run is: the radius of a batch, the step by which an adaptive one grew, and the loss of the batch before
    (None: not known).
    """

    eps: float = 0.0
    step: float = 0.0
    loss: float | None = None


@dataclass(frozen=True)
class Radii(ABC):
    """The radius of every batch. eps: the target."""

    eps: float

    def __post_init__(self) -> None:
        require_radius(self.eps)

    @abstractmethod
    def advance(self, state: Progress, batch: int, loss: float | None = None) -> Progress:
        """The state of a batch, whose `eps` is its radius, from the state of the batch before.

        loss: what the batch before came out with, None for none.
        """


class ByBatch(Radii):
    """A radius that depends on nothing but the batch's index."""

    @abstractmethod
    def __call__(self, batch: int) -> float:
        """The radius of a batch."""

    def advance(self, state: Progress, batch: int, loss: float | None = None) -> Progress:
        return Progress(self(batch), loss=loss)


@dataclass(frozen=True)
class Fixed(ByBatch):
    """eps in every batch."""

    def __call__(self, batch: int) -> float:
        return self.eps


@dataclass(frozen=True)
class Ramp(ByBatch):
    """What changes between the batches first = (start - 1) batches and last = (start + length - 1) batches.

    start: the epoch, from 1; length: how many epochs; batches: how many an epoch has.
    Raises UsageError for numbers that make no sense.
    """

    start: int
    length: int
    batches: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_epochs(self.start, self.batches)
        if self.length < 0:
            raise UsageError(f"a ramp lasts 0 epochs or more, got length={self.length}")

    @property
    def first(self) -> int:
        """The batch with which the ramp begins."""
        return (self.start - 1) * self.batches

    @property
    def last(self) -> int:
        """The batch with which the ramp has ended."""
        return (self.start + self.length - 1) * self.batches

    def share(self, batch: int) -> float:
        """How much of the ramp is over: 0 up to its first batch, 1 from its last."""
        if batch >= self.last:
            return 1.0
        return (batch - self.first) / (self.last - self.first) if batch > self.first else 0.0


@dataclass(frozen=True)
class Linear(Ramp):
    """A straight line from 0 to eps."""

    def __call__(self, batch: int) -> float:
        return self.eps * self.share(batch)


@dataclass(frozen=True)
class BiLinear(Ramp):
    """A straight line from 0 to eps in the middle of the ramp, and back to 0 at its end."""

    def __call__(self, batch: int) -> float:
        return self.eps * (1 - abs(2 * self.share(batch) - 1))


@dataclass(frozen=True)
class Range(Ramp):
    """eps within the ramp's epochs, 0 before and after."""

    def __call__(self, batch: int) -> float:
        return self.eps if self.first <= batch < self.last else 0.0


@dataclass(frozen=True)
class Smoothed(Ramp):
    """A power of the time up to the middle, then a straight line, without a bend between (Gowal et al. 2018).

    With a = middle - first and b = last - middle: 0 up to batch `first`, k (t - first)^power up to `middle`, then a
    line to eps at `last`, where k = eps / (b power a^(power - 1) + a^power) makes the slopes meet.
    mid: the middle as a share of the ramp, in [0, 1]; power: at least 1.
    """

    mid: float = 0.25
    power: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mid <= 1 or not 1 <= self.power < math.inf:
            raise UsageError(f"a smoothed ramp needs mid in [0, 1] and power >= 1, got {self.mid} and {self.power}")

    @property
    def middle(self) -> int:
        """The batch from which the ramp is straight."""
        return self.first + int((self.last - self.first) * self.mid)

    def __call__(self, batch: int) -> float:
        if batch <= self.first or batch >= self.last:
            return self.eps * self.share(batch)
        rise, rest = self.middle - self.first, self.last - self.middle
        unit = self.eps / (rest * self.power + rise)
        if batch >= self.middle:
            return unit * (rise + self.power * (batch - self.middle))
        return unit * rise * ((batch - self.first) / rise) ** self.power


@dataclass(frozen=True)
class Adaptive(Radii):
    """The radius grows from batch to batch, faster while the loss falls and slower when it jumps (auto_LiRPA).

    start: the epoch, from 1, with which growth begins; batches: how many an epoch has.
    A step grows by the factor `growth` up to `most` when the loss is below `falling` times the one before, or below
    `small`; it shrinks by the factor `decay` down to `least` when the loss is above `rising` times the one before.
    Raises UsageError for numbers that make no sense.
    """

    start: int
    batches: int
    least: float = 1e-9
    most: float = 1e-4
    falling: float = 1.0
    growth: float = 1.5
    rising: float = 1.5
    decay: float = 2.0
    small: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require_epochs(self.start, self.batches)
        if not 0 < self.least <= self.most:
            raise UsageError(f"steps need 0 < least <= most, got {self.least} and {self.most}")
        if self.growth < 1 or self.decay < 1 or not 0 < self.falling <= self.rising:
            raise UsageError(
                "an adaptive schedule needs growth >= 1, decay >= 1 and 0 < falling <= rising, "
                f"got {self.growth}, {self.decay}, {self.falling} and {self.rising}"
            )

    def advance(self, state: Progress, batch: int, loss: float | None = None) -> Progress:
        """As in `Radii`; raises UsageError when the loss is not finite."""
        if loss is not None and not math.isfinite(loss):
            raise UsageError(f"the radius follows the loss, and the loss is {loss}; lower the learning rate")
        if batch < (self.start - 1) * self.batches or state.eps >= self.eps:
            return replace(state, loss=loss)
        step = max(state.step, self.least)
        if loss is None or state.loss is None:
            return Progress(min(state.eps + self.least, self.eps), step, loss)
        if loss < self.falling * state.loss or loss < self.small:
            step = min(step * self.growth, self.most)
        elif loss > self.rising * state.loss:
            step = max(step / self.decay, self.least)
        return Progress(min(state.eps + step, self.eps), step, loss)


def require_epochs(start: int, batches: int) -> None:
    """Raise UsageError unless a schedule can start there and epochs have batches."""
    if start < 1 or batches < 1:
        raise UsageError(f"a schedule starts with epoch 1 or later, of 1 batch or more, got {start} and {batches}")


SHAPES: Mapping[str, type[Radii]] = MappingProxyType(
    {
        "fixed": Fixed,
        "linear": Linear,
        "smoothed": Smoothed,
        "bilinear": BiLinear,
        "range": Range,
        "adaptive": Adaptive,
    }
)
"""Shapes by the name that recipes use."""


def radii_of(shape: str, settings: Mapping[str, Any]) -> Radii:
    """The radii of a shape; of the settings those that it has."""
    made = SHAPES[shape]
    return made(**{field.name: settings[field.name] for field in fields(made) if field.name in settings})
