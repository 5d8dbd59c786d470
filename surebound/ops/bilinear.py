"""Products of two values that move, and softmax, which is made of them.

Between x in [a, b] and y in [c, d] the product x y lies above  c x + a y - a c  and  d x + b y - b d,  and below
d x + a y - a d  and  c x + b y - b c  (McCormick 1976), hence above and below any plane between the two of a pair;
which plane is the relaxation's free value, one for each side. A walk knows lines of one operand, so x and y are
stacked, and the lines of the two halves enclose the product together, as their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.broadcast import sample_axes
from surebound.ops.piecewise import unit_interval
from surebound.ops.record import Frame, Interval, Lines, Op, Relaxation, always, never

Values = Sequence[Tensor | None]
STACK = 2
"""The axis of a box [G, 1, 2, *shape] along which the factors lie."""


def factors(site: Site, x: Tensor) -> Tensor:
    """(x, y) along the first axis becomes (x y, 0): only the sum of the halves means anything."""
    first, second = x.unbind(STACK - 1)
    return torch.stack([first * second, torch.zeros_like(first)], STACK - 1)


def factors_interval(site: Site, x: Interval) -> Interval:
    (low_x, low_y), (high_x, high_y) = x.lower.unbind(STACK - 1), x.upper.unbind(STACK - 1)
    corners = torch.stack([a * b for a in (low_x, high_x) for b in (low_y, high_y)])
    none = torch.zeros_like(low_x)
    return Interval(*(torch.stack([end, none], STACK - 1) for end in (corners.amin(0), corners.amax(0))))


def halves(first: Tensor, second: Tensor) -> Tensor:
    """What belongs to x and what belongs to y: [G, 1, 2, *shape]."""
    return torch.stack([first, second], STACK)


def factors_frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
    """By half: the slope of the first lower plane and what to add for the second; what the half with x has to add to
    each of them, of the half with y zero; the same of the upper planes.
    """
    (a, c), (b, d) = lower.unbind(STACK), upper.unbind(STACK)
    none = torch.zeros_like(a)
    below = halves(c, a), halves(d - c, b - a), halves(-a * c, none), halves(a * c - b * d, none)
    return *below, halves(d, a), halves(c - d, b - a), halves(-a * d, none), halves(a * d - b * c, none)


def factors_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """Planes between the two of a pair; the half with y takes the other half's share."""
    if free.shape[3:] != site.shape:
        raise AssertionError("the factors of a product are read as a whole")
    low, high = (share.narrow(STACK, 0, 1).expand_as(share) for share in free)
    first, step, constant, change = frame[:4]
    slope, turn, intercept, shift = frame[4:]
    return Lines(first + low * step, constant + low * change, slope + high * turn, intercept + high * shift)


def both_move(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """A product with a factor that is one number is exact."""
    wide = (upper > lower).all(STACK, keepdim=True)
    return wide.expand_as(lower)


FACTORS = Relaxation(
    frame=factors_frame,
    lines=factors_lines,
    init=lambda site, frame: torch.full_like(frame[0], 0.5).expand(2, *frame[0].shape),
    limits=unit_interval,
    loose=both_move,
    together=True,
)


def product(site: Site, terms: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x y as the sum of the halves of a node `factors`; x and y serve the interval only."""
    return terms.sum(sample_axes(site, (0,)))


def product_interval(site: Site, terms: Interval, x: Interval, y: Interval) -> Interval:
    corners = [a * b for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
    stacked = torch.stack(torch.broadcast_tensors(*corners))
    return Interval(stacked.amin(0), stacked.amax(0))


def softmax(site: Site, x: Tensor) -> Tensor:
    return torch.softmax(x, sample_axes(site, (site.attrs["axis"],))[0])


def softmax_interval(site: Site, x: Interval) -> Interval:
    """1 / (1 + sum over j != i of exp(x_j - x_i)) grows with x_i and falls with every other entry."""
    (axis,) = sample_axes(site, (site.attrs["axis"],))
    return Interval(one_against(x.lower, x.upper, axis), one_against(x.upper, x.lower, axis))


def one_against(own: Tensor, other: Tensor, axis: int) -> Tensor:
    """The softmax of each entry of `own` among the other entries of `other`."""
    gaps = other.unsqueeze(axis) - own.unsqueeze(axis + 1)
    count = own.shape[axis]
    self_ = torch.eye(count, dtype=torch.bool, device=own.device).reshape(count, count, *[1] * (own.dim() - axis - 1))
    return (
        torch.softmax(torch.where(self_, torch.zeros_like(gaps), gaps), axis + 1)
        .diagonal(dim1=axis, dim2=axis + 1)
        .movedim(-1, axis)
    )


BILINEAR = {
    "factors": Op(factors, never, factors_interval, FACTORS),
    "product": Op(product, always, product_interval),
    "softmax": Op(softmax, never, softmax_interval),
}
