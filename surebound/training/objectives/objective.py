"""What a training objective is."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Objective(Protocol):
    """The loss of one batch; one frozen dataclass per objective."""

    def __call__(self, network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss, differentiable in the network's parameters.

        images [B, C, H, W] in [0, 1]. The network arrives in training mode and leaves in it. All random
        numbers come from `generator` (CPU).
        """
        ...
