"""Linearity grafting (Chen et al. 2022): some ReLUs become lines with trainable slope and intercept.

A grafted neuron is affine, so a verifier neither relaxes nor splits it. A line fixed at zero removes the
neuron: pruning is the same surgery.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.sparsify.sites import Masks
from surebound.training.loop import Group

Network = TypeVar("Network", bound=nn.Module)


class GraftedReLU(nn.Module):
    """f(z) = slope z + intercept where mask, else max(z, 0), element-wise for z [B, *mask.shape].

    mask: bool buffer; slope, intercept: one parameter per neuron (those of neurons that are not grafted
    get no gradient).
    """

    mask: Tensor

    def __init__(self, mask: Tensor, slope: float = 0.4, intercept: float = 0.0, trained: bool = True) -> None:
        """trained: whether the lines take part in training."""
        super().__init__()
        self.register_buffer("mask", mask.detach().clone().to(torch.bool))
        self.slope = nn.Parameter(torch.full(mask.shape, slope, device=mask.device), requires_grad=trained)
        self.intercept = nn.Parameter(torch.full(mask.shape, intercept, device=mask.device), requires_grad=trained)

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, self.slope * z + self.intercept, torch.relu(z))

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} neurons grafted"


ACTIVATIONS = (nn.ReLU, GraftedReLU)
"""Modules whose neurons criteria look at."""


def graft(network: Network, masks: Masks, slope: float = 0.4, intercept: float = 0.0) -> Network:
    """A copy of the network whose ReLUs named by `masks` are grafted where their mask is true.

    slope, intercept: where training of the lines starts (the paper's released defaults).
    Raises UsageError when a name is not that of a ReLU module.
    """
    return _replaced(network, masks, slope, intercept, trained=True)


def prune_neurons(network: Network, masks: Masks) -> Network:
    """A copy of the network in which the masked neurons always answer 0, also after further training.

    Raises UsageError when a name is not that of a ReLU module.
    """
    return _replaced(network, masks, 0.0, 0.0, trained=False)


def grafting_groups(
    network: nn.Module, lines: float = 0.01, weights: float = 0.001, decay: float = 5e-4
) -> list[Group]:
    """What grafting trains: slopes and intercepts at rate `lines`, without decay, and weights at rate `weights`."""
    own = [p for m in network.modules() if isinstance(m, GraftedReLU) for p in (m.slope, m.intercept)]
    known = {id(p) for p in own}
    rest = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
    return [Group([p for p in own if p.requires_grad], lines), Group(rest, weights, decay)]


def _replaced(network: Network, masks: Masks, slope: float, intercept: float, trained: bool) -> Network:
    changed = copy.deepcopy(network)
    sites = {name for name, module in changed.named_modules() if isinstance(module, nn.ReLU)}
    for name, mask in masks.items():
        if name not in sites:
            known = ", ".join(sorted(sites)) or "none"
            raise UsageError(
                f"'{name}' is not a torch.nn.ReLU of the network (those are: {known}); correct the mask's name"
            )
        path, _, leaf = name.rpartition(".")
        setattr(changed.get_submodule(path), leaf, GraftedReLU(mask, slope, intercept, trained))
    return changed
