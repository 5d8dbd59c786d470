"""The four empirical robustness values: accuracy under FGSM and R-FGSM, distances found by DeepFool and by
Carlini and Wagner. They are estimates by attacks, never to be mixed with what is proven.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from surebound.attacks.attack import Attack
from surebound.attacks.carlini_wagner import CarliniWagner
from surebound.attacks.deepfool import DeepFool
from surebound.attacks.single_step import FGSM, R_FGSM
from surebound.data.dataset import Part
from surebound.errors import DataError, UsageError
from surebound.measures.accuracy import BATCH, attacked, fraction, right


@dataclass(frozen=True)
class Distances:
    """r_2 of a part.

    mean: distance to the wrong answer found, over the rightly classified images for which one was found; NaN if
    there are none. images, right, found: how many there are, are classified rightly, and of these were moved over.
    """

    mean: float
    images: int
    right: int
    found: int

    @property
    def expected(self) -> float:
        """E[1[right] distance] over all images: a wrong answer counts as distance 0. Images without a find are taken
        to be as far as the others; with `found` < `right` this is a guess.
        """
        return 0.0 if self.right == 0 else self.mean * self.right / self.images


@dataclass(frozen=True)
class Robustness:
    """r_inf by FGSM and R-FGSM, r_2 by DeepFool and by Carlini and Wagner, of one network on one part."""

    fgsm: float
    r_fgsm: float
    deepfool: Distances
    carlini_wagner: Distances


def r_inf(network: nn.Module, part: Part, eps: float, attack: Attack = FGSM, seed: int = 0) -> float:
    """E[1[y = argmax z(x_adv)]]: the accuracy under an attack of l_inf radius eps; meant for `FGSM` and `R_FGSM`.

    Images that are classified wrongly stay wrong. Raises DataError for an empty part.
    """
    return fraction(attacked(network, part, eps, attack, seed))


def r_2(network: nn.Module, part: Part, attack: Attack | None = None, seed: int = 0) -> Distances:
    """The mean l2 distance of rightly classified images from the nearest wrong answer that `attack` finds.

    attack: one that looks for the nearest wrong answer, by default `DeepFool()`; the distance is that of the image
    after clipping to [0, 1]. Raises UsageError for other attacks, DataError for an empty part.
    """
    chosen = DeepFool() if attack is None else attack
    if not chosen.minimal:
        raise UsageError(f"{type(chosen).__name__} does not look for the nearest wrong answer; DeepFool does")
    if len(part) == 0:
        raise DataError("a mean distance needs at least one image; the part is empty")
    generator = torch.Generator().manual_seed(seed)
    good = part.take(right(network, part.images, part.labels).nonzero().squeeze(1).cpu())
    distances = [torch.zeros(0, dtype=torch.float64)]
    for images, labels in zip(good.images.split(BATCH), good.labels.split(BATCH), strict=True):
        found = chosen(network, images, labels, math.inf, generator)
        distances.append(found.distances[found.success].double().cpu())
    every = torch.cat(distances)
    return Distances(float(every.mean()), len(part), len(good), len(every))


def robustness(
    network: nn.Module, part: Part, eps: float, seed: int = 0, carlini_wagner: CarliniWagner | None = None
) -> Robustness:
    """All four values. eps: the l_inf radius of the first two. carlini_wagner: with another budget than its own,
    which is thousands of gradients per image.
    """
    return Robustness(
        r_inf(network, part, eps, FGSM, seed),
        r_inf(network, part, eps, R_FGSM, seed),
        r_2(network, part, DeepFool(), seed),
        r_2(network, part, carlini_wagner or CarliniWagner(), seed),
    )
