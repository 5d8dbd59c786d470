"""Cross-entropy on the images as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from surebound.training.scene import Scene


@dataclass(frozen=True)
class Standard:
    """CE(f(x), y)."""

    def __call__(self, scene: Scene) -> Tensor:
        return F.cross_entropy(scene.clean, scene.labels)
