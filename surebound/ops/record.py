"""What an op means: one `Op` record of plain functions, and the values those functions exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from surebound.graph.ir import Site


class Interval(NamedTuple):
    """Element-wise lower and upper bounds; an unperturbed operand has `lower is upper`."""

    lower: Tensor
    upper: Tensor

    @property
    def point(self) -> bool:
        """True for the value of an unperturbed operand."""
        return self.lower is self.upper


class Lines(NamedTuple):
    """Two affine functions that enclose an element-wise function on a box.

    For every x in [l, u]:  lower_slope x + lower_intercept <= f(x) <= upper_slope x + upper_intercept.
    Each tensor has shape [G, S or 1, *node shape] (or broadcasts to it); an intercept None is zero.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor | None


Frame = tuple[Tensor, ...]
"""What a relaxation computes from a box once: element-wise quantities that its lines are made of."""


def wide(site: Site, values: Sequence[Tensor | None], lower: Tensor, upper: Tensor) -> Tensor:
    """Of functions that are bent everywhere: no box but a point has exact lines."""
    return upper > lower


def middle(site: Site, values: Sequence[Tensor | None], lower: Tensor, upper: Tensor) -> Tensor:
    """Where to split what has no kink."""
    return (lower + upper) / 2


@dataclass(frozen=True)
class Relaxation:
    """How a non-affine op with one perturbed operand is enclosed between two affine functions.

    Arguments: `site`; `values`, the operands' values with None for the perturbed one; the perturbed
    operand's box `lower`, `upper` of shape [G, 1, *shape].
    frame: everything about a box that does not depend on free values, each [G, 1, *shape]. A map may read
        it at some of the node's entries only, so all functions of a frame are element-wise.
    lines: the enclosing lines; `free` [K, G, S or 1, *shape] holds the relaxation's K free values per
        neuron (alphas); any value that `project` returns gives sound lines.
    init: the free values that need no optimisation, [K, G, 1, *shape].
    limits: (low, high) [K or 1, G, 1, *shape], between which free values may lie.
    loose: bool [G, 1, *shape], where the two lines differ ("unstable neurons").
    threshold: [G, 1, *shape], the value of the operand at which splitting a loose neuron helps most.
    exact_split: True when finitely many splits make every neuron exact (piecewise linear ops).
    together: the lines of an entry mean nothing alone; their sum over the value's first axis encloses the sum of the
        values. Nothing but such a sum may read the value, all rows over it are the same along that axis.
    """

    frame: Callable[[Site, Sequence[Tensor | None], Tensor, Tensor], Frame]
    lines: Callable[[Site, Frame, Tensor], Lines]
    init: Callable[[Site, Frame], Tensor]
    limits: Callable[[Site, Frame], tuple[Tensor, Tensor]]
    loose: Callable[[Site, Sequence[Tensor | None], Tensor, Tensor], Tensor] = wide
    threshold: Callable[[Site, Sequence[Tensor | None], Tensor, Tensor], Tensor] = middle
    exact_split: bool = False
    together: bool = False

    def project(self, site: Site, frame: Frame, free: Tensor) -> Tensor:
        """The nearest admissible free values; NaN becomes the middle. Where there is no choice, the one there is."""
        low, high = self.limits(site, frame)
        near = torch.clamp(torch.where(torch.isnan(free), (low + high) / 2, free), low, high)
        return torch.where(low == high, low, near)


@dataclass(frozen=True)
class Op:
    """The meaning of an op.

    forward(site, *operands): the value; batched operands are [B, *shape], others have no sample axis.
    affine(perturbed): is the op affine in the operands marked perturbed, the others held fixed?
    interval(site, *intervals): element-wise bounds of the value over the operands' boxes.
    relax: needed when `affine` is False for some pattern that occurs; acts on operand 0.
    """

    forward: Callable[..., Tensor]
    affine: Callable[[tuple[bool, ...]], bool]
    interval: Callable[..., Interval]
    relax: Relaxation | None = None


def always(perturbed: tuple[bool, ...]) -> bool:
    """Affine whatever is perturbed."""
    return True


def never(perturbed: tuple[bool, ...]) -> bool:
    """Affine only when nothing is perturbed."""
    return not any(perturbed)


def at_most_one(perturbed: tuple[bool, ...]) -> bool:
    """Bilinear: affine as long as a single factor moves."""
    return sum(perturbed) <= 1


def only_first(perturbed: tuple[bool, ...]) -> bool:
    """Affine in operand 0 while the others are fixed."""
    return not any(perturbed[1:])
