"""Certified training: the loss is raised to what it can be at most anywhere in the box.

Mixes follow the ramp of the radius: kappa weighs the clean loss, beta CROWN's bounds against IBP's; each goes in a
straight line from its first value (at radius 0) to its last (at the radius aimed at).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.training.fusion import fused
from surebound.training.objectives.objective import of_margins, require
from surebound.training.scene import Scene

Ends = tuple[float, float]


def between(ends: Ends, ramp: float) -> float:
    """The value at a point of the ramp."""
    return ends[0] + (ends[1] - ends[0]) * ramp


def mixed(scene: Scene, kappa: Ends, robust: Tensor) -> Tensor:
    """kappa CE(f(x), y) + (1 - kappa) robust."""
    weight = between(kappa, scene.ramp)
    if weight == 0:
        return robust
    return weight * F.cross_entropy(scene.clean, scene.labels) + (1 - weight) * robust


@dataclass(frozen=True)
class Ibp:
    """Cross-entropy of the margins' lower bounds by intervals (Gowal et al. 2018; Shi et al. 2021 with kappa 0)."""

    kappa: Ends = (0.0, 0.0)

    def __post_init__(self) -> None:
        require("kappa", self.kappa, 0, 1)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        return mixed(scene, self.kappa, of_margins(scene.bounded.ibp(scene.margins)))


@dataclass(frozen=True)
class CrownIbp:
    """The same with bounds beta CROWN + (1 - beta) IBP, CROWN on intermediate boxes by IBP (Zhang et al. 2020).

    fusion: bound sum_k exp(z_k - z_y) by one row instead of every margin by its own (Xu et al. 2020, section 3.3).
    """

    beta: Ends = (1.0, 0.0)
    kappa: Ends = (0.0, 0.0)
    fusion: bool = False

    def __post_init__(self) -> None:
        require("beta", self.beta, 0, 1)
        require("kappa", self.kappa, 0, 1)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        beta, rows = between(self.beta, scene.ramp), scene.margins
        if self.fusion:
            return mixed(scene, self.kappa, fused(scene.bounded, scene.labels, beta))
        lower = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device)
        if beta > 0:
            lower = lower + beta * scene.bounded.crown(rows)
        if beta < 1:
            lower = lower + (1 - beta) * scene.bounded.ibp(rows)
        return mixed(scene, self.kappa, of_margins(lower))
