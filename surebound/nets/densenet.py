"""DenseNet (Huang et al. 2017), a small one as LiRPA training has it (Xu et al. 2020).

Arguments data, in_shape, classes: as in `images_of`; seed: of the weights. growth: channels that a block adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from surebound.nets.layers import Built, Layer, Shape, classifier, conv, dense, mean_pool, norm_relu, run, widened
from surebound.nets.normalise import Images, images_of


def bottleneck(growth: int) -> Layer:
    """Batch norm, ReLU, 1 x 1 and again with 3 x 3: `growth` channels more."""
    pointwise = conv(4 * growth, 1, padding=0, relu=False)
    return widened([norm_relu(), pointwise, norm_relu(), conv(growth, relu=False)])


def transition(shape: Shape) -> Built:
    """Half the channels, by a 1 x 1 convolution, and half the height and width, by means."""
    return run([norm_relu(), conv(shape[0] // 2, 1, padding=0, relu=False), mean_pool(2)], shape)


def network(images: Images, growth: int, seed: int) -> nn.Sequential:
    """Blocks of 2, 4 and 4 bottlenecks, FC 512 on all that is left."""
    two, four = (partial(run, [bottleneck(growth)] * count) for count in (2, 4))
    stem = conv(2 * growth, relu=False)
    return classifier(images, [stem, two, transition, four, transition, four, norm_relu(), dense(512)], seed)


def densenet(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    growth: int = 32,
    seed: int = 0,
) -> nn.Sequential:
    """For 32 x 32."""
    return network(images_of(data, in_shape, classes), growth, seed)


def densenet_64(
    data: str | None = "tiny-imagenet",
    in_shape: Sequence[int] | None = (3, 56, 56),
    classes: int | None = None,
    growth: int = 32,
    seed: int = 0,
) -> nn.Sequential:
    """For crops of 56 x 56."""
    return network(images_of(data, in_shape, classes), growth, seed)
