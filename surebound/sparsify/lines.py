"""Where the lines of grafted neurons start: fixed numbers, or what fits their inputs best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.sparsify.basis import Basis
from surebound.sparsify.graft import ACTIVATIONS
from surebound.sparsify.sites import recorded, relu_sites


class Line(NamedTuple):
    """slope z + intercept, per neuron of a site [*shape]."""

    slope: Tensor
    intercept: Tensor


@dataclass(frozen=True)
class Fixed:
    """The same line everywhere; 0.4 and 0 are the released defaults of linearity grafting (Chen et al. 2022)."""

    slope: float = 0.4
    intercept: float = 0.0

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Line]:
        shapes = relu_sites(network, basis.example, ACTIVATIONS)
        return {
            name: Line(torch.full(shape, self.slope), torch.full(shape, self.intercept))
            for name, shape in shapes.items()
        }


@dataclass(frozen=True)
class LeastSquares:
    """The line with the least mean square distance from max(z, 0) over the images' pre-activations z:

    slope = cov(z, max(z, 0)) / var(z), intercept = mean(max(z, 0)) - slope mean(z). A neuron that is always the same
    gets the ReLU's own slope there, 0 or 1.
    """

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Line]:
        sums: dict[str, Tensor] = {}
        shifts: dict[str, Tensor] = {}
        with torch.no_grad(), evaluating(network):
            for images, _ in basis.batches():
                with recorded(network, ACTIVATIONS) as found:
                    network(images)
                for name, value in found.items():
                    z = value.double()
                    shift = shifts.setdefault(name, z.mean(0))  # moments about a value nearby, which cancel less
                    d, active = z - shift, z.clamp(min=0)
                    each = torch.stack([d.sum(0), active.sum(0), d.square().sum(0), (d * active).sum(0)])
                    sums[name] = sums[name] + each if name in sums else each
        return {name: fitted(total / len(basis.data), shifts[name]) for name, total in sums.items()}


def fitted(means: Tensor, shift: Tensor) -> Line:
    """The line from the means [4, *shape] of z - shift, max(z, 0), (z - shift)^2 and (z - shift) max(z, 0)."""
    d, active, square, product = means
    variance, covariance = square - d.square(), product - d * active
    mean = shift + d
    varies = variance > 1e-12 * (square + mean.square())
    slope = torch.where(varies, covariance / torch.where(varies, variance, 1.0), (mean > 0).double()).clamp(0, 1)
    return Line(slope.float(), (active - slope * mean).float())


LINES: Mapping[str, type[Fixed] | type[LeastSquares]] = {"fixed": Fixed, "least-squares": LeastSquares}
"""By the name that settings use."""
