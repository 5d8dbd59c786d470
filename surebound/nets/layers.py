"""Building blocks: a `Layer` is told the shape that it gets and answers with modules and the shape that they return.

Networks are lists of layers; sizes are worked out, so a network fits any image that is large enough. Every place has a
ReLU module of its own, because pruning and grafting work on ReLU modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.nets.normalise import Images, Normalise

Shape = tuple[int, ...]


class Built(NamedTuple):
    """Modules that run one after the other, and the shape of their result, without the batch."""

    modules: list[nn.Module]
    shape: Shape


Layer = Callable[[Shape], Built]
"""The shape of a sample, (C, H, W) or (features,), to what runs on it."""


class Residual(nn.Module):
    """body(x) + shortcut(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Widened(nn.Module):
    """x and body(x) side by side: [B, C + C', H, W]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), x], 1)


class Subsampled(nn.Module):
    """Every stride-th pixel of x, with channels of zeros around its own: a shortcut without parameters."""

    def __init__(self, stride: int, before: int, behind: int) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, before, behind

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.behind))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context torch's CPU random numbers are those of `seed`; afterwards they go on as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def run(layers: Sequence[Layer], shape: Shape) -> Built:
    """Layers one after the other."""
    modules: list[nn.Module] = []
    for layer in layers:
        more, shape = layer(shape)
        modules += more
    return Built(modules, shape)


def classifier(images: Images, layers: Sequence[Layer], seed: int) -> nn.Sequential:
    """Normalise, the layers, and a linear layer to the classes; weights are torch's defaults under `seed`."""
    with seeded(seed):
        last = dense(images.classes, relu=False)
        return nn.Sequential(Normalise(images.mean, images.std), *run([*layers, last], images.shape).modules)


def conv(
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int = 1,
    groups: int = 1,
    *,
    bias: bool = True,
    norm: bool = False,
    relu: bool = True,
) -> Layer:
    """Convolution, with norm: batch norm, with relu: ReLU."""

    def build(shape: Shape) -> Built:
        size = windows(shape, kernel, stride, padding)
        modules: list[nn.Module] = [
            nn.Conv2d(shape[0], channels, kernel, stride, padding, groups=groups, bias=bias),
            *([nn.BatchNorm2d(channels)] if norm else []),
            *([nn.ReLU()] if relu else []),
        ]
        return Built(modules, (channels, *size))

    return build


def norm_relu(norm: bool = True) -> Layer:
    """ReLU, with norm: of the batch norm; what stands in front of a convolution in pre-activation blocks."""

    def build(shape: Shape) -> Built:
        return Built([*([nn.BatchNorm2d(shape[0])] if norm else []), nn.ReLU()], shape)

    return build


def dense(features: int, *, norm: bool = False, relu: bool = True) -> Layer:
    """Linear layer on all values of a sample, with norm: batch norm, with relu: ReLU."""

    def build(shape: Shape) -> Built:
        modules: list[nn.Module] = [
            *([nn.Flatten()] if len(shape) > 1 else []),
            nn.Linear(math.prod(shape), features),
            *([nn.BatchNorm1d(features)] if norm else []),
            *([nn.ReLU()] if relu else []),
        ]
        return Built(modules, (features,))

    return build


def zero_pad(left: int, right: int, top: int, bottom: int) -> Layer:
    """Zeros around the image."""
    return lambda shape: Built(
        [nn.ZeroPad2d((left, right, top, bottom))], (shape[0], shape[1] + top + bottom, shape[2] + left + right)
    )


def max_pool(size: int = 2) -> Layer:
    """Maxima of windows side by side."""
    return lambda shape: Built([nn.MaxPool2d(size)], (shape[0], *windows(shape, size, size, 0)))


def mean_pool(size: int | None = None) -> Layer:
    """Means of windows side by side; without a size of the whole image."""

    def build(shape: Shape) -> Built:
        kernel = shape[1:] if size is None else (size, size)
        result = (1, 1) if size is None else windows(shape, size, size, 0)
        return Built([nn.AvgPool2d((kernel[0], kernel[1]))], (shape[0], *result))

    return build


def residual(body: Sequence[Layer], shortcut: Sequence[Layer] = (), *, relu: bool = False) -> Layer:
    """The sum of body and shortcut, without a shortcut of body and input; with relu: ReLU of it."""

    def build(shape: Shape) -> Built:
        main, side = run(body, shape), run(shortcut, shape)
        if main.shape != side.shape:
            raise UsageError(f"the two sides of a residual sum have shapes {main.shape} and {side.shape}")
        path = nn.Sequential(*side.modules) if side.modules else nn.Identity()
        block = Residual(nn.Sequential(*main.modules), path)
        return Built([block, *([nn.ReLU()] if relu else [])], main.shape)

    return build


def widened(body: Sequence[Layer]) -> Layer:
    """The input with the channels of the body in front (`Widened`)."""

    def build(shape: Shape) -> Built:
        built = run(body, shape)
        return Built([Widened(nn.Sequential(*built.modules))], (shape[0] + built.shape[0], *shape[1:]))

    return build


def windows(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """How many windows there are along height and width; raises UsageError when the image is too small for one."""
    height, width = ((size + 2 * padding - kernel) // stride + 1 for size in shape[1:])
    if min(height, width) < 1:
        raise UsageError(
            f"the images are too small for this network: a window of {kernel} x {kernel} does not fit into "
            f"{shape[1]} x {shape[2]} values with padding {padding}"
        )
    return height, width
