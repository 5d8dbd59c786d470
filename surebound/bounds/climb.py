"""Steps uphill for the values that a bound is optimised over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.linear.maps import picked

MEAN, SQUARE = 0.5, 0.9
"""Decay of the running mean and square. Gradients here are exact and few steps are taken: short memories reach in
5 steps what Adam's usual 0.9 and 0.999 with rate 0.1 reach in 20 (docs/decisions.md)."""

TINY = 1e-30


@dataclass(frozen=True)
class Rates:
    """First step sizes of alphas (in units of their range), betas and the logits of a conjunction's atoms.

    Each later step is `decay` times the one before. A row has settled when two steps bring less than the part
    `settled` of all that it won.
    """

    alpha: float = 0.5
    beta: float = 0.1
    decay: float = 0.8
    logit: float = 0.3
    settled: float = 1e-3


@dataclass
class Climber:
    """Adam (Kingma and Ba 2015), upwards, for one tensor of values."""

    rate: float
    decay: float
    mean: Tensor | None = None
    square: Tensor | None = None
    count: int = 0

    @torch.no_grad()
    def step(self, value: Tensor, gradient: Tensor | None, low: Tensor | None, high: Tensor | None) -> Tensor:
        """The next values, within low and high; without a gradient the same."""
        if gradient is None:
            return value.detach()
        if self.mean is None or self.square is None:
            self.mean, self.square = gradient * (1 - MEAN), gradient.square().mul_(1 - SQUARE).add_(TINY)
        else:
            self.mean.lerp_(gradient, 1 - MEAN)
            self.square.mul_(SQUARE).addcmul_(gradient, gradient, value=1 - SQUARE)
        self.count += 1
        unbiased = (1 - SQUARE**self.count) ** 0.5 / (1 - MEAN**self.count)
        new = torch.addcmul(value.detach(), self.mean, self.square.rsqrt(), value=self.rate * unbiased)
        self.rate *= self.decay
        return torch.clamp(new, low, high) if low is not None or high is not None else new

    def picked(self, groups: Tensor, rows: Tensor | None, lead: int = 0) -> Climber:
        """For some groups and rows of the values."""
        mean, square = (
            None if value is None else value[groups.squeeze(1)] if rows is None else picked(value, groups, rows, lead)
            for value in (self.mean, self.square)
        )
        return Climber(self.rate, self.decay, mean, square, self.count)
