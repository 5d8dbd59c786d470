"""Wide residual networks with one block per stage, as LiRPA training has them (Xu et al. 2020).

Arguments data, in_shape, classes: as in `images_of`; seed: of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import Layer, classifier, conv, dense, mean_pool, norm_relu, residual
from surebound.nets.normalise import images_of
from surebound.nets.resnet import projection


def pre_activation(channels: int, stride: int, second_norm: bool) -> Layer:
    """ReLU and convolution, twice, beside a shortcut (Zagoruyko & Komodakis 2016); the second convolution strides.

    second_norm: batch norm in front of the second ReLU too.
    """
    body = [norm_relu(), conv(channels, relu=False), norm_relu(second_norm), conv(channels, stride=stride, relu=False)]
    return lambda shape: residual(body, projection(shape, channels, stride, norm=False))(shape)


def wide_resnet(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 8,
    seed: int = 0,
) -> nn.Sequential:
    """WRN-10 for 32 x 32: three blocks of 16, 32, 64 times `width` channels with one batch norm each, FC 512."""
    blocks = [pre_activation(16 * 2**index * width, 1 if index == 0 else 2, second_norm=False) for index in range(3)]
    layers = [conv(16, relu=False), *blocks, norm_relu(False), dense(512)]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def wide_resnet_64(
    data: str | None = "imagenet64",
    in_shape: Sequence[int] | None = (3, 56, 56),
    classes: int | None = None,
    width: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """WRN-10-10 for crops of 56 x 56: three blocks with batch norm everywhere, means of 7 x 7 windows."""
    blocks = [pre_activation(16 * 2**index * width, 1 if index == 0 else 2, second_norm=True) for index in range(3)]
    layers = [conv(16, relu=False), *blocks, norm_relu(), mean_pool(7)]
    return classifier(images_of(data, in_shape, classes), layers, seed)
