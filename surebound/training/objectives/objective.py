"""What a training objective is."""

from __future__ import annotations

import math
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from surebound.errors import UsageError
from surebound.training.scene import Scene


class Objective(Protocol):
    """The loss of one step; one frozen dataclass per objective."""

    def __call__(self, scene: Scene) -> Tensor:
        """The mean loss, differentiable in the network's parameters.

        The network arrives in training mode and leaves in it. All random numbers come from the scene's generator.
        """
        ...


def require(name: str, values: tuple[float, ...], least: float, most: float = math.inf) -> None:
    """Raise UsageError unless all values of a field lie within [least, most]."""
    if not all(least <= value <= most for value in values):
        limits = f"lie within [{least}, {most}]" if most < math.inf else f"be at least {least}"
        raise UsageError(f"{name} must {limits}, got {', '.join(map(str, values))}")


def of_margins(lower: Tensor) -> Tensor:
    """Mean of log(1 + sum_j exp(-m_j)) for margins' lower bounds [B, K - 1]: the cross-entropy's upper bound."""
    return F.softplus((-lower).logsumexp(1)).mean()
