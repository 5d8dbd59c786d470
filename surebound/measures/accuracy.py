"""Accuracy: on images as they are, and on images that an attack has moved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import Pgd, evaluating, fgsm
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


def attacked(network: nn.Module, part: Part, eps: float, attack: Pgd | None = None) -> Tensor:
    """bool [N]: where the network is right on the image and on the attacked one; default attack `Pgd()`.

    eps: l-infinity radius in units of pixels in [0, 1].
    """
    chosen = Pgd() if attack is None else attack
    with evaluating(network):
        pieces = zip(part.images.split(BATCH), part.labels.split(BATCH), strict=True)
        moved = torch.cat([chosen(network, images, labels, eps) for images, labels in pieces])
    return right(network, part.images, part.labels) & right(network, moved, part.labels)


def pgd_accuracy(network: nn.Module, part: Part, eps: float, attack: Pgd | None = None) -> float:
    """Fraction of images that withstand the attack: an upper bound on the verified accuracy."""
    return fraction(attacked(network, part, eps, attack))


def fgsm_accuracy(network: nn.Module, part: Part, eps: float) -> float:
    """Fraction of images that withstand one step of size eps from the image: cheap, for choosing among epochs."""
    with evaluating(network):
        moved = fgsm(network, part.images, part.labels, eps, eps, part.images)
    return fraction(right(network, moved, part.labels))


def fraction(flags: Tensor) -> float:
    """The share of true flags; raises DataError when there are none to count."""
    if flags.numel() == 0:
        raise DataError("an accuracy needs at least one image; the part is empty")
    return float(flags.double().mean())
