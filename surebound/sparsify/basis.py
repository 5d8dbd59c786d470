"""What scores are computed from, and how gradients of a training objective are taken for them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from surebound.data.dataset import Part, in_unit
from surebound.errors import DataError, UsageError
from surebound.training.loop import drawn
from surebound.training.objectives.objective import Objective
from surebound.training.objectives.standard import Standard
from surebound.training.scene import Scene
from surebound.training.trainee import Trainee


@dataclass(frozen=True, eq=False)
class Basis:
    """What criteria look at: training images, never others.

    eps: the radius in units of pixels. objective: what the network is trained for. batch: images per pass. keep: the
    fraction that is going to be kept, for criteria that learn. initial: the network before it was trained, for those
    that score it. seed: of everything random.
    """

    data: Part
    eps: float = 0.0
    objective: Objective = field(default_factory=Standard)
    batch: int = 128
    keep: float = 1.0
    initial: nn.Module | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.data) == 0:
            raise DataError("scores are means over images and there are none")
        if self.batch < 1:
            raise UsageError(f"scores need at least one image per pass, got a batch of {self.batch}")

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images in [0, 1] and labels, in order."""
        for images, labels in zip(self.data.images.split(self.batch), self.data.labels.split(self.batch), strict=True):
            yield in_unit(images), labels

    @property
    def example(self) -> Tensor:
        """One image [1, ...]."""
        return in_unit(self.data.images[:1])


def loss_gradients(network: nn.Module, basis: Basis, names: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """For each batch the gradient of its mean loss, in training mode, by the named parameters of `network`.

    The network should be a copy: running statistics move. names: its parameters by any name.
    """
    network.train()
    trainee = Trainee(network, basis.example)
    for number, (images, labels) in enumerate(basis.batches()):
        scene = Scene(trainee, images, labels, basis.eps, basis.eps, drawn(basis.seed, number))
        with torch.enable_grad():
            found = torch.autograd.grad(basis.objective(scene), list(names.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(names[name]) if gradient is None else gradient
            for name, gradient in zip(names, found, strict=True)
        }


def own_copy(network: nn.Module) -> nn.Module:
    """A copy whose parameters all take part in gradients, so that scoring leaves the network alone."""
    return copy.deepcopy(network).requires_grad_(True)
