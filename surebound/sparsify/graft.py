"""Linearity grafting (Chen et al. 2022): some ReLUs become lines with trainable slope and intercept.

A grafted neuron is affine, so a verifier neither relaxes nor splits it. A line fixed at zero removes the
neuron: pruning is the same surgery.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.nets.grafted import GatedReLU, GraftedReLU
from surebound.sparsify.sites import Masks
from surebound.training.loop import Group

Network = TypeVar("Network", bound=nn.Module)


ACTIVATIONS = (nn.ReLU, GraftedReLU)
"""Modules whose neurons criteria look at."""


def graft(
    network: Network,
    masks: Masks,
    slope: Mapping[str, Tensor] | float = 0.4,
    intercept: Mapping[str, Tensor] | float = 0.0,
    trained: bool = True,
) -> Network:
    """A copy of the network whose ReLUs named by `masks` are grafted where their mask is true.

    slope, intercept: where the lines start, one number or a tensor per site; the default is the released one. trained:
    do the lines take part in training? Neurons that are grafted already stay so and keep their lines.
    Raises UsageError when a name is not that of a ReLU module, or a mask has another shape than a former one.
    """
    changed = copy.deepcopy(network)
    sites = {name: module for name, module in changed.named_modules() if isinstance(module, ACTIVATIONS)}
    dtype = next((p.dtype for p in changed.parameters()), torch.float32)
    for name, mask in masks.items():
        if name not in sites:
            known = ", ".join(sorted(sites)) or "none"
            raise UsageError(
                f"'{name}' is not a torch.nn.ReLU of the network (those are: {known}); correct the mask's name"
            )
        made = GraftedReLU(mask, of_site(slope, name), of_site(intercept, name), trained).to(dtype)
        before = sites[name]
        if isinstance(before, GraftedReLU):
            keep_lines(name, made, before)
        path, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(path), leaf, made)
    return changed


def of_site(values: Mapping[str, Tensor] | float, name: str) -> Tensor | float:
    """The value of one site."""
    return values[name] if isinstance(values, Mapping) else values


def keep_lines(name: str, made: GraftedReLU, before: GraftedReLU) -> None:
    """Take over the neurons that were grafted before, in place."""
    if made.mask.shape != before.mask.shape:
        raise UsageError(
            f"the mask of '{name}' has shape {list(made.mask.shape)}, its former one {list(before.mask.shape)}"
        )
    with torch.no_grad():
        made.slope[before.mask] = before.slope[before.mask]
        made.intercept[before.mask] = before.intercept[before.mask]
        made.mask |= before.mask


def prune_neurons(network: Network, masks: Masks) -> Network:
    """A copy of the network in which the masked neurons always answer 0, also after further training.

    Raises UsageError when a name is not that of a ReLU module.
    """
    return graft(network, masks, 0.0, 0.0, trained=False)


def gate(
    network: Network, shapes: Mapping[str, tuple[int, ...]], slope: float = 0.4, intercept: float = 0.0
) -> Network:
    """A copy of the network with a gate at every ReLU of the named sites (see `relu_sites`)."""
    changed = copy.deepcopy(network)
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(path), leaf, GatedReLU(shape, slope, intercept))
    return changed


def gates_of(network: nn.Module) -> dict[str, Tensor]:
    """The gates, clipped to [0, 1], by site."""
    found = {name: module.gate for name, module in network.named_modules() if isinstance(module, GatedReLU)}
    return {name: gate.detach().clamp(0, 1) for name, gate in found.items()}


def harden(network: Network, masks: Masks) -> Network:
    """A copy whose gated neurons are lines where the mask is true, with the lines that were learned, else ReLUs."""
    changed = copy.deepcopy(network)
    for name, module in network.named_modules():
        if isinstance(module, GatedReLU):
            path, _, leaf = name.rpartition(".")
            made = GraftedReLU(masks[name], module.slope.detach(), module.intercept.detach())
            setattr(changed.get_submodule(path), leaf, made)
    return changed


def grafting_groups(
    network: nn.Module, lines: float = 0.01, weights: float = 0.001, decay: float = 5e-4
) -> list[Group]:
    """What grafting trains: slopes, intercepts and gates at rate `lines`, without decay, weights at rate `weights`."""
    own = [p for m in network.modules() if isinstance(m, GraftedReLU | GatedReLU) for p in m.parameters()]
    known = {id(p) for p in own}
    rest = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
    return [Group([p for p in own if p.requires_grad], lines), Group(rest, weights, decay)]
