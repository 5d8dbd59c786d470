"""ResNeXt (Xie et al. 2017), small ones as LiRPA training has them (Xu et al. 2020).

Arguments data, in_shape, classes: as in `images_of`; seed: of the weights. width: channels of each of the two groups in
the first stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import Layer, classifier, conv, dense, residual
from surebound.nets.normalise import images_of
from surebound.nets.resnet import projection, stage

GROUPS = 2


def grouped(inner: int, stride: int) -> Layer:
    """1 x 1, 3 x 3 in groups, 1 x 1 to twice the channels, beside a shortcut; batch norm behind the first only."""
    body = [conv(inner, 1, padding=0, norm=True), conv(inner, 3, stride, groups=GROUPS)]
    body.append(conv(2 * inner, 1, padding=0, relu=False))
    return lambda shape: residual(body, projection(shape, 2 * inner, stride, norm=False), relu=True)(shape)


def layers(width: int, blocks: int) -> list[Layer]:
    """A convolution, three stages of blocks, FC 512."""
    stages = [stage(grouped, GROUPS * width * 2**index, blocks, 1 if index == 0 else 2) for index in range(3)]
    return [conv(16), *stages, dense(512)]


def resnext(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 32,
    seed: int = 0,
) -> nn.Sequential:
    """One block per stage, for 32 x 32."""
    return classifier(images_of(data, in_shape, classes), layers(width, 1), seed)


def resnext_64(
    data: str | None = "tiny-imagenet",
    in_shape: Sequence[int] | None = (3, 56, 56),
    classes: int | None = None,
    width: int = 8,
    seed: int = 0,
) -> nn.Sequential:
    """Two blocks per stage, for crops of 56 x 56."""
    return classifier(images_of(data, in_shape, classes), layers(width, 2), seed)
