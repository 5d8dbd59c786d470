"""Attacks of one gradient step: FGSM and its random starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surebound.attacks.adversarial import Loss, cross_entropy, fgsm, random_start
from surebound.attacks.attack import Attack, Task
from surebound.attacks.balls import LINF, Ball

Start = Callable[[Tensor, float, torch.Generator], Tensor]
"""Where the gradient is taken: images, eps, random numbers -> points."""


def image_itself(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """x; nothing is drawn."""
    return x


def sign_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """x + eps/2 sign(N(0, I)), clipped to [0, 1]."""
    noise = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
    return (x + eps / 2 * noise.sign()).clamp(0, 1)


def noise_start(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """x + U(-2 eps, 2 eps): outside the ball and, at its edges, outside [0, 1]."""
    noise = torch.rand(x.shape, dtype=x.dtype, generator=generator).to(x.device)
    return x + (2 * noise - 1) * 2 * eps


@dataclass(frozen=True)
class SingleStep(Attack):
    """project(x' + step eps sign(dL/dx'(x'))), x' = start(x), into the l_inf ball and [0, 1].

    Cross-entropy has no gradient left in float32 where the network is very sure; raise `margin` there.
    """

    start: Start = image_itself
    step: float = 1.0
    loss: Loss = cross_entropy
    ball: Ball = field(default=LINF, init=False)

    def explore(self, task: Task) -> Tensor:
        begin = self.start(task.images, task.eps, task.generator)
        return fgsm(task.network, task.images, task.labels, task.eps, self.step * task.eps, begin, self.loss)


FGSM = SingleStep()
"""x + eps sign(g(x)) (Goodfellow et al. 2015)."""

R_FGSM = SingleStep(sign_start, 0.5)
"""x' = x + eps/2 sign(N(0, I)), then eps/2 sign(g(x')): two halves, so nothing is left to project (Tramer et al. 2018
with alpha = eps / 2)."""

FAST_FGSM = SingleStep(random_start, 1.25)
"""x' = x + U(-eps, eps), then 5/4 eps sign(g(x')), projected (Wong et al. 2020)."""

N_FGSM = SingleStep(noise_start, 1.0)
"""x' = x + U(-2 eps, 2 eps), then eps sign(g(x')) (de Jorge et al. 2022, with k = 2). The paper trains on the point as
it is; an attack must stay within eps, so here it is projected."""
