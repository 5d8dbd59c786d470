"""Iterated ascent within a ball: targets, restarts, and what is kept of them; the steps are a subclass's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.attacks.adversarial import Loss, Network, margin
from surebound.attacks.attack import Attack, Task
from surebound.attacks.balls import LINF, Ball, spread
from surebound.attacks.losses import Aim, Targeted, aims
from surebound.errors import UsageError


@dataclass(frozen=True, eq=False)
class Climb:
    """One ascent: from `start` within eps of x, raising `values` of the logits; labels say what a success is."""

    network: Network
    values: Callable[[Tensor], Tensor]
    labels: Tensor
    x: Tensor
    start: Tensor
    eps: float

    @staticmethod
    def of(task: Task, aim: Aim, begin: Tensor, at: Tensor) -> Climb:
        """Of the samples at some positions of a task."""

        def values(logits: Tensor) -> Tensor:
            return aim(logits, at)

        return Climb(task.network, values, task.labels[at], task.images[at], begin[at], task.eps)


@dataclass(frozen=True, eq=False)
class Best:
    """The best points met [B, ...] and their margins [B]: the first success, or else the largest margin."""

    points: Tensor
    margins: Tensor

    def or_else(self, points: Tensor, logits: Tensor, labels: Tensor) -> Best:
        """With other points taken into account."""
        margins = margin(logits, labels)
        better = (self.margins < 0) & (margins > self.margins)
        kept = torch.where(spread(better, points), points, self.points)
        return Best(kept, torch.where(better, margins, self.margins))

    @property
    def complete(self) -> bool:
        """Has every sample a success?"""
        return bool((self.margins >= 0).all())


@dataclass(frozen=True)
class Ascent(Attack):
    """`steps` gradient steps for each target and start.

    The first start is the image itself, others are random in the ball. loss: what is raised, towards one target
    after the other if it is `Targeted`. Samples with a success are not attacked again.
    """

    steps: int = 40
    restarts: int = 1
    loss: Loss | Targeted = margin
    ball: Ball = LINF

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise UsageError(f"steps and restarts must be at least 1, got {self.steps} and {self.restarts}")

    @abstractmethod
    def climb(self, climb: Climb) -> Best:
        """The best points of one ascent."""

    def explore(self, task: Task) -> Tensor:
        points, margins = task.images.clone(), margin(task.logits, task.labels)
        for restart in range(self.restarts):
            begin = task.images if restart == 0 else self.ball.start(task.images, task.eps, task.generator)
            for aim in aims(self.loss, task.logits, task.labels):
                at = (margins < 0).nonzero().squeeze(1)
                if len(at) == 0:
                    return points
                found = self.climb(Climb.of(task, aim, begin, at))
                better = found.margins > margins[at]
                points[at[better]], margins[at[better]] = found.points[better], found.margins[better]
        return points
