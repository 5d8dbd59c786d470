"""The table of networks: a new one is one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from surebound.errors import UsageError
from surebound.nets.cnn import cnn7, cnn7l, cnn_a, cnn_b, convbig, lenet5, vgg
from surebound.nets.densenet import densenet, densenet_64
from surebound.nets.mlp import lenet_300_100, mlp, mlp_8x200, mlp_64_64
from surebound.nets.mobilenet import mobilenet_v1, mobilenet_v2
from surebound.nets.resnet import resnet18, resnet18_nr, resnet32, resnet_2b, resnet_4b
from surebound.nets.resnext import resnext, resnext_64
from surebound.nets.small import digits_cnn
from surebound.nets.wide_resnet import wide_resnet, wide_resnet_64

Factory = Callable[..., nn.Module]
"""Takes at least data, in_shape, classes and seed by name, all with defaults, and nothing that JSON cannot hold."""

NETWORKS: Mapping[str, Factory] = MappingProxyType(
    {
        factory.__name__: factory
        for factory in (
            cnn7, cnn7l, cnn_a, cnn_b, convbig, densenet, densenet_64, digits_cnn, lenet5, lenet_300_100, mlp,
            mlp_64_64, mlp_8x200, mobilenet_v1, mobilenet_v2, resnet18, resnet18_nr, resnet32, resnet_2b, resnet_4b,
            resnext, resnext_64, vgg, wide_resnet, wide_resnet_64,
        )
    }
)  # fmt: skip
"""Factories by name."""


def find_network(name: str) -> Factory:
    """The factory with this name; raises UsageError when there is none."""
    if name not in NETWORKS:
        raise UsageError(f"unknown network '{name}'; give one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]
