"""Sine and cosine.

For any slope m the line with that slope below f(x) = sin(x + s) on a box has as its intercept the least of f(x) - m x
there, which is at an end of the box or where the slope of f is m: x + s = -arccos(m) + 2 pi k below and
x + s = arccos(m) + 2 pi k above. At these points f(x) - m x is linear in k, so the first and the last in the
box are enough. The slope is the relaxation's free value, between that of the chord and that of the curve in
the middle of the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.piecewise import unit_interval
from surebound.ops.record import Frame, Interval, Lines, Op, Relaxation, never

Values = Sequence[Tensor | None]
TURN = 2 * math.pi
STEEPEST = 1 - 1e-6
"""Slopes are at most so steep: at 1 arccos has no derivative."""


def turning(shift: float, slope: Tensor, lower: Tensor, upper: Tensor, side: int) -> Tensor:
    """The least (side -1) or largest (side 1) value of sin(x + shift) - slope x on the box."""

    def gap(x: Tensor) -> Tensor:
        return torch.sin(x + shift) - slope * x

    keep = torch.minimum if side < 0 else torch.maximum
    found = keep(gap(lower), gap(upper))
    turn = side * torch.acos(slope) - shift
    first = turn + TURN * torch.ceil((lower - turn) / TURN).detach()
    last = turn + TURN * torch.floor((upper - turn) / TURN).detach()
    for x in (first, last):
        found = torch.where((lower <= x) & (x <= upper), keep(found, gap(x)), found)
    return found


def interval_of(shift: float, x: Interval) -> Interval:
    """The ends' values, and -1 and 1 where the box reaches such a point."""
    level = torch.zeros_like(x.lower)
    return Interval(*(turning(shift, level, x.lower, x.upper, side).clamp(-1, 1) for side in (-1, 1)))


def relaxation(shift: float) -> Relaxation:
    """Lines, start values and splits of sin(x + shift)."""

    def frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
        """The box, the chord's slope, and the curve's slope in the middle."""
        width = upper - lower
        tiny = width <= 1e-9 * (1 + lower.abs())
        rise = torch.sin(upper + shift) - torch.sin(lower + shift)
        middle = torch.cos((lower + upper) / 2 + shift)
        chord = torch.where(tiny, middle, rise / torch.where(tiny, torch.ones_like(width), width))
        return lower, upper, chord, middle

    def lines(site: Site, frame: Frame, free: Tensor) -> Lines:
        lower, upper, chord, middle = frame
        low, high = ((chord + share * (middle - chord)).clamp(-STEEPEST, STEEPEST) for share in free)
        below, above = turning(shift, low, lower, upper, -1), turning(shift, high, lower, upper, 1)
        return Lines(low, below, high, above)

    return Relaxation(
        frame=frame,
        lines=lines,
        init=lambda site, frame: torch.zeros_like(frame[0]).expand(2, *frame[0].shape),
        limits=unit_interval,
    )


def sin(site: Site, x: Tensor) -> Tensor:
    return torch.sin(x)


def cos(site: Site, x: Tensor) -> Tensor:
    return torch.cos(x)


PERIODIC = {
    "sin": Op(sin, never, lambda site, x: interval_of(0.0, x), relaxation(0.0)),
    "cos": Op(cos, never, lambda site, x: interval_of(math.pi / 2, x), relaxation(math.pi / 2)),
}
