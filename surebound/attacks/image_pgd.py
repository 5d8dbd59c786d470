"""Projected gradient ascent on images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surebound.attacks.adversarial import slope
from surebound.attacks.ascent import Ascent, Best, Climb


@dataclass(frozen=True)
class Pgd(Ascent):
    """x <- project(x + step eps d), d the steepest step of norm 1: sign(g) or g / |g|_2 (Madry et al. 2018).

    step: default 2.5 / steps.
    """

    restarts: int = 2
    step: float | None = None

    def climb(self, climb: Climb) -> Best:
        size = climb.eps * (2.5 / self.steps if self.step is None else self.step)
        point, best = climb.start, Best(climb.start, torch.full_like(climb.x.flatten(1)[:, 0], -torch.inf))
        for count in range(self.steps + 1):
            logits, _, gradient = slope(climb.network, climb.values, point)
            best = best.or_else(point, logits, climb.labels)
            if count == self.steps or best.complete:
                break
            point = self.ball.project(point + size * self.ball.steepest(gradient), climb.x, climb.eps)
        return best
