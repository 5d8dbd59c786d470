"""Learning rates over a run: functions of the progress in [0, 1] that return a factor of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from surebound.errors import UsageError

Schedule = Callable[[float], float]
"""Progress (0 at the first step, 1 at the end) to a factor of each group's base learning rate."""


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
