"""Piecewise linear activations: relu, leaky relu, clip, grafted relu, and pooling by maximum.

Lines are the published ones (CROWN, Zhang et al. 2018): on a box with the kink inside, the chord on the
far side and any line through the kink with a slope between the pieces' slopes on the near side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.broadcast import aligned
from surebound.ops.record import Interval, Lines, Op, Relaxation, never
from surebound.ops.reshape import monotone

Values = Sequence[Tensor | None]


def two_pieces(left: float, right: float, lower: Tensor, upper: Tensor, free: Tensor) -> Lines:
    """Lines of f(x) = left x for x < 0, right x for x >= 0, on [lower, upper]; free [1, ...] in [0, 1].

    Convex (left <= right): above the chord, below slope left + free (right - left) through the origin.
    Concave: the same with the sides exchanged. A box on one side of 0 gives the exact line twice.
    """
    crossing = (lower < 0) & (upper > 0)
    width = torch.where(crossing, upper - lower, torch.ones_like(upper))
    weight = upper / width
    chord = left + (right - left) * weight
    chord_intercept = (left - right) * weight * lower
    exact = torch.where(lower >= 0, torch.full_like(lower, right), torch.full_like(lower, left))
    zero = torch.zeros_like(lower)
    chord = torch.where(crossing, chord, exact)
    chord_intercept = torch.where(crossing, chord_intercept, zero)
    tangent = torch.where(crossing, left + (right - left) * free[0], exact)
    if left <= right:
        return Lines(tangent, zero, chord, chord_intercept)
    return Lines(chord, chord_intercept, tangent, zero)


def adaptive(lower: Tensor, upper: Tensor) -> Tensor:
    """CROWN's choice of the free slope: 1 where the box reaches further up than down, else 0."""
    return (upper > -lower).to(lower.dtype).unsqueeze(0)


def unit_interval(free: Tensor) -> Tensor:
    """Free values live in [0, 1]."""
    return free.clamp(0, 1)


def zero_like(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """The kink of relu-like ops."""
    return torch.zeros_like(lower)


def crosses_zero(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    return (lower < 0) & (upper > 0)


def relu_forward(site: Site, x: Tensor) -> Tensor:
    return x.clamp(min=0)


RELU = Relaxation(
    lines=lambda site, values, lower, upper, free: two_pieces(0.0, 1.0, lower, upper, free),
    init=lambda site, values, lower, upper: adaptive(lower, upper),
    project=unit_interval,
    loose=crosses_zero,
    threshold=zero_like,
    exact_split=True,
)


def leaky_forward(site: Site, x: Tensor) -> Tensor:
    return F.leaky_relu(x, site.attrs["slope"])


def leaky_interval(site: Site, x: Interval) -> Interval:
    """Ends of the box and, for a negative slope, the kink at 0."""
    ends = leaky_forward(site, x.lower), leaky_forward(site, x.upper)
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    inside = (x.lower < 0) & (x.upper > 0)
    return Interval(torch.where(inside, low.clamp(max=0), low), torch.where(inside, high.clamp(min=0), high))


def leaky_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    return crosses_zero(site, values, lower, upper) & (site.attrs["slope"] != 1.0)


LEAKY = Relaxation(
    lines=lambda site, values, lower, upper, free: two_pieces(site.attrs["slope"], 1.0, lower, upper, free),
    init=lambda site, values, lower, upper: adaptive(lower, upper),
    project=unit_interval,
    loose=leaky_loose,
    threshold=zero_like,
    exact_split=True,
)


def clip_forward(site: Site, x: Tensor) -> Tensor:
    return x.clamp(site.attrs["min"], site.attrs["max"])


def clip_kinks(site: Site, lower: Tensor, upper: Tensor) -> tuple[float, float, Tensor, Tensor]:
    """The two kinks and where each lies inside the box."""
    low, high = site.attrs["min"], site.attrs["max"]
    return low, high, (lower < low) & (upper > low), (lower < high) & (upper > high)


def clip_lines(site: Site, values: Values, lower: Tensor, upper: Tensor, free: Tensor) -> Lines:
    """Lines of min(max(x, a), b).

    Through the lower kink (a, a) runs the lower line, slope free[0] times the steepest sound one; through
    the upper kink (b, b) the upper line, slope free[1] times the steepest; a kink outside the box gives
    the chord of what is left on that side.
    """
    low, high, at_low, at_high = clip_kinks(site, lower, upper)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    f_lower, f_upper = clip_forward(site, lower), clip_forward(site, upper)
    bent = at_low | at_high
    width = torch.where(bent, upper - lower, one)
    flat = (upper <= low) | (lower >= high)
    chord = torch.where(bent, (f_upper - f_lower) / width, torch.where(flat, zero, one))
    a, b = (low if at_low.any() else 0.0), (high if at_high.any() else 0.0)
    steep_low = torch.where(at_low, (f_upper - a) / torch.where(at_low, upper - a, one), chord)
    steep_high = torch.where(at_high, (b - f_lower) / torch.where(at_high, b - lower, one), chord)
    slope_low = torch.where(at_low, free[0] * steep_low, chord)
    slope_high = torch.where(at_high, free[1] * steep_high, chord)
    anchor = f_lower - chord * lower
    return Lines(
        slope_low,
        torch.where(at_low, a - slope_low * a, anchor),
        slope_high,
        torch.where(at_high, b - slope_high * b, anchor),
    )


def clip_init(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """The steep line where more of the box lies on the sloped side of the kink, else the flat one."""
    low, high, at_low, at_high = clip_kinks(site, lower, upper)
    f_lower, f_upper = clip_forward(site, lower), clip_forward(site, upper)
    below = at_low & (f_upper - low > low - lower)
    above = at_high & (high - f_lower > upper - high)
    return torch.stack([below, above]).to(lower.dtype)


def clip_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    _, _, at_low, at_high = clip_kinks(site, lower, upper)
    return at_low | at_high


def clip_threshold(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """The kink inside the box; of two the one further from the box's nearer end."""
    low, high, at_low, at_high = clip_kinks(site, lower, upper)
    prefer_low = at_low & (~at_high | (low - lower >= upper - high))
    zero = torch.zeros_like(lower)
    return torch.where(prefer_low, zero + low, torch.where(at_high, zero + high, zero))


CLIP = Relaxation(clip_lines, clip_init, unit_interval, clip_loose, clip_threshold, exact_split=True)


def graft_forward(site: Site, x: Tensor, mask: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """slope x + intercept where mask, else relu(x) (Linearity Grafting, Chen et al. 2022, eq. 2)."""
    return torch.where(mask, slope * x + intercept, x.clamp(min=0))


def graft_interval(site: Site, x: Interval, mask: Interval, slope: Interval, intercept: Interval) -> Interval:
    ends = slope.lower * x.lower + intercept.lower, slope.lower * x.upper + intercept.lower
    low = torch.where(mask.lower, torch.minimum(*ends), x.lower.clamp(min=0))
    return Interval(low, torch.where(mask.lower, torch.maximum(*ends), x.upper.clamp(min=0)))


def graft_lines(site: Site, values: Values, lower: Tensor, upper: Tensor, free: Tensor) -> Lines:
    """The line itself, twice, where grafted; relu's lines elsewhere."""
    _, mask, slope, intercept = values
    assert mask is not None and slope is not None and intercept is not None
    relu = two_pieces(0.0, 1.0, lower, upper, free)
    return Lines(
        torch.where(mask, slope, relu.lower_slope),
        torch.where(mask, intercept, relu.lower_intercept),
        torch.where(mask, slope, relu.upper_slope),
        torch.where(mask, intercept, relu.upper_intercept),
    )


def graft_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    mask = values[1]
    assert mask is not None
    return (lower < 0) & (upper > 0) & ~mask


GRAFT = Relaxation(
    graft_lines,
    lambda site, values, lower, upper: adaptive(lower, upper),
    unit_interval,
    graft_loose,
    zero_like,
    exact_split=True,
)


def max_pool2d(site: Site, x: Tensor) -> Tensor:
    a = site.attrs
    return F.max_pool2d(x, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


def maximum(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return torch.maximum(x, y)


def minimum(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return torch.minimum(x, y)


PIECEWISE = {
    "relu": Op(relu_forward, never, monotone(relu_forward), RELU),
    "leaky_relu": Op(leaky_forward, never, leaky_interval, LEAKY),
    "clip": Op(clip_forward, never, monotone(clip_forward), CLIP),
    "graft": Op(graft_forward, never, graft_interval, GRAFT),
    "max_pool2d": Op(max_pool2d, never, monotone(max_pool2d)),
    "maximum": Op(maximum, never, monotone(maximum)),
    "minimum": Op(minimum, never, monotone(minimum)),
}
