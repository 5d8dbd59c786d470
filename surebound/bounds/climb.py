"""Steps uphill for the values that a bound is optimised over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rates:
    """Step sizes of alphas, betas and the logits of a conjunction's atoms, and their decay per step."""

    alpha: float = 0.1
    beta: float = 0.05
    decay: float = 0.98
    logit: float = 0.3


class Climber:
    """Adam (Kingma and Ba 2015), upwards, on named values, each clamped to its limits."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, name: str, value: Tensor, low: Tensor | None, high: Tensor | None, rate: float, lead: int) -> Tensor:
        """The next value; the gradient is taken from `value.grad`."""
        gradient = value.grad
        if gradient is None:
            return value
        mean = self.mean.get(name)
        square = self.square.get(name)
        mean = self.mean[name] = 0.1 * gradient if mean is None else mean.lerp_(gradient, 0.1)
        if square is None:
            square = self.square[name] = 0.001 * gradient.square()
        else:
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        n = self.count + 1
        rate = rate * self.rates.decay**self.count * (1 - 0.999**n) ** 0.5 / (1 - 0.9**n)
        new = torch.addcdiv(value.detach(), mean, square.sqrt().add_(1e-12), value=rate)
        if low is not None or high is not None:
            new = torch.clamp(new, low, high)
        return new.requires_grad_()

    def advance(self) -> None:
        """One step is done."""
        self.count += 1
