"""The contract of an attack on images: what goes in, what comes out, and what is checked again at the end."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import Network, evaluating, margin, require_finite, require_radius
from surebound.attacks.balls import Ball, spread
from surebound.errors import DataError

ROUNDING = 1e-6
"""How far outside of its radius rounding may put an image."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack found for B images.

    images [B, ...]: in [0, 1] and within eps. margins [B]: max_{j != y} z_j - z_y of the network at these images.
    distances [B]: from the images that were attacked, in the attack's norm.
    """

    images: Tensor
    margins: Tensor
    distances: Tensor

    @property
    def success(self) -> Tensor:
        """bool [B]: where another logit is at least the label's. A tie is a wrong answer."""
        return self.margins >= 0


@dataclass(frozen=True, eq=False)
class Task:
    """What an attack works on.

    network: in evaluation mode, refuses logits that are not finite. images [B, ...] in [0, 1]; labels int64 [B];
    logits [B, K]: at the images; eps: radius, > 0.
    """

    network: Network
    images: Tensor
    labels: Tensor
    logits: Tensor
    eps: float
    generator: torch.Generator


class Attack(ABC):
    """A search for images near given ones to which a network gives a wrong answer; a frozen dataclass each.

    ball: the norm that eps is measured in. minimal: does it look for the nearest wrong answer, so that eps may be
    infinite?
    """

    ball: Ball
    minimal: ClassVar[bool] = False

    @abstractmethod
    def explore(self, task: Task) -> Tensor:
        """The images found, in [0, 1]; for images already classified wrongly anything."""

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, eps: float, generator: torch.Generator
    ) -> Attacked:
        """Attack a batch.

        images [B, ...] in [0, 1]; labels [B] of any integer type; eps >= 0 in units of pixels, in the norm of
        `ball`; minimal attacks find nothing beyond it. generator: on the CPU, the source of all random numbers.

        The network runs in evaluation mode and is left as it was: mode, statistics, gradients of parameters.
        Images that it gets wrong already are returned as they are and count as a success at distance 0. Where an
        attack has no success, its best try is returned; the image itself, if that is farther than eps.
        Raises UsageError for a bad radius or too few classes, DataError for images outside [0, 1], labels that do
        not fit, and logits or gradients that are not finite.
        """
        if not (self.minimal and eps == math.inf):
            require_radius(eps)
        require_images(images, labels)
        if len(images) == 0:
            return Attacked(images.clone(), images.new_zeros(0), images.new_zeros(0))
        x, y = images.detach(), labels.to(images.device, torch.int64)
        with evaluating(network), torch.no_grad():
            logits = answers(network, x)
            require_labels(y, logits)
            found, right = x, margin(logits, y) < 0
            if eps > 0 and bool(right.any()):
                moved = self.explore(Task(lambda points: answers(network, points), x, y, logits, eps, generator))
                kept = right & (self.ball.length(moved - x) <= eps + ROUNDING)
                found = torch.where(spread(kept, x), moved.detach(), x)
            margins = margin(answers(network, found), y)
        return Attacked(found.clone(), margins, self.ball.length(found - x).to(x.dtype))


def answers(network: Network, points: Tensor) -> Tensor:
    """Logits [B, K]; raises DataError when they have another shape or are not finite."""
    logits = network(points)
    if logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] < 2:
        raise DataError(
            f"an attack needs a network with logits [{len(points)}, at least 2 classes] for {len(points)} images, "
            f"this one gives {list(logits.shape)}"
        )
    require_finite(logits.detach(), "the network's logits")
    return logits


def require_images(images: Tensor, labels: Tensor) -> None:
    """Raise DataError unless images are floating point in [0, 1] and there is an integer label for each."""
    if not images.is_floating_point():
        raise DataError(f"images must be floating point with values in [0, 1], got {images.dtype}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise DataError("images must have values in [0, 1]; divide by the largest pixel value (255 for bytes)")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != images.shape[:1]:
        raise DataError(
            f"labels must be integers, one for each of {len(images)} images; got {labels.dtype} {list(labels.shape)}"
        )


def require_labels(labels: Tensor, logits: Tensor) -> None:
    """Raise DataError unless each label is one of the network's classes."""
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise DataError(
            f"the network has {logits.shape[1]} classes, but the labels run from {int(labels.min())} "
            f"to {int(labels.max())}"
        )
