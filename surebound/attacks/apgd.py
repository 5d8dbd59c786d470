"""Auto-PGD: ascent that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surebound.attacks.adversarial import slope
from surebound.attacks.ascent import Ascent, Best, Climb
from surebound.attacks.balls import spread

FIRST, SHORTER, SHORTEST = 22, 3, 6
"""The first stretch between checkpoints, by how much each is shorter than the one before, and the shortest: per cent
of all steps, as integers, for 0.57 x 100 steps are not more than 57."""

RISES = 0.75
"""The part of a stretch's steps that must have raised the loss, or else the step size is halved."""

FORWARD = 0.75
"""The share of the new step in the next move; the rest repeats the last move."""


def checkpoints(steps: int) -> tuple[int, ...]:
    """ceil(p_j steps) for p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), up to steps."""
    marks, stretch = [FIRST], FIRST
    while marks[-1] < 100:
        stretch = max(stretch - SHORTER, SHORTEST)
        marks.append(marks[-1] + stretch)
    return tuple(dict.fromkeys(-(-mark * steps // 100) for mark in marks if mark <= 100))


@dataclass(frozen=True)
class Apgd(Ascent):
    """Croce & Hein 2020, algorithm 1, each sample with a step size of its own.

    z = project(x_k + eta d), x_{k+1} = project(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_{k-1})), eta = 2 eps at first.
    At a checkpoint eta is halved, and the ascent goes on from the point of largest loss, if fewer than 3/4 of the
    steps since the last checkpoint raised the loss, or if eta was kept there and the largest loss has not grown since.
    """

    steps: int = 100

    def climb(self, climb: Climb) -> Best:
        ball, marks = self.ball, checkpoints(self.steps)
        unknown = torch.full_like(climb.x.flatten(1)[:, 0], -torch.inf)
        best, point, before = Best(climb.start, unknown), climb.start, climb.start
        size = torch.full_like(unknown, 2 * climb.eps)
        top, uphill, peak, last = point, torch.zeros_like(point), unknown, -unknown
        peak_then, halved_then, then = unknown, torch.zeros_like(unknown, dtype=torch.bool), 0
        rises = torch.zeros_like(unknown)
        for count in range(self.steps + 1):
            logits, values, gradient = slope(climb.network, climb.values, point)
            best = best.or_else(point, logits, climb.labels)
            if count == self.steps or best.complete:
                break
            rises, last, higher = rises + (values > last), values, values > peak
            peak = torch.where(higher, values, peak)
            top = torch.where(spread(higher, point), point, top)
            uphill = torch.where(spread(higher, point), gradient, uphill)
            if count in marks:
                halved = (rises < RISES * (count - then)) | (~halved_then & (peak <= peak_then))
                size = torch.where(halved, size / 2, size)
                point = torch.where(spread(halved, point), top, point)
                gradient = torch.where(spread(halved, point), uphill, gradient)
                peak_then, halved_then, then, rises = peak, halved, count, torch.zeros_like(rises)
            step = ball.project(point + spread(size, point) * ball.steepest(gradient), climb.x, climb.eps)
            if count > 0:
                step = point + FORWARD * (step - point) + (1 - FORWARD) * (point - before)
                step = ball.project(step, climb.x, climb.eps)
            point, before = step, point
        return best
