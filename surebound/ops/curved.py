"""Convex and concave functions: exp, log, sqrt, square, reciprocal, softplus and elu.

Of a convex function a line below is the tangent at any point of its domain, and the line above is the chord; of a
concave one the other way round. The tangent's position in the box is the relaxation's free value (auto_LiRPA, Xu et
al. 2020). A box that leaves the domain has lines at infinity, which prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.record import Frame, Interval, Lines, Op, Relaxation, never
from surebound.ops.reshape import monotone

Values = Sequence[Tensor | None]


@dataclass(frozen=True)
class Curve:
    """A function that is convex or concave on its domain, where `defined` holds for the lower end of a box.

    least: the smallest share of the box's width at which a tangent may touch, above 0 where the slope is infinite at
    the domain's end. first: of (lower, upper) the share that CROWN takes. straight: from where on it is
    a line.
    """

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    convex: bool
    defined: Callable[[Tensor], Tensor]
    least: float = 0.0
    first: Callable[[Tensor, Tensor], Tensor] = lambda lower, upper: torch.full_like(lower, 0.5)
    straight: float = torch.inf


def everywhere(lower: Tensor) -> Tensor:
    """Defined for all numbers."""
    return lower == lower


def above_zero(lower: Tensor) -> Tensor:
    """Defined for positive numbers."""
    return lower > 0


def chord(curve: Curve, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the line through both ends of the box; of a very narrow one the line that is level at its
    better end. At infinity where the function is not defined.
    """
    at_lower, at_upper = curve.f(lower), curve.f(upper)
    tiny = upper - lower <= 1e-12 * (1 + torch.maximum(lower.abs(), upper.abs()))
    level = torch.maximum(at_lower, at_upper) if curve.convex else torch.minimum(at_lower, at_upper)
    slope = (at_upper - at_lower) / torch.where(tiny, torch.ones_like(upper), upper - lower)
    slope = torch.where(tiny, torch.zeros_like(slope), slope)
    return slope, torch.where(tiny, level, at_lower - slope * lower)


def relaxation(curve: Curve) -> Relaxation:
    """Lines, start values and splits of a convex or concave function."""
    away = torch.inf if curve.convex else -torch.inf

    def frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
        """The box, whether the function is defined there, the chord's slope and intercept, CROWN's share."""
        inside = curve.defined(lower)
        one = torch.ones_like(lower)
        lower, upper = torch.where(inside, lower, one), torch.where(inside, upper, one)
        slope, intercept = chord(curve, lower, upper)
        intercept = torch.where(inside, intercept, torch.full_like(lower, away))
        return lower, upper, inside, slope, intercept, curve.first(lower, upper).clamp(curve.least, 1)

    def lines(site: Site, frame: Frame, free: Tensor) -> Lines:
        lower, upper, inside, slope, intercept, _ = frame
        touches = lower + free[0] * (upper - lower)
        tangent = curve.slope(touches)
        anchor = curve.f(touches) - tangent * touches
        anchor = torch.where(inside, anchor, torch.full_like(anchor, -away))
        if curve.convex:
            return Lines(tangent, anchor, slope, intercept)
        return Lines(slope, intercept, tangent, anchor)

    def limits(site: Site, frame: Frame) -> tuple[Tensor, Tensor]:
        like = frame[0].unsqueeze(0)
        return torch.full_like(like, curve.least), torch.ones_like(like)

    return Relaxation(
        frame=frame,
        lines=lines,
        init=lambda site, frame: frame[5].unsqueeze(0),
        limits=limits,
        loose=lambda site, values, lower, upper: (upper > lower) & (lower < curve.straight),
    )


def positive_tangent(lower: Tensor, upper: Tensor) -> Tensor:
    """The middle, or what is nearer to the lower end: a tangent of exp is positive on the box if it touches before
    lower + 1.
    """
    width = (upper - lower).clamp(min=1e-30)
    return (0.99 / width).clamp(max=0.5)


def exp(site: Site, x: Tensor) -> Tensor:
    return torch.exp(x)


def log(site: Site, x: Tensor) -> Tensor:
    return torch.log(x)


def sqrt(site: Site, x: Tensor) -> Tensor:
    return torch.sqrt(x)


def square(site: Site, x: Tensor) -> Tensor:
    return x * x


def square_interval(site: Site, x: Interval) -> Interval:
    ends = x.lower * x.lower, x.upper * x.upper
    inside = (x.lower < 0) & (x.upper > 0)
    low = torch.minimum(*ends)
    return Interval(torch.where(inside, torch.zeros_like(low), low), torch.maximum(*ends))


def reciprocal(site: Site, x: Tensor) -> Tensor:
    return torch.reciprocal(x)


def reciprocal_interval(site: Site, x: Interval) -> Interval:
    """1 / x of a box on one side of zero; of another one all numbers."""
    apart = (x.lower > 0) | (x.upper < 0)
    one, everything = torch.ones_like(x.lower), torch.full_like(x.lower, torch.inf)
    low, high = (torch.reciprocal(torch.where(apart, end, one)) for end in (x.upper, x.lower))
    return Interval(torch.where(apart, low, -everything), torch.where(apart, high, everything))


def softplus(site: Site, x: Tensor) -> Tensor:
    return F.softplus(x)


def elu(site: Site, x: Tensor) -> Tensor:
    return F.elu(x)


def elu_slope(x: Tensor) -> Tensor:
    """1 above zero, exp(x) below."""
    return torch.exp(x.clamp(max=0))


EXP = Curve(torch.exp, torch.exp, True, everywhere, first=positive_tangent)
LOG = Curve(torch.log, torch.reciprocal, False, above_zero)
SQRT = Curve(torch.sqrt, lambda x: 0.5 * torch.rsqrt(x), False, lambda lower: lower >= 0, least=0.01)
SQUARE = Curve(torch.square, lambda x: 2 * x, True, everywhere)
RECIPROCAL = Curve(torch.reciprocal, lambda x: -torch.reciprocal(x * x), True, above_zero)
SOFTPLUS = Curve(F.softplus, torch.sigmoid, True, everywhere)
ELU = Curve(F.elu, elu_slope, True, everywhere, straight=0.0)

CURVED = {
    "exp": Op(exp, never, monotone(exp), relaxation(EXP)),
    "log": Op(log, never, monotone(log), relaxation(LOG)),
    "sqrt": Op(sqrt, never, monotone(sqrt), relaxation(SQRT)),
    "square": Op(square, never, square_interval, relaxation(SQUARE)),
    "reciprocal": Op(reciprocal, never, reciprocal_interval, relaxation(RECIPROCAL)),
    "softplus": Op(softplus, never, monotone(softplus), relaxation(SOFTPLUS)),
    "elu": Op(elu, never, monotone(elu), relaxation(ELU)),
}
