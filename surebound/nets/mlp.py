"""Fully connected ReLU networks. Arguments data, in_shape, classes: as in `images_of`; seed: of the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import classifier, dense
from surebound.nets.normalise import images_of


def mlp(
    hidden: Sequence[int] = (256, 256, 256, 256),
    data: str | None = "mnist",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> nn.Sequential:
    """pixels - hidden[0] - ... - classes; without hidden layers a linear model."""
    return classifier(images_of(data, in_shape, classes), [dense(width) for width in hidden], seed)


def mlp_8x200(
    data: str | None = "mnist",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 200,
    seed: int = 0,
) -> nn.Sequential:
    """pixels - 7 layers of `width` - classes: "8 x 200" counts linear layers (linearity grafting, Chen et al. 2022)."""
    return mlp((width,) * 7, data, in_shape, classes, seed)


def lenet_300_100(
    data: str | None = "mnist",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 100,
    seed: int = 0,
) -> nn.Sequential:
    """pixels - 3 width - width - classes (LeCun et al. 1998; sparse networks, Guo et al. 2018)."""
    return mlp((3 * width, width), data, in_shape, classes, seed)


def mlp_64_64(
    data: str | None = "mnist",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """pixels - width - width - classes (flat landscapes, Xu et al. 2020)."""
    return mlp((width, width), data, in_shape, classes, seed)
