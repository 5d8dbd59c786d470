"""Masks on weights, as parametrisations: a masked weight is zero, stays zero in training, and has no gradient.

The mask multiplies nothing: where it is false the weight is the constant 0, whatever number stands behind it.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surebound.errors import UsageError
from surebound.sparsify.sites import Masks

Network = TypeVar("Network", bound=nn.Module)


class Masked(nn.Module):
    """w where mask, else 0; mask: bool buffer of the weight's shape."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.detach().clone().to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, torch.zeros_like(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What has to stand behind the mask: the weight itself."""
        return weight


def mask_weights(network: Network, masks: Masks) -> Network:
    """A copy of the network whose parameters named by `masks` are zero where their mask is false.

    Masks that are there already are replaced. Raises UsageError for names or shapes that the network does not have.
    """
    made = unmasked(network)
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        holder = dict(made.named_modules()).get(path)
        parameter = None if holder is None else holder._parameters.get(leaf)
        if holder is None or parameter is None:
            raise UsageError(f"the mask '{name}' is for a parameter that the network does not have")
        if parameter.shape != mask.shape:
            raise UsageError(
                f"the mask '{name}' has shape {list(mask.shape)}, the network's parameter {list(parameter.shape)}"
            )
        parametrize.register_parametrization(holder, leaf, Masked(mask))
    return made


def masks_of(network: nn.Module) -> dict[str, Tensor]:
    """The masks of a network, by the names of the parameters that they are on."""
    return {name: part.mask for name, _, part in masked_parts(network)}


def masked_parts(network: nn.Module) -> list[tuple[str, nn.Module, Masked]]:
    """Name of the parameter, the module that has it, its mask."""
    found: list[tuple[str, nn.Module, Masked]] = []
    for path, holder in network.named_modules():
        chains = getattr(holder, "parametrizations", None)
        for leaf, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
            found += [
                (f"{path}.{leaf}" if path else leaf, holder, part)
                for part in chain.children()
                if isinstance(part, Masked)
            ]
    return found


def unmasked(network: Network) -> Network:
    """A copy with plain weights, which are zero where a mask was false; in training they would move again."""
    plain = copy.deepcopy(network)
    for name, holder, _ in masked_parts(plain):
        holder.__class__ = twin(type(holder))
        parametrize.remove_parametrizations(holder, name.rpartition(".")[2], leave_parametrized=True)
    return plain


def twin(made: type[nn.Module]) -> type[nn.Module]:
    """An equal class: copies of a parametrised module share the one torch made for it, and torch changes it."""
    members = {name: value for name, value in vars(made).items() if name not in ("__dict__", "__weakref__")}
    return type(made.__name__, made.__bases__, members)  # pyright: ignore[reportReturnType]
