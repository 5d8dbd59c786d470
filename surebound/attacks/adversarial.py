"""What attacks on images are made of, and one gradient step (FGSM).

Images are [B, ...] with values in [0, 1]; eps is the l-infinity radius in the same units, which are the
network's input units. Adversarial images stay in [0, 1] and within eps. The network runs in the mode it is
in; see `evaluating`. Whole attacks, which see to the mode themselves, are in `surebound.attacks.table`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surebound.errors import DataError, UsageError

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""What an attack raises: logits [B, m] and labels [B] to one number per sample [B]."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] per sample, [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y per sample, [B]: positive where the network is wrong."""
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.amax(1) - own.squeeze(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and afterwards put every part back into the mode it was in."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def require_radius(eps: float) -> None:
    """Raise UsageError unless eps is a finite number >= 0."""
    if not (math.isfinite(eps) and eps >= 0):
        raise UsageError(f"eps must be a finite number >= 0, in units of pixels in [0, 1]; got {eps}")


def project(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest image within eps of x and in [0, 1]."""
    return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)


def random_start(x: Tensor, eps: float, generator: torch.Generator | None = None) -> Tensor:
    """x + U(-eps, eps) per pixel, clipped to [0, 1]; drawn on the CPU, so equal on every device."""
    noise = torch.rand(x.shape, dtype=x.dtype, generator=generator).to(x.device)
    return (x + (2 * noise - 1) * eps).clamp(0, 1)


def slope(network: Network, values: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits [B, m], `values` of the logits [B], and each sample's gradient of its own value [B, ...]; detached.

    Raises DataError when a gradient is not finite: its sign would be zero and the attack would stand still.
    """
    with torch.enable_grad():
        leaf = point.detach().requires_grad_(True)
        logits = network(leaf)
        raised = values(logits)
        (gradient,) = torch.autograd.grad(raised.sum(), leaf)
    require_finite(gradient, "the gradient of the loss by the images")
    return logits.detach(), raised.detach(), gradient


def require_finite(values: Tensor, what: str) -> None:
    """Raise DataError unless all values [B, ...] are finite."""
    finite = torch.isfinite(values).flatten(1).all(1)
    if not bool(finite.all()):
        raise DataError(
            f"{what}: NaN or infinite for {int((~finite).sum())} of {len(values)} images; an attack that meets such "
            "numbers proves nothing. Look for NaN among the weights, divisions by zero and overflow in the network"
        )


def input_gradient(network: Network, loss: Loss, point: Tensor, labels: Tensor) -> Tensor:
    """Each sample's gradient of its own loss by its pixels, [B, ...], detached; see `slope`."""
    return slope(network, lambda logits: loss(logits, labels), point)[2]


def fgsm(
    network: Network, x: Tensor, labels: Tensor, eps: float, step: float, start: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """One signed gradient step of size `step` from `start`, projected (Goodfellow et al. 2015; Wong et al. 2020)."""
    require_radius(eps)
    gradient = input_gradient(network, loss, start, labels)
    return project(start + step * gradient.sign(), x, eps)
