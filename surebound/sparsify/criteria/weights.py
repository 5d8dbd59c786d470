"""How much a weight matters: per parameter a tensor of its shape, larger where it is to be kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.sparsify.basis import Basis, loss_gradients, own_copy
from surebound.sparsify.masks import mask_weights, masks_of, unmasked

Scores = dict[str, Tensor]
WeightCriterion = Callable[[nn.Module, Basis, Collection[str]], Scores]
"""Scores of the named parameters of a network; what a mask has taken scores 0 or is not looked at."""


def effective(network: nn.Module, names: Collection[str]) -> Scores:
    """Parameters as they take effect, by name."""
    plain = dict(unmasked(network).named_parameters())
    return {name: plain[name].detach() for name in names}


@dataclass(frozen=True)
class Magnitude:
    """|w| (Han et al. 2015; iterative magnitude pruning, Frankle & Carbin 2019)."""

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
        return {name: weight.abs().double() for name, weight in effective(network, names).items()}


@dataclass(frozen=True)
class RandomWeights:
    """Any order alike."""

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
        generator = torch.Generator().manual_seed(basis.seed)
        shapes = {name: weight.shape for name, weight in effective(network, names).items()}
        return {name: torch.rand(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}


def connection(network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
    """|sum over passes of w dL/dw|: what the loss loses at first order when a weight's mask goes (Lee et al. 2019)."""
    own = own_copy(unmasked(network))
    taken = {name: own.get_parameter(name) for name in names}
    before = {name: weight.detach().clone() for name, weight in taken.items()}
    totals = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in taken.items()}
    for gradients in loss_gradients(own, basis, taken):
        for name, gradient in gradients.items():
            totals[name] += before[name] * gradient
    return {name: total.abs() for name, total in totals.items()}


@dataclass(frozen=True)
class Snip:
    """Connection sensitivity of the network before it was trained, under its present masks (Lee et al. 2019)."""

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
        if basis.initial is None:
            raise UsageError("snip scores the network at its initialisation; use snip-trained for the one at hand")
        return connection(mask_weights(basis.initial, masks_of(network)), basis, names)


@dataclass(frozen=True)
class SnipTrained:
    """Connection sensitivity of the network as it is; what certified pruning calls SNIP (Li et al. 2022)."""

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
        return connection(network, basis, names)


@dataclass(frozen=True)
class Taylor:
    """Mean over passes of (w dL/dw)^2 (Molchanov et al. 2019); of one pass the square of snip-trained."""

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> Scores:
        own = own_copy(unmasked(network))
        taken = {name: own.get_parameter(name) for name in names}
        totals = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in taken.items()}
        passes = 0
        for gradients in loss_gradients(own, basis, taken):
            passes += 1
            for name, gradient in gradients.items():
                totals[name] += (taken[name].detach() * gradient).double().square()
        return {name: total / passes for name, total in totals.items()}
