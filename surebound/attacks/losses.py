"""What attacks raise, beyond `cross_entropy` and `margin`: differences to chosen classes, and DLR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.attacks.adversarial import Loss
from surebound.errors import UsageError

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits [B, K], labels [B] and targets [B] to one number per sample [B]; the larger, the nearer to the target."""

TINY = 1e-12
"""Added to DLR's denominator, which is zero when the largest logits are equal."""


def difference(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y, [B]."""
    return entry(logits, targets) - entry(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """(max_{j != y} z_j - z_y) / (z_(1) - z_(3)), [B], with z_(k) the k-th largest logit (Croce & Hein 2020).

    Free of the logits' scale and offset. Raises UsageError for fewer than 3 classes.
    """
    order = ranked(logits, 3, "dlr", "margin")
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    return (others - entry(logits, labels)) / (order[:, 0] - order[:, 2] + TINY)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2), [B] (Croce & Hein 2020).

    Raises UsageError for fewer than 4 classes.
    """
    order = ranked(logits, 4, "targeted_dlr", "difference")
    return difference(logits, labels, targets) / (order[:, 0] - (order[:, 2] + order[:, 3]) / 2 + TINY)


def entry(logits: Tensor, classes: Tensor) -> Tensor:
    """Each sample's logit of its class, [B]."""
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def ranked(logits: Tensor, count: int, name: str, remedy: str) -> Tensor:
    """The `count` largest logits, descending."""
    if logits.shape[1] < count:
        raise UsageError(
            f"the loss {name} needs at least {count} classes, the network has {logits.shape[1]}; use {remedy}"
        )
    return logits.topk(count, 1).values


def likeliest(logits: Tensor, labels: Tensor, count: int | None = None) -> Tensor:
    """The `count` classes other than the label with the largest logits (None: all K - 1), descending, [B, count]."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, : logits.shape[1] - 1][:, :count]


@dataclass(frozen=True)
class Targeted:
    """Towards each of several classes in turn.

    targets: from the logits at the images [B, K] and the labels to classes [B, T]; by default all wrong ones,
    the likeliest first. A target is a direction: any wrong answer met on the way ends the search.
    """

    loss: TargetedLoss = difference
    targets: Callable[[Tensor, Tensor], Tensor] = likeliest


Aim = Callable[[Tensor, Tensor], Tensor]
"""What one try raises: logits [n, K] of the samples at some positions [n] of the batch to numbers [n]."""


def aims(loss: Loss | Targeted, logits: Tensor, labels: Tensor) -> list[Aim]:
    """One aim, or one per target."""
    if isinstance(loss, Targeted):
        return [toward(loss.loss, labels, targets) for targets in loss.targets(logits, labels).unbind(1)]
    return [lambda z, at: loss(z, labels[at])]


def toward(loss: TargetedLoss, labels: Tensor, targets: Tensor) -> Aim:
    """The aim of one target per sample."""
    return lambda z, at: loss(z, labels[at], targets[at])
