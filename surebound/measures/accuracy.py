"""Accuracy: on images as they are, and on images that an attack has moved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.attacks.attack import Attack
from surebound.attacks.image_pgd import Pgd
from surebound.attacks.single_step import FGSM
from surebound.data.dataset import Part
from surebound.errors import DataError

BATCH = 512
"""Images per forward pass."""


def right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """bool [N]: where the largest logit is the label's (a tie with another class counts as wrong)."""
    with torch.no_grad(), evaluating(network):
        logits = torch.cat([network(piece) for piece in images.split(BATCH)])
    own = logits.gather(1, labels.unsqueeze(1))
    beaten = (logits >= own).sum(1) > 1
    return ~beaten & torch.isfinite(logits).all(1)


def clean_accuracy(network: nn.Module, part: Part) -> float:
    """Fraction of images classified as labelled, in evaluation mode."""
    return fraction(right(network, part.images, part.labels))


def attacked(network: nn.Module, part: Part, eps: float, attack: Attack | None = None, seed: int = 0) -> Tensor:
    """bool [N]: where the network is right on the image and on the attacked one; default attack `Pgd()`.

    eps: radius in units of pixels in [0, 1], in the attack's norm. seed: of the attack's random numbers.
    """
    chosen, generator = Pgd() if attack is None else attack, torch.Generator().manual_seed(seed)
    pieces = zip(part.images.split(BATCH), part.labels.split(BATCH), strict=True)
    return torch.cat([~chosen(network, images, labels, eps, generator).success for images, labels in pieces])


def pgd_accuracy(network: nn.Module, part: Part, eps: float, attack: Attack | None = None, seed: int = 0) -> float:
    """Fraction of images that withstand the attack: an upper bound on the verified accuracy."""
    return fraction(attacked(network, part, eps, attack, seed))


def fgsm_accuracy(network: nn.Module, part: Part, eps: float) -> float:
    """Fraction of images that withstand one step of size eps from the image: cheap, for choosing among epochs."""
    return fraction(attacked(network, part, eps, FGSM))


def fraction(flags: Tensor) -> float:
    """The share of true flags; raises DataError when there are none to count."""
    if flags.numel() == 0:
        raise DataError("an accuracy needs at least one image; the part is empty")
    return float(flags.double().mean())
