"""A small network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from surebound.nets.layers import classifier, conv, dense
from surebound.nets.normalise import images_of


def digits_cnn(
    seed: int = 0,
    channels: Sequence[int] = (16, 32),
    hidden: int = 64,
    data: str | None = "digits",
    in_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> nn.Sequential:
    """A CNN for the 8 x 8 digits: two convolutions (the second with stride 2), two linear layers, three ReLUs.

    Weights are drawn with torch's defaults under `seed`; the global random state is left as it was.
    data, in_shape, classes: as in `images_of`.
    """
    first, second = channels
    layers = [conv(first), conv(second, stride=2), dense(hidden)]
    return classifier(images_of(data, in_shape, classes), layers, seed)
