"""The balls that attacks stay in: how far, which way is steepest, the nearest admissible image, a random one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.attacks.adversarial import project, random_start

REFINEMENTS = 30
"""At most so many sets of clipped pixels are tried by the l2 projection; each is admissible, the last nearest."""


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One number per sample [B] in the shape [B, 1, ...] that meets images [B, ...]."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


class Ball(ABC):
    """{z in [0, 1]^n : |z - x| <= eps} for images x [B, ...] in [0, 1]; one radius for all of them."""

    @abstractmethod
    def length(self, step: Tensor) -> Tensor:
        """The norm of each sample's step, [B], in float64."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The step of norm 1 along which a gradient [B, ...] rises most; zero where the gradient is."""

    @abstractmethod
    def project(self, point: Tensor, x: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball."""

    @abstractmethod
    def start(self, x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        """A random point of the ball, drawn on the CPU."""


@dataclass(frozen=True)
class LinfBall(Ball):
    """The largest change of a pixel counts."""

    def length(self, step: Tensor) -> Tensor:
        return step.detach().double().flatten(1).abs().amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, point: Tensor, x: Tensor, eps: float) -> Tensor:
        return project(point, x, eps)

    def start(self, x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        return random_start(x, eps, generator)


@dataclass(frozen=True)
class L2Ball(Ball):
    """The Euclidean length of the change, over all pixels of an image, counts."""

    def length(self, step: Tensor) -> Tensor:
        return step.detach().double().flatten(1).norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """g / |g|_2, scaled by its largest entry first: squares of small gradients are zero in float32."""
        tiny = torch.finfo(gradient.dtype).tiny
        flat = gradient.flatten(1)
        scaled = flat / flat.abs().amax(1, keepdim=True).clamp(min=tiny)
        return (scaled / scaled.norm(dim=1, keepdim=True).clamp(min=tiny)).reshape(gradient.shape)

    def project(self, point: Tensor, x: Tensor, eps: float) -> Tensor:
        """The nearest point of the ball is x + clip(s (point - x)) for the largest s <= 1 that keeps it within eps,
        where clip keeps pixels in [0, 1].

        s grows from eps / |point - x| to its value: each time it is solved for, with the pixels that are clipped
        so far held fixed. More may be clipped then, which only shortens the step: every s on the way is admissible.
        """
        step = (point - x).double().flatten(1)
        low, high = -x.double().flatten(1), 1 - x.double().flatten(1)
        room = torch.where(step > 0, high, -low)
        fits = torch.minimum(step.abs(), room).norm(dim=1, keepdim=True) <= eps
        scale = torch.zeros_like(step[:, :1])
        for _ in range(REFINEMENTS):
            clipped = scale * step.abs() > room
            spent = torch.where(clipped, room, 0).square().sum(1, keepdim=True)
            free = torch.where(clipped, 0, step).square().sum(1, keepdim=True)
            left = (eps**2 - spent).clamp(min=0)
            larger = torch.where(fits, 1.0, (left / free.clamp(min=torch.finfo(free.dtype).tiny)).sqrt().clamp(max=1))
            if torch.equal(larger, scale):
                break
            scale = larger
        moved = torch.maximum(torch.minimum(scale * step, high), low)
        return (x + moved.to(x.dtype).reshape(x.shape)).clamp(0, 1)

    def start(self, x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
        """Uniform in the ball, then into [0, 1]."""
        direction = self.steepest(torch.randn(x.shape, dtype=x.dtype, generator=generator))
        radius = eps * torch.rand(len(x), dtype=x.dtype, generator=generator) ** (1 / max(1, x[0].numel()))
        return (x + (spread(radius, x) * direction).to(x.device)).clamp(0, 1)


LINF: Ball = LinfBall()
L2: Ball = L2Ball()
