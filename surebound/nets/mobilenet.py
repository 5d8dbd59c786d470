"""MobileNets for small images: strides that suit 32 x 32, and ReLU where the papers clip at 6.

Arguments data, in_shape, classes: as in `images_of`; seed: of the weights. width: a factor of all channels.
norm: batch norm instead of biases; without it neither, as LiRPA training has it (Xu et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import Built, Layer, Shape, classifier, conv, mean_pool, residual, run
from surebound.nets.normalise import images_of

SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Version 1: channels and stride of each block."""
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Version 2: expansion, channels, number of blocks, stride of the first."""


def scaled(channels: int, width: float) -> int:
    """channels times width, at least 1."""
    return max(1, round(channels * width))


def depthwise(stride: int, norm: bool) -> Layer:
    """A 3 x 3 convolution of each channel by itself."""
    return lambda shape: conv(shape[0], 3, stride, groups=shape[0], bias=False, norm=norm)(shape)


def pointwise(channels: int, norm: bool, relu: bool = True) -> Layer:
    """A 1 x 1 convolution."""
    return conv(channels, 1, padding=0, bias=False, norm=norm, relu=relu)


def inverted(expansion: int, channels: int, stride: int, norm: bool) -> Layer:
    """Wider, one by one, narrower without ReLU; with stride 1 beside a shortcut, 1 x 1 where channels differ."""

    def build(shape: Shape) -> Built:
        body = [pointwise(expansion * shape[0], norm), depthwise(stride, norm), pointwise(channels, norm, relu=False)]
        if stride > 1:
            return run(body, shape)
        return residual(body, () if shape[0] == channels else (pointwise(channels, norm, relu=False),))(shape)

    return build


def mobilenet_v1(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: float = 1.0,
    norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """MobileNet (Howard et al. 2017): a convolution and 13 separable ones, the mean of the last feature maps."""
    layers = [conv(scaled(32, width), bias=False, norm=norm)]
    for channels, stride in SEPARABLE:
        layers += [depthwise(stride, norm), pointwise(scaled(channels, width), norm)]
    return classifier(images_of(data, in_shape, classes), [*layers, mean_pool()], seed)


def mobilenet_v2(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: float = 1.0,
    norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """MobileNet v2 (Sandler et al. 2018): 17 inverted residual blocks between two convolutions, the mean at the end."""
    layers = [conv(scaled(32, width), bias=False, norm=norm)]
    for expansion, channels, count, stride in INVERTED:
        strides = (stride, *(1,) * (count - 1))
        layers += [inverted(expansion, scaled(channels, width), each, norm) for each in strides]
    layers += [pointwise(scaled(1280, width), norm), mean_pool()]
    return classifier(images_of(data, in_shape, classes), layers, seed)
