"""What networks know about the images they are made for: shape, classes, and the normalisation of pixels.

Normalisation is the first layer of every network, so radii are in pixel units and training, attacks and proofs cannot
disagree about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from surebound.errors import UsageError


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


@dataclass(frozen=True)
class Images:
    """Images of a data set: shape (C, H, W), the number of classes, mean and std of each channel in [0, 1]."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGES: Mapping[str, Images] = MappingProxyType(
    {
        "digits": Images((1, 8, 8), 10, (0.3053,), (0.3760,)),
        "mnist": Images((1, 28, 28), 10, (0.0,), (1.0,)),
        "fashion-mnist": Images((1, 28, 28), 10, (0.2860,), (0.3530,)),
        "svhn": Images((3, 32, 32), 10, (0.4377, 0.4438, 0.4728), (0.1201, 0.1231, 0.1052)),
        "cifar10": Images((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": Images((3, 32, 32), 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "tiny-imagenet": Images((3, 64, 64), 200, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        "imagenet64": Images((3, 64, 64), 1000, (0.4815, 0.4578, 0.4082), (0.2153, 0.2111, 0.2121)),
    }
)
"""By name of the data set. MNIST and SVHN have the constants of linearity grafting, not their measured ones."""


def images_of(data: str | None, in_shape: Sequence[int] | None = None, classes: int | None = None) -> Images:
    """The images that a network is made for.

    data: a row of `IMAGES`, or None for images that are taken as they are, which need a shape and classes.
    in_shape: another (C, H, W), such as that of crops; classes: another number of labels.
    Raises UsageError for a name, shape or number that makes no sense.
    """
    if data is None:
        if in_shape is None or classes is None:
            raise UsageError("a network for no data set in particular needs in_shape=(C, H, W) and classes")
        known = Images((1, 1, 1), 1, (0.0,) * in_shape[0], (1.0,) * in_shape[0])
    elif data in IMAGES:
        known = IMAGES[data]
    else:
        raise UsageError(f"no normalisation is known for '{data}'; give one of {', '.join(IMAGES)}, or None for none")
    shape = known.shape if in_shape is None else tuple(in_shape)
    count = known.classes if classes is None else classes
    if len(shape) != 3 or min(shape) < 1 or count < 1:
        raise UsageError(f"images need in_shape=(C, H, W) and classes >= 1, got {shape} and {count}")
    if shape[0] != len(known.mean):
        raise UsageError(f"images of {data} have {len(known.mean)} channels, but in_shape is {shape}")
    return Images(shape, count, known.mean, known.std)
