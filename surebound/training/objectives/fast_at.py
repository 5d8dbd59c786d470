"""Fast adversarial training (Wong et al. 2020), with the GradAlign term (Andriushchenko & Flammarion 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating, fgsm, random_start


def grad_align(network: nn.Module, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """1 - mean_b cos(g1, g2): g1 = dCE/dx at x, held fixed; g2 at x + eta, eta ~ U(-eps, eps), differentiated.

    Samples in which either gradient is zero are left out; 0 when none is left.
    """
    eta = (2 * torch.rand(images.shape, dtype=images.dtype, generator=generator).to(images.device) - 1) * eps
    here = images.detach().requires_grad_(True)
    near = (images + eta).detach().requires_grad_(True)
    (fixed,) = torch.autograd.grad(F.cross_entropy(network(here), labels, reduction="sum"), here)
    (moving,) = torch.autograd.grad(F.cross_entropy(network(near), labels, reduction="sum"), near, create_graph=True)
    first, second = fixed.flatten(1), moving.flatten(1)
    kept = ((first != 0).any(1) & (second.detach() != 0).any(1)).nonzero().squeeze(1)
    if len(kept) == 0:
        return images.new_zeros(())
    return 1 - F.cosine_similarity(first[kept], second[kept], dim=1).mean()


@dataclass(frozen=True)
class FastAdversarial:
    """CE at one signed gradient step from a random start, plus `align` times GradAlign.

    delta0 ~ U(-eps, eps), clipped so that x + delta0 is an image; delta = clip(delta0 + step eps sign(g), +-eps),
    x + delta clipped to [0, 1]. The attack runs in evaluation mode, the loss in training mode.
    eps = 0 is plain training.
    """

    eps: float
    step: float = 1.25
    align: float = 0.2

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        if self.eps == 0:
            return F.cross_entropy(network(images), labels)
        start = random_start(images, self.eps, generator)
        with evaluating(network):
            moved = fgsm(network, images, labels, self.eps, self.step * self.eps, start)
        loss = F.cross_entropy(network(moved), labels)
        if self.align == 0:
            return loss
        return loss + self.align * grad_align(network, images, labels, self.eps, generator)
