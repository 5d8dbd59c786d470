"""What changes over a run.

Learning rates are functions of the progress in [0, 1] that return a factor of the base rate.

Radii of perturbations are functions of a batch's index. Batches count from 0, epochs from 1, as in the papers'
settings: a ramp with start=11 and length=80 begins with the first batch of epoch 11 and is at its target when epoch 91
begins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from surebound.attacks.adversarial import require_radius
from surebound.errors import UsageError

Schedule = Callable[[float], float]
"""Progress (0 at the first step, 1 at the end) to a factor of each group's base learning rate."""
Radii = Callable[[int], float]
"""Index of a batch in the run to the radius of its perturbations."""


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def cosine(progress: float) -> float:
    """(1 + cos(pi progress)) / 2: from 1 down to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def multistep(milestones: Sequence[float], factor: float = 0.1) -> Schedule:
    """Multiply by `factor` whenever the progress reaches a milestone; milestones ascend within (0, 1).

    The usual "x0.1 at epochs 100 and 150 of 200" is `multistep((0.5, 0.75))`.
    """
    if list(milestones) != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
        raise UsageError(f"milestones must ascend within (0, 1) as fractions of the run, got {tuple(milestones)}")

    def rate(progress: float) -> float:
        return factor ** sum(progress >= milestone for milestone in milestones)

    return rate


def cyclic(peak: float = 0.5) -> Schedule:
    """Up in a straight line from 0 to 1 at progress `peak` and down again to 0 (Smith 2017; one cycle, as in Wong et
    al. 2020). peak: within (0, 1). Raises UsageError for another.
    """
    if not 0 < peak < 1:
        raise UsageError(f"the peak of a cyclic schedule must lie within (0, 1) as a fraction of the run, got {peak}")
    return lambda progress: max(min(progress / peak, (1 - progress) / (1 - peak)), 0.0)


def warmed_up(share: float, then: Schedule) -> Schedule:
    """A straight line from 0 to what `then` begins with, for a `share` of the run; `then` gets the rest for its run.

    share: within [0, 1). Raises UsageError for another.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the share of a run for warming up must lie within [0, 1), got {share}")

    def rate(progress: float) -> float:
        if progress < share:
            return then(0.0) * max(progress, 0.0) / share
        return then((progress - share) / (1 - share))

    return rate


@dataclass(frozen=True)
class Fixed:
    """eps in every batch."""

    eps: float

    def __post_init__(self) -> None:
        require_radius(self.eps)

    def __call__(self, batch: int) -> float:
        return self.eps


@dataclass(frozen=True)
class Ramp(ABC):
    """What changes between the batches first = (start - 1) batches and last = (start + length - 1) batches.

    eps: the target. start: the epoch, from 1; length: how many epochs; batches: how many an epoch has.
    Raises UsageError for numbers that make no sense.
    """

    eps: float
    start: int
    length: int
    batches: int

    def __post_init__(self) -> None:
        require_radius(self.eps)
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

    @abstractmethod
    def __call__(self, batch: int) -> float:
        """The radius of a batch."""


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
class Progress:
    """Where an adaptive schedule is: radius, size of its steps, loss of the batch before (None: not known)."""

    eps: float
    step: float
    loss: float | None = None


@dataclass(frozen=True)
class Adaptive:
    """The radius grows from batch to batch, faster while the loss falls and slower when it jumps (auto_LiRPA).

    eps: the target. start: the epoch, from 1, with which growth begins; batches: how many an epoch has.
    A step grows by the factor `growth` up to `most` when the loss is below `falling` times the one before, or below
    `small`; it shrinks by the factor `decay` down to `least` when the loss is above `rising` times the one before.
    Raises UsageError for numbers that make no sense.
    """

    eps: float
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
        require_radius(self.eps)
        require_epochs(self.start, self.batches)
        if not 0 < self.least <= self.most:
            raise UsageError(f"steps need 0 < least <= most, got {self.least} and {self.most}")
        if self.growth < 1 or self.decay < 1 or not 0 < self.falling <= self.rising:
            raise UsageError(
                "an adaptive schedule needs growth >= 1, decay >= 1 and 0 < falling <= rising, "
                f"got {self.growth}, {self.decay}, {self.falling} and {self.rising}"
            )

    @property
    def initial(self) -> Progress:
        """Before the first batch."""
        return Progress(0.0, self.least)

    def advance(self, state: Progress, batch: int, loss: float | None = None) -> Progress:
        """The state of a batch, whose `eps` is its radius, from the state of the batch before.

        loss: what the batch before came out with, None for none. Raises UsageError when it is not finite.
        """
        if loss is not None and not math.isfinite(loss):
            raise UsageError(f"the radius follows the loss, and the loss is {loss}; lower the learning rate")
        if batch < (self.start - 1) * self.batches or state.eps >= self.eps:
            return replace(state, loss=loss)
        if loss is None or state.loss is None:
            return Progress(min(state.eps + self.least, self.eps), state.step, loss)
        step = state.step
        if loss < self.falling * state.loss or loss < self.small:
            step = min(step * self.growth, self.most)
        elif loss > self.rising * state.loss:
            step = max(step / self.decay, self.least)
        return Progress(min(state.eps + step, self.eps), step, loss)


def require_epochs(start: int, batches: int) -> None:
    """Raise UsageError unless a schedule can start there and epochs have batches."""
    if start < 1 or batches < 1:
        raise UsageError(f"a schedule starts with epoch 1 or later, of 1 batch or more, got {start} and {batches}")
