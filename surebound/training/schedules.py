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
