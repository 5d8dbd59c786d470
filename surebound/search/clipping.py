"""Clipping: a box without what linear constraints on the input exclude (Clip-and-Verify, Zhou et al. 2025).

A counterexample in a sub-problem meets its splits and every atom of its conjunction. Each of them is bounded from below
by something linear in the input, and where that is positive there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1e-10
"""Distances that clipping leaves are larger by this part of the numbers that they are the sum of: those are rounded."""


IMPOSSIBLE = torch.finfo(torch.float64).max
"""The bound of a sub-problem whose splits cannot be met: it has no least value, and takes no part in a margin."""


@dataclass(frozen=True)
class Linear:
    """Lines a x + b [N, K], a [N, K, n], below K values that a counterexample makes at most 0, on boxes [N, n]."""

    a: Tensor
    b: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """(lower, upper)."""
        return self.lower, self.upper

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, lower, upper)."""
        return self.a, self.b, self.lower, self.upper


def clipped(found: Linear, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes [N, n] without what the constraints exclude, and the largest least value [N] of a constraint met on the
    way: where it is positive, nothing is left. real [N, K]: which constraints there are.

    Every constraint is used once, in turn, on what those before it left.

    With its least value m <= 0 attained at a corner of the box, no coordinate can be further from that corner than
    -m / |a_i|.
    """
    lower, upper = found.lower, found.upper
    worst = torch.full_like(lower[:, 0], -torch.inf)
    for k in range(found.b.shape[1]):
        a, b = found.a[:, k], found.b[:, k]
        terms = torch.where(a > 0, a * lower, a * upper)
        least = terms.sum(1) + b
        used = real[:, k] & torch.isfinite(least)
        worst = torch.where(used, torch.maximum(worst, least), worst)
        allowed = SLACK * (terms.abs().sum(1) + b.abs()) - least
        reach = torch.where(used & (least <= 0), allowed, torch.inf).unsqueeze(1) / a.abs()
        reach = torch.where(torch.isnan(reach), torch.inf, reach)
        upper, lower = (
            torch.where(a > 0, torch.minimum(upper, lower + reach), upper),
            torch.where(a < 0, torch.maximum(lower, upper - reach), lower),
        )
    return lower, upper, worst
