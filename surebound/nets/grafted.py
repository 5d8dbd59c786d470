"""Activations between a ReLU and a line, neuron by neuron (linearity grafting, Chen et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GraftedReLU(nn.Module):
    """f(z) = slope z + intercept where mask, else max(z, 0), element-wise for z [B, *mask.shape].

    mask: bool buffer; slope, intercept: one parameter per neuron (those of neurons that are not grafted
    get no gradient).
    """

    mask: Tensor

    def __init__(
        self, mask: Tensor, slope: Tensor | float = 0.4, intercept: Tensor | float = 0.0, trained: bool = True
    ) -> None:
        """trained: whether the lines take part in training."""
        super().__init__()
        self.register_buffer("mask", mask.detach().clone().to(torch.bool))
        self.slope = nn.Parameter(per_neuron(slope, self.mask), requires_grad=trained)
        self.intercept = nn.Parameter(per_neuron(intercept, self.mask), requires_grad=trained)

    def forward(self, z: Tensor) -> Tensor:
        return torch.where(self.mask, self.slope * z + self.intercept, torch.relu(z))

    def extra_repr(self) -> str:
        return f"{int(self.mask.sum())} of {self.mask.numel()} neurons grafted"


class GatedReLU(nn.Module):
    """f(z) = line + g (max(z, 0) - line), line = slope z + intercept, g = gate clipped to [0, 1], all per neuron.

    Between a ReLU (gate 1, where it starts) and a line (gate 0): which neurons are grafted can be learned.
    """

    def __init__(self, shape: tuple[int, ...], slope: Tensor | float = 0.4, intercept: Tensor | float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(shape))
        self.slope = nn.Parameter(per_neuron(slope, self.gate.detach()))
        self.intercept = nn.Parameter(per_neuron(intercept, self.gate.detach()))

    def forward(self, z: Tensor) -> Tensor:
        line = self.slope * z + self.intercept
        return line + self.gate.clamp(0, 1) * (torch.relu(z) - line)


def per_neuron(value: Tensor | float, like: Tensor) -> Tensor:
    """A value for every neuron, of its own."""
    given = torch.as_tensor(value)
    wide = given if given.is_floating_point() else given.to(torch.get_default_dtype())
    return wide.detach().to(like.device).expand(like.shape).clone()
