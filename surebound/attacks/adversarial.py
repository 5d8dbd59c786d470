"""Attacks on images for training and for measuring: one gradient step (FGSM) and projected gradient descent.

Images are [B, ...] with values in [0, 1]; eps is the l-infinity radius in the same units, which are the
network's input units. Adversarial images stay in [0, 1] and within eps. The network runs in the mode it is
in; see `evaluating`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.errors import UsageError

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""What an attack raises: logits [B, m] and labels [B] to one number per sample [B]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] per sample, [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y per sample, [B]: positive where the network is wrong."""
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.amax(1) - own.squeeze(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and afterwards put every part back into the mode it was in."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def require_radius(eps: float) -> None:
    """Raise UsageError unless eps is a finite number >= 0."""
    if not (math.isfinite(eps) and eps >= 0):
        raise UsageError(f"eps must be a finite number >= 0, in units of pixels in [0, 1]; got {eps}")


def project(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest image within eps of x and in [0, 1]."""
    return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)


def random_start(x: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
    """x + U(-eps, eps) per pixel, clipped to [0, 1]; drawn on the CPU, so equal on every device."""
    noise = torch.rand(x.shape, dtype=x.dtype, generator=generator).to(x.device)
    return (x + (2 * noise - 1) * eps).clamp(0, 1)


def input_gradient(network: Network, loss: Loss, point: Tensor, labels: Tensor) -> Tensor:
    """Each sample's gradient of its own loss by its pixels, [B, ...], detached."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(network(leaf), labels).sum(), leaf)
    return gradient


def fgsm(
    network: Network, x: Tensor, labels: Tensor, eps: float, step: float, start: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """One signed gradient step of size `step` from `start`, projected (Goodfellow et al. 2015; Wong et al. 2020)."""
    require_radius(eps)
    gradient = input_gradient(network, loss, start, labels)
    return project(start + step * gradient.sign(), x, eps)


@dataclass(frozen=True)
class Pgd:
    """Projected gradient descent (Madry et al. 2018) with random starts; the first start is the image itself.

    steps per start; step: size relative to eps, default 2.5 / steps. loss: what is raised.
    """

    steps: int = 40
    restarts: int = 2
    step: float | None = None
    loss: Loss = margin
    seed: int = 0

    def __call__(self, network: Network, x: Tensor, labels: Tensor, eps: float) -> Tensor:
        """For each image a wrongly classified one if any was met, else the one of largest loss."""
        require_radius(eps)
        generator = torch.Generator().manual_seed(self.seed)
        size = eps * (2.5 / max(1, self.steps) if self.step is None else self.step)
        best, highest = x.detach().clone(), torch.full(labels.shape, -torch.inf, dtype=x.dtype, device=x.device)
        won = torch.zeros_like(labels, dtype=torch.bool)
        for restart in range(self.restarts):
            point = x.detach() if restart == 0 else random_start(x, eps, generator)
            for count in range(self.steps + 1):
                with torch.enable_grad():
                    leaf = point.detach().requires_grad_(True)
                    logits = network(leaf)
                    values = self.loss(logits, labels)
                    (gradient,) = torch.autograd.grad(values.sum(), leaf)
                wrong = logits.detach().argmax(1) != labels
                better = (wrong & ~won) | (~won & (values.detach() > highest))
                best = torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), point, best)
                highest = torch.where(better, values.detach(), highest)
                won = won | wrong
                if count == self.steps or bool(won.all()):
                    break
                point = project(point + size * gradient.sign(), x, eps)
        return best
