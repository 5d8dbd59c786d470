"""How much a channel matters: per layer, by its weight's name, a tensor [C], larger where it is to be kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.sparsify.basis import Basis
from surebound.sparsify.criteria.weights import Magnitude, effective
from surebound.sparsify.layers import Channels
from surebound.sparsify.masks import masks_of, unmasked
from surebound.sparsify.select import kept
from surebound.training.objectives.objective import require
from surebound.training.objectives.regularisers import stable
from surebound.training.scene import Bounded, images_within
from surebound.training.trainee import Trainee

ChannelCriterion = Callable[[nn.Module, Basis, Mapping[str, Channels]], dict[str, Tensor]]


@dataclass(frozen=True)
class Slimming:
    """|gamma|, the norm's scale (network slimming, Liu et al. 2017)."""

    def __call__(self, network: nn.Module, basis: Basis, of: Mapping[str, Channels]) -> dict[str, Tensor]:
        bare = [name for name, channels in of.items() if channels.scale is None]
        if bare:
            raise UsageError(f"slimming looks at the scales of norms, and none stands behind the layer of '{bare[0]}'")
        scales = effective(network, [channels.scale for channels in of.values() if channels.scale is not None])
        return {name: scale.abs().double() for name, scale in zip(of, scales.values(), strict=True)}


@dataclass(frozen=True)
class Filters:
    """Mean |w| over the weights that make a channel (Li et al. 2017)."""

    def __call__(self, network: nn.Module, basis: Basis, of: Mapping[str, Channels]) -> dict[str, Tensor]:
        scores = Magnitude()(network, basis, list(of))
        return {name: score.flatten(1).mean(1) for name, score in scores.items()}


@dataclass(frozen=True)
class Refill:
    """Mean |w| over a channel's weights that are left after the smallest `rate` of those there is dropped; the channel
    that stays gets them back (structured lottery tickets, Chen et al. 2022).
    """

    rate: float = 0.2

    def __post_init__(self) -> None:
        require("refill: rate", (self.rate,), 0, 1)

    def __call__(self, network: nn.Module, basis: Basis, of: Mapping[str, Channels]) -> dict[str, Tensor]:
        scores = Magnitude()(network, basis, list(of))
        present = masks_of(network)
        there = {name: present.get(name, torch.ones_like(score, dtype=torch.bool)) for name, score in scores.items()}
        left = kept(scores, 1 - self.rate, there=there, of=there)
        return {name: (score * left[name]).flatten(1).mean(1) for name, score in scores.items()}


@dataclass(frozen=True)
class Nrs:
    """Minus the mean NRS loss of a channel's neurons: channels with many unstable neurons for their scale go first.

    -mean(-tanh(1 + l u / gamma^2)) by interval bounds over the images (Li et al. 2022).
    """

    tiny: float = 1e-20

    def __call__(self, network: nn.Module, basis: Basis, of: Mapping[str, Channels]) -> dict[str, Tensor]:
        deaf = [name for name, channels in of.items() if channels.activation is None]
        if deaf:
            raise UsageError(f"nrs looks at the ReLU behind a layer, and none reads the layer of '{deaf[0]}' alone")
        plain = unmasked(network).eval()
        trainee = Trainee(plain, basis.example)
        totals = {name: torch.zeros(channels.size, dtype=torch.float64) for name, channels in of.items()}
        with torch.no_grad():
            values = trainee.values({})
            for images, _ in basis.batches():
                layers = Bounded(trainee, values, images_within(images, basis.eps)).pre_activations
                for name, channels in of.items():
                    scale = None if channels.scale is None else values[channels.scale]
                    loss = stable(layers[channels.activation].ends, scale, self.tiny)  # pyright: ignore
                    totals[name] += loss.transpose(0, 1).flatten(1).double().mean(1) * len(images)
        return {name: -total / len(basis.data) for name, total in totals.items()}


@dataclass(frozen=True)
class RandomChannels:
    """Any order alike."""

    def __call__(self, network: nn.Module, basis: Basis, of: Mapping[str, Channels]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(basis.seed)
        return {
            name: torch.rand(channels.size, dtype=torch.float64, generator=generator) for name, channels in of.items()
        }
