"""Plain CNNs of the verification literature. Arguments data, in_shape, classes: as in `images_of`; seed: of weights.

width: channels of the first convolution; the others and the linear layers keep their ratio to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import classifier, conv, dense, max_pool, zero_pad
from surebound.nets.normalise import images_of


def convbig(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 32,
    norm: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """ConvBig (DiffAI, Mirman et al. 2018; linearity grafting): four convolutions, FC 512, FC 512.

    norm: batch norm behind convolutions. Made for MNIST, SVHN and CIFAR.
    """
    convs = [conv(width, norm=norm), conv(width, 4, 2, norm=norm)]
    convs += [conv(2 * width, norm=norm), conv(2 * width, 4, 2, norm=norm)]
    return classifier(images_of(data, in_shape, classes), [*convs, dense(16 * width), dense(16 * width)], seed)


def cnn_a(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 16,
    norm: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    """CNN-A (SDP verification, Dathathri et al. 2020): two convolutions 4 x 4 with stride 2, FC 100.

    norm: batch norm behind convolutions.
    """
    layers = [conv(width, 4, 2, norm=norm), conv(2 * width, 4, 2, norm=norm), dense(100)]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def cnn_b(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 32,
    seed: int = 0,
) -> nn.Sequential:
    """CNN-B (beta-CROWN, Wang et al. 2021): zero padding of 1 in front and 2 behind, two convolutions, FC 250."""
    layers = [zero_pad(1, 2, 1, 2), conv(width, 5, 2, 0), conv(4 * width, 4, 2), dense(250)]
    return classifier(images_of(data, in_shape, classes), layers, seed)


def cnn7(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 64,
    last_stride: int = 1,
    norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """CNN-7 with batch norm (Shi et al. 2021; "17M"): five 3 x 3 convolutions, the third with stride 2, FC 512.

    last_stride: 2 for TinyImageNet. norm: batch norm behind all layers but the last.
    """
    convs = [conv(width, norm=norm), conv(width, norm=norm), conv(2 * width, stride=2, norm=norm)]
    convs += [conv(2 * width, norm=norm), conv(2 * width, stride=last_stride, norm=norm)]
    return classifier(images_of(data, in_shape, classes), [*convs, dense(8 * width, norm=norm)], seed)


def cnn7l(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 32,
    norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """The seven-layer CNN of certified pruning (Li et al. 2022): five convolutions with batch norm, FC 100."""
    convs = [conv(width, norm=norm), conv(2 * width, 4, 2, norm=norm), conv(2 * width, norm=norm)]
    convs += [conv(4 * width, 4, 2, norm=norm), conv(4 * width, 4, 2, norm=norm)]
    return classifier(images_of(data, in_shape, classes), [*convs, dense(100)], seed)


def lenet5(
    data: str | None = "mnist",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> nn.Sequential:
    """LeNet-5 as Caffe has it (Guo et al. 2018): 20 and 50 kernels of 5 x 5, each with max pooling, FC 500.

    As there, the only ReLU stands behind FC 500; the maxima are the convolutions' nonlinearity.
    """
    convs = [conv(20, 5, 1, 0, relu=False), max_pool(), conv(50, 5, 1, 0, relu=False), max_pool()]
    return classifier(images_of(data, in_shape, classes), [*convs, dense(500)], seed)


def vgg(
    data: str | None = "cifar10",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
    width: int = 64,
    norm: bool = True,
    seed: int = 0,
) -> nn.Sequential:
    """A VGG-like network of 12 convolutions and 2 linear layers (Simonyan & Zisserman 2015; Guo et al. 2018).

    3 x 3 convolutions in five stages, max pooling behind each: 2 of width, 2 of 2 width, 3 of 4 width, 3 and 2 of
    8 width; FC 8 width. norm: batch norm behind convolutions.
    """
    layers = []
    for factor, count in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 2)):
        layers += [*[conv(factor * width, bias=not norm, norm=norm)] * count, max_pool()]
    return classifier(images_of(data, in_shape, classes), [*layers, dense(8 * width)], seed)
