"""Residual networks. Arguments data, in_shape, classes: as in `images_of`; seed: of the weights.

width: channels of the first convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from surebound.nets.layers import Built, Layer, Shape, Subsampled, classifier, conv, dense, mean_pool, residual, run
from surebound.nets.normalise import images_of

Shortcut = Callable[[Shape, int, int], Sequence[Layer]]
"""What an input of some shape goes through beside a block, to get some channels at some stride."""


def projection(shape: Shape, channels: int, stride: int, norm: bool) -> Sequence[Layer]:
    """A 1 x 1 convolution where shapes differ (with norm: batch norm instead of a bias)."""
    if stride == 1 and shape[0] == channels:
        return ()
    return (conv(channels, 1, stride, 0, bias=not norm, norm=norm, relu=False),)


def zeros(shape: Shape, channels: int, stride: int) -> Sequence[Layer]:
    """The input itself, where shapes differ with fewer pixels and more channels, which are zero (option A)."""
    if stride == 1 and shape[0] == channels:
        return ()
    more = channels - shape[0]
    size = tuple(-(-side // stride) for side in shape[1:])
    return (lambda _: Built([Subsampled(stride, more // 2, more - more // 2)], (channels, *size)),)


def basic(channels: int, stride: int, norm: bool, shortcut: Shortcut) -> Layer:
    """Two 3 x 3 convolutions beside a shortcut, ReLU behind the sum (He et al. 2016)."""
    body = [
        conv(channels, stride=stride, bias=not norm, norm=norm),
        conv(channels, bias=not norm, norm=norm, relu=False),
    ]
    return lambda shape: residual(body, shortcut(shape, channels, stride), relu=True)(shape)


def stage(block: Callable[[int, int], Layer], channels: int, count: int, stride: int) -> Layer:
    """Blocks of equal width; the first one strides."""
    return partial(run, [block(channels, stride), *[block(channels, 1)] * (count - 1)])


def resnet_2b(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 8,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-2B (VNN-COMP 2021): a convolution with stride 2, two blocks without batch norm, FC 100."""
    block = partial(basic, norm=False, shortcut=partial(projection, norm=False))
    layers = [conv(width, stride=2), stage(block, 2 * width, 2, 2), dense(100)]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def resnet_4b(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 16,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-4B (VNN-COMP 2021): a convolution with stride 2, four blocks without batch norm, FC 100."""
    block = partial(basic, norm=False, shortcut=partial(projection, norm=False))
    layers = [conv(width, stride=2), stage(block, 2 * width, 2, 2), stage(block, 2 * width, 2, 2), dense(100)]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def resnet18(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) with a 3 x 3 stem, for small images; batch norm, the mean of the last feature maps."""
    block = partial(basic, norm=True, shortcut=partial(projection, norm=True))
    stages = [stage(block, width * 2**index, 2, 1 if index == 0 else 2) for index in range(4)]
    layers = [conv(width, bias=False, norm=True), *stages, mean_pool()]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def resnet18_nr(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 64,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-18 without its shortcuts ("NR", certified pruning, Li et al. 2022): the same 17 convolutions in a row."""
    strides = [1, *[1] * 4, *[2, 1, 1, 1] * 3]
    widths = [width, *[width] * 4, *[2 * width] * 4, *[4 * width] * 4, *[8 * width] * 4]
    convs = [conv(size, stride=stride, bias=False, norm=True) for size, stride in zip(widths, strides, strict=True)]
    return classifier(images_of(data, in_shape, classes), [*convs, mean_pool()], seed)


def resnet32(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 16,
    seed: int = 0,
) -> nn.Sequential:
    """ResNet-32 for CIFAR (He et al. 2016, section 4.2): 31 convolutions, shortcuts without parameters, one FC."""
    block = partial(basic, norm=True, shortcut=zeros)
    stages = [stage(block, width * 2**index, 5, 1 if index == 0 else 2) for index in range(3)]
    layers = [conv(width, bias=False, norm=True), *stages, mean_pool()]
    return classifier(images_of(data, in_shape, classes), layers, seed)
