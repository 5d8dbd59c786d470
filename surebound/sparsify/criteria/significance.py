"""How much a neuron matters: per ReLU site a tensor of the site's shape, larger where it matters more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating, fgsm
from surebound.errors import UsageError
from surebound.sparsify.basis import Basis
from surebound.sparsify.graft import ACTIVATIONS
from surebound.sparsify.sites import recorded, relu_sites

PLACES = ("before", "behind")


@dataclass(frozen=True)
class Measured:
    """What significance by measurement is told.

    attacked: the images are moved by one step of FGSM first. place: "before" the ReLU or "behind" it.
    """

    attacked: bool = False
    place: str = "before"

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise UsageError(f"neurons are looked at before or behind the ReLU, got place '{self.place}'")

    def passes(self, network: nn.Module, basis: Basis) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For each batch the sum of its losses and what the sites were given or answered, taped."""
        with evaluating(network):
            for images, labels in basis.batches():
                if self.attacked:
                    images = fgsm(network, images, labels, basis.eps, basis.eps, images)
                leaf = images.detach().requires_grad_(True)
                with torch.enable_grad(), recorded(network, ACTIVATIONS, self.place) as found:  # pyright: ignore
                    loss = F.cross_entropy(network(leaf), labels, reduction="sum")
                yield loss, found


@dataclass(frozen=True)
class Gap(Measured):
    """Mean over images of |dCE / dz|, each image's gradient by itself (linearity grafting, Chen et al. 2022)."""

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for loss, found in self.passes(network, basis):
            for name, gradient in zip(found, torch.autograd.grad(loss, list(found.values())), strict=True):
                amount = gradient.abs().sum(0, dtype=torch.float64)
                totals[name] = totals[name] + amount if name in totals else amount
        return {name: total / len(basis.data) for name, total in totals.items()}


@dataclass(frozen=True)
class Sap(Measured):
    """Mean over images of |z| (Chen et al. 2022)."""

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        for _, found in self.passes(network, basis):
            for name, value in found.items():
                amount = value.detach().abs().sum(0, dtype=torch.float64)
                totals[name] = totals[name] + amount if name in totals else amount
        return {name: total / len(basis.data) for name, total in totals.items()}


@dataclass(frozen=True)
class Vap(Measured):
    """Variance of z over images; passes are merged by Chan's formula."""

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        totals: dict[str, tuple[int, Tensor, Tensor]] = {}
        for _, found in self.passes(network, basis):
            for name, value in found.items():
                new = value.detach().double()
                count, mean = len(new), new.mean(0)
                spread = (new - mean).square().sum(0)
                if name in totals:
                    before, old_mean, old_spread = totals[name]
                    both = before + count
                    spread = spread + old_spread + (mean - old_mean).square() * (before * count / both)
                    mean, count = old_mean + (mean - old_mean) * (count / both), both
                totals[name] = (count, mean, spread)
        return {name: spread / count for name, (count, _, spread) in totals.items()}


@dataclass(frozen=True)
class RandomNeurons:
    """Any order of neurons alike: the baseline that others have to beat."""

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(basis.seed)
        shapes = relu_sites(network, basis.example, ACTIVATIONS)
        return {name: torch.rand(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


Significance = Callable[[nn.Module, Basis], dict[str, Tensor]]
