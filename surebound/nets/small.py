"""Small networks for small images. Normalisation is part of the network, so radii are in pixel units."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std per channel: for x [B, C, H, W] in [0, 1]; mean and std are fixed numbers."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def digits_cnn(seed: int = 0, channels: tuple[int, int] = (16, 32), hidden: int = 64) -> nn.Sequential:
    """A CNN for the 8 x 8 digits: two convolutions (the second with stride 2), two linear layers, three ReLUs.

    Weights are drawn with torch's defaults under `seed`; the global random state is left as it was.
    """
    first, second = channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            Normalise((0.3053,), (0.3760,)),
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * 16, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )
