"""Learning from a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.training.objectives.objective import Objective
from surebound.training.scene import Scene


@dataclass(frozen=True)
class Distilled:
    """objective + weight T^2 KL(softmax(teacher(x) / T) || softmax(f(x) / T)) on the clean images (Hinton et al. 2015).

    teacher: a network in evaluation mode; it gets no gradient. Raises UsageError unless the temperature is positive.
    """

    objective: Objective
    teacher: nn.Module
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"the temperature of a teacher must be positive, got {self.temperature}")

    def __call__(self, scene: Scene) -> Tensor:
        loss, heat = self.objective(scene), self.temperature
        with torch.no_grad():
            target = (self.teacher(scene.images) / heat).log_softmax(1)
        learnt = (scene.clean / heat).log_softmax(1)
        return loss + self.weight * heat**2 * F.kl_div(learnt, target, log_target=True, reduction="batchmean")
