"""How much a neuron matters to the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.sparsify.sites import recorded

BATCH = 128
"""Images per backward pass."""


def gradient_significance(network: nn.Module, data: Part) -> dict[str, Tensor]:
    """mean_n |dCE(x_n) / dz_i| of every ReLU's pre-activation z (GAP), by site; each tensor has the site's shape.

    The gradients are per sample: the loss is summed over the batch. The network runs in evaluation mode.
    Raises DataError without images.
    """
    if len(data) == 0:
        raise DataError("significance is a mean over images and there are none")
    totals: dict[str, Tensor] = {}
    with evaluating(network):
        for images, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
            leaf = images.detach().requires_grad_(True)
            with torch.enable_grad(), recorded(network, (nn.ReLU,)) as found:
                loss = F.cross_entropy(network(leaf), labels, reduction="sum")
            for name, gradient in zip(found, torch.autograd.grad(loss, list(found.values())), strict=True):
                amount = gradient.abs().sum(0)
                totals[name] = totals[name] + amount if name in totals else amount
    return {name: total / len(data) for name, total in totals.items()}
