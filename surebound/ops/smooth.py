"""S-shaped activations: sigmoid, tanh, erf and atan.

All are convex below 0 and concave above, and odd around (0, f(0)), so the lower line on [l, u] touches the
curve where the upper line on [-u, -l] does, mirrored. The upper line is a tangent in the concave part that
stays above the curve, or the chord (Zhang et al. 2018, section 3; the tangent's position is the relaxation's
free value).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.piecewise import unit_interval
from surebound.ops.record import Frame, Lines, Op, Relaxation, never
from surebound.ops.reshape import monotone

Values = Sequence[Tensor | None]
BISECTIONS = 24


@dataclass(frozen=True)
class SShape:
    """An S-shaped function, its first and second derivative; `f(x) + f(-x) = 2 f(0)`, convex for x < 0."""

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]


def earliest_tangent(curve: SShape, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest d >= 0 in the box whose tangent is above the curve at `lower`, and whether there is one.

    t(d) = f(d) + f'(d)(lower - d) - f(lower) grows with d > 0, so bisection keeps an end with t >= 0.
    """

    def above(d: Tensor) -> Tensor:
        return curve.f(d) + curve.slope(d) * (lower - d) >= curve.f(lower)

    low, high = lower.clamp(min=0), upper.clamp(min=0)
    exists = above(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        sound = above(middle)
        high = torch.where(sound, middle, high)
        low = torch.where(sound, low, middle)
    return high, exists


def following(curve: SShape, start: Tensor, lower: Tensor) -> Tensor:
    """The earliest tangent's position with its derivative by `lower`, by the implicit function theorem.

    t(start, lower) = 0 as in `earliest_tangent`, so d start = -dt / (f''(start) (lower - start)); in a box
    that is concave throughout the position is `lower` itself.
    """
    gap = curve.f(start) + curve.slope(start) * (lower - start) - curve.f(lower)
    rate = (curve.bend(start) * (lower - start)).detach()
    still = rate.abs() < 1e-12
    change = -(gap - gap.detach()) / torch.where(still, torch.ones_like(rate), rate)
    return torch.where(lower >= 0, lower, start + torch.where(still, torch.zeros_like(change), change))


def upper_frame(curve: SShape, lower: Tensor, upper: Tensor) -> Frame:
    """Of the lines above the curve on [lower, upper]: the earliest and the latest tangent's position (the box's
    upper end), whether a tangent is used, and the chord's slope where it is not (0 where the box is too narrow).
    """
    start, exists = earliest_tangent(curve, lower.detach(), upper.detach())
    start = following(curve, start, lower)
    width = upper - lower
    tiny = width <= 1e-12 * (1 + upper.abs())
    chord = (curve.f(upper) - curve.f(lower)) / torch.where(tiny, torch.ones_like(width), width)
    use_tangent = exists & (upper > 0) & ~tiny
    return start, upper, use_tangent, torch.where(tiny, torch.zeros_like(chord), chord)


def line(curve: SShape, frame: Frame, free: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above (side 1) or, by a mirrored frame, below (side -1) the curve.

    free in [0, 1] places the tangent. The curve is evaluated on its own side, where nothing cancels.
    """
    start, end, use_tangent, chord = frame
    touches = torch.where(use_tangent, start + free * (end - start), end)
    slope = torch.where(use_tangent, curve.slope(touches), chord)
    return slope, curve.f(side * touches) - slope * (side * touches)


def relaxation(curve: SShape) -> Relaxation:
    """Lines, start values and splits of an S-shaped function."""

    def frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
        """The upper line's frame, that of the mirrored lower line, and CROWN's two tangents.

        CROWN takes the middle of a one-sided box, the earliest sound tangent of a mixed one.
        """
        half, zero = torch.full_like(lower, 0.5), torch.zeros_like(lower)
        choice = torch.where(upper <= 0, half, zero), torch.where(lower >= 0, half, zero)
        return *upper_frame(curve, lower, upper), *upper_frame(curve, -upper, -lower), *choice

    def lines(site: Site, frame: Frame, free: Tensor) -> Lines:
        high_slope, high_intercept = line(curve, frame[:4], free[1], 1)
        low_slope, low_intercept = line(curve, frame[4:8], free[0], -1)
        return Lines(low_slope, low_intercept, high_slope, high_intercept)

    return Relaxation(
        frame=frame,
        lines=lines,
        init=lambda site, frame: torch.stack(frame[8:]),
        limits=unit_interval,
    )


def sigmoid(site: Site, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def tanh(site: Site, x: Tensor) -> Tensor:
    return torch.tanh(x)


def erf(site: Site, x: Tensor) -> Tensor:
    return torch.erf(x)


def atan(site: Site, x: Tensor) -> Tensor:
    return torch.atan(x)


def sigmoid_slope(x: Tensor) -> Tensor:
    """f' = f (1 - f), without cancellation."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def tanh_slope(x: Tensor) -> Tensor:
    """f' = 1 / cosh^2, without overflow."""
    return 4 * sigmoid_slope(2 * x)


def erf_slope(x: Tensor) -> Tensor:
    """f' = 2 exp(-x^2) / sqrt(pi)."""
    return 2 / math.sqrt(math.pi) * torch.exp(-x * x)


def atan_slope(x: Tensor) -> Tensor:
    """f' = 1 / (1 + x^2)."""
    return torch.reciprocal(1 + x * x)


SIGMOID = SShape(torch.sigmoid, sigmoid_slope, lambda x: -sigmoid_slope(x) * torch.tanh(x / 2))
TANH = SShape(torch.tanh, tanh_slope, lambda x: -2 * torch.tanh(x) * tanh_slope(x))
ERF = SShape(torch.erf, erf_slope, lambda x: -2 * x * erf_slope(x))
ATAN = SShape(torch.atan, atan_slope, lambda x: -2 * x * atan_slope(x) ** 2)

SMOOTH = {
    "sigmoid": Op(sigmoid, never, monotone(sigmoid), relaxation(SIGMOID)),
    "tanh": Op(tanh, never, monotone(tanh), relaxation(TANH)),
    "erf": Op(erf, never, monotone(erf), relaxation(ERF)),
    "atan": Op(atan, never, monotone(atan), relaxation(ATAN)),
}
