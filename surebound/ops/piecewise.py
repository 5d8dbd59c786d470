"""Piecewise linear activations: relu, leaky relu, clip, grafted and gated relu, maximum with a constant, pooling by
maximum.

Lines are the published ones (CROWN, Zhang et al. 2018): on a box with the kink inside, the chord on the
far side and any line through the kink with a slope between the pieces' slopes on the near side.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.broadcast import aligned
from surebound.ops.record import Frame, Interval, Lines, Op, Relaxation, never
from surebound.ops.reshape import monotone

Values = Sequence[Tensor | None]


def relu_chord(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Relu's chord on boxes [l, u], slope u / (u - l) and intercept -u l / (u - l), relu itself where one does not
    cross 0; as 1 or 0: is all of the box at least 0? And is that so, or some of it more than 0? Not differentiable.

    Taken as 1 / (1 - l / u) and 1 / (1 / u - 1 / l), which overflow nowhere and are right for one infinite end. Choices
    are made by arithmetic with 0 and 1, many times as fast as `where` (docs/decisions.md). NaN stays NaN; beside ends
    that are subnormal the line may be too low by less than the smallest normal number.
    """
    above = torch.ge(lower, 0, out=torch.empty_like(lower))
    reaches = torch.gt(upper, 0, out=torch.empty_like(upper)).maximum(above)
    low, high = lower.clamp(max=0), upper.clamp(min=torch.finfo(upper.dtype).tiny)
    none = torch.finfo(upper.dtype).eps ** 4  # a power of 2, lost beside the intercept
    slope = torch.rsub(low / high, 1).clamp_(max=1 / none).reciprocal_().sub_(none).minimum(reaches)
    intercept = high.reciprocal().sub_(low.reciprocal()).reciprocal_().mul_(reaches)
    return slope, intercept, above, reaches


class Chord(torch.autograd.Function):
    """`relu_chord` with the gradients of slope and intercept."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        share, rise, above, reaches = relu_chord(lower, upper)
        ctx.save_for_backward(share, upper, reaches > above)
        ctx.mark_non_differentiable(above, reaches)
        return share, rise, above, reaches

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (share, upper, crossing), (of_share, of_rise, _, _) = ctx.saved_tensors, grad_outputs
        rest, none = 1 - share, torch.zeros_like(share)
        of_lower = of_share * share.square() / upper - of_rise * share.square()
        of_upper = of_share * share * rest / upper + of_rise * rest.square()
        return torch.where(crossing, of_lower, none), torch.where(crossing, of_upper, none)


def two_piece_frame(left: float, right: float, lower: Tensor, upper: Tensor) -> Frame:
    """Of f(x) = left x for x < 0, right x for x >= 0, on [lower, upper]: the chord's slope and intercept,
    the least and the largest slope of a line through the origin on the other side.

    A box on one side of 0 has the exact line everywhere; one with an end that is NaN has NaN.
    """

    def between(share: Tensor) -> Tensor:
        return share if (left, right) == (0.0, 1.0) else left + (right - left) * share

    share, rise, *ends = Chord.apply(lower, upper)  # pyright: ignore[reportGeneralTypeIssues]
    least, largest = (between(end) for end in (ends if left <= right else reversed(ends)))
    return between(share), rise if right - left == 1 else (right - left) * rise, least, largest


def convex_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """left <= right: above the chord, below the line through the origin with slope `free`."""
    return Lines(free[0], None, frame[0], frame[1])


def concave_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """left > right: the same with the sides exchanged."""
    return Lines(frame[0], frame[1], free[0], None)


def slope_limits(site: Site, frame: Frame) -> tuple[Tensor, Tensor]:
    return frame[2].unsqueeze(0), frame[3].unsqueeze(0)


def adaptive(left: float, right: float, frame: Frame) -> Tensor:
    """CROWN's choice: the right piece where the box reaches further up than down (a steep chord), else the left."""
    chord, _, least, largest = frame[:4]
    steep = (chord > (left + right) / 2) == (left < right)
    return torch.where(least == largest, least, left + (right - left) * steep.to(chord.dtype)).unsqueeze(0)


def unit_interval(site: Site, frame: Frame) -> tuple[Tensor, Tensor]:
    """Free values that are shares live in [0, 1]."""
    like = frame[0].unsqueeze(0)
    return torch.zeros_like(like), torch.ones_like(like)


def zero_like(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """The kink of relu-like ops."""
    return torch.zeros_like(lower)


def crosses_zero(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    return (lower < 0) & (upper > 0)


def relu_forward(site: Site, x: Tensor) -> Tensor:
    return x.clamp(min=0)


RELU = Relaxation(
    frame=lambda site, values, lower, upper: two_piece_frame(0.0, 1.0, lower, upper),
    lines=convex_lines,
    init=lambda site, frame: adaptive(0.0, 1.0, frame),
    limits=slope_limits,
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


def leaky_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    return (convex_lines if site.attrs["slope"] <= 1 else concave_lines)(site, frame, free)


LEAKY = Relaxation(
    frame=lambda site, values, lower, upper: two_piece_frame(site.attrs["slope"], 1.0, lower, upper),
    lines=leaky_lines,
    init=lambda site, frame: adaptive(site.attrs["slope"], 1.0, frame),
    limits=slope_limits,
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


def clip_frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
    """Of min(max(x, a), b): the chord's slope and intercept, and for either kink (a, a) and (b, b) whether the
    box has it inside, the steepest sound slope of a line through it, and CROWN's share of that slope.

    CROWN takes the steep line where more of the box lies on the sloped side of the kink, else the flat one.
    """
    low, high, at_low, at_high = clip_kinks(site, lower, upper)
    one, zero = torch.ones_like(lower), torch.zeros_like(lower)
    f_lower, f_upper = clip_forward(site, lower), clip_forward(site, upper)
    bent = at_low | at_high
    flat = (upper <= low) | (lower >= high)
    chord = torch.where(bent, (f_upper - f_lower) / torch.where(bent, upper - lower, one), torch.where(flat, zero, one))
    a, b = finite(low), finite(high)
    steep_low = torch.where(at_low, (f_upper - a) / torch.where(at_low, upper - a, one), zero)
    steep_high = torch.where(at_high, (b - f_lower) / torch.where(at_high, b - lower, one), zero)
    below = at_low & (f_upper - low > low - lower)
    above = at_high & (high - f_lower > upper - high)
    return (
        chord,
        f_lower - chord * lower,
        at_low,
        steep_low,
        below.to(one.dtype),
        at_high,
        steep_high,
        above.to(one.dtype),
    )


def finite(kink: float) -> float:
    """The kink, or 0 for one at infinity that no box has inside."""
    return kink if isfinite(kink) else 0.0


def clip_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """Through the lower kink runs the lower line, slope free[0] times the steepest, through the upper kink the
    upper line with free[1]; a kink outside the box gives the chord of what is left on that side.
    """
    chord, anchor, at_low, steep_low, _, at_high, steep_high, _ = frame
    a, b = finite(site.attrs["min"]), finite(site.attrs["max"])
    slope_low = torch.where(at_low, free[0] * steep_low, chord)
    slope_high = torch.where(at_high, free[1] * steep_high, chord)
    return Lines(
        slope_low,
        torch.where(at_low, a - slope_low * a, anchor),
        slope_high,
        torch.where(at_high, b - slope_high * b, anchor),
    )


def clip_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    _, _, at_low, at_high = clip_kinks(site, lower, upper)
    return at_low | at_high


def clip_threshold(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """The kink inside the box; of two the one further from the box's nearer end."""
    low, high, at_low, at_high = clip_kinks(site, lower, upper)
    prefer_low = at_low & (~at_high | (low - lower >= upper - high))
    zero = torch.zeros_like(lower)
    return torch.where(prefer_low, zero + low, torch.where(at_high, zero + high, zero))


CLIP = Relaxation(
    clip_frame,
    clip_lines,
    lambda site, frame: torch.stack([frame[4], frame[7]]),
    unit_interval,
    clip_loose,
    clip_threshold,
    exact_split=True,
)


def graft_forward(site: Site, x: Tensor, mask: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """slope x + intercept where mask, else relu(x) (Linearity Grafting, Chen et al. 2022, eq. 2)."""
    return torch.where(mask, slope * x + intercept, x.clamp(min=0))


def graft_interval(site: Site, x: Interval, mask: Interval, slope: Interval, intercept: Interval) -> Interval:
    ends = slope.lower * x.lower + intercept.lower, slope.lower * x.upper + intercept.lower
    low = torch.where(mask.lower, torch.minimum(*ends), x.lower.clamp(min=0))
    return Interval(low, torch.where(mask.lower, torch.maximum(*ends), x.upper.clamp(min=0)))


def graft_frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
    """relu's frame with the line itself on both sides where grafted, and the lower line's intercept."""
    _, mask, slope, intercept = values
    assert mask is not None and slope is not None and intercept is not None
    chord, above, *slopes = two_piece_frame(0.0, 1.0, lower, upper)
    below = torch.where(mask, intercept, torch.zeros_like(lower))
    slopes = [torch.where(mask, slope, value) for value in slopes]
    return torch.where(mask, slope, chord), torch.where(mask, intercept, above), *slopes, below


def graft_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    return Lines(free[0], frame[4], frame[0], frame[1])


def graft_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    mask = values[1]
    assert mask is not None
    return (lower < 0) & (upper > 0) & ~mask


GRAFT = Relaxation(
    graft_frame,
    graft_lines,
    lambda site, frame: adaptive(0.0, 1.0, frame),
    slope_limits,
    graft_loose,
    zero_like,
    exact_split=True,
)


def gate_forward(site: Site, x: Tensor, gate: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """(1 - g) (slope x + intercept) + g relu(x): a ReLU at g = 1, a line at g = 0 (as in SNL, Cho et al. 2022)."""
    line = slope * x + intercept
    return line + gate * (x.clamp(min=0) - line)


def gate_interval(site: Site, x: Interval, gate: Interval, slope: Interval, intercept: Interval) -> Interval:
    """The values at both ends and, where 0 lies between them, at the kink."""
    given = gate.lower, slope.lower, intercept.lower
    ends = gate_forward(site, x.lower, *given), gate_forward(site, x.upper, *given)
    kink = torch.where((x.lower < 0) & (x.upper > 0), (1 - gate.lower) * intercept.lower, ends[0])
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return Interval(torch.minimum(low, kink), torch.maximum(high, kink))


def gate_frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
    """relu's frame; slope and intercept of (1 - g) line, the positive and the negative part of g."""
    _, gate, slope, intercept = values
    assert gate is not None and slope is not None and intercept is not None
    rest = 1 - gate
    parts = (rest * slope, rest * intercept, gate.clamp(min=0), gate.clamp(max=0))
    return *two_piece_frame(0.0, 1.0, lower, upper), *(part.expand_as(lower) for part in parts)


def gate_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """The line, and g times relu's lines; a negative g exchanges them."""
    chord, above, _, _, slope, intercept, up, down = frame
    return Lines(
        slope + up * free[0] + down * chord,
        intercept + down * above,
        slope + up * chord + down * free[0],
        intercept + up * above,
    )


def gate_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    gate = values[1]
    assert gate is not None
    return (lower < 0) & (upper > 0) & (gate != 0)


GATE = Relaxation(
    gate_frame,
    gate_lines,
    lambda site, frame: adaptive(0.0, 1.0, frame),
    slope_limits,
    gate_loose,
    zero_like,
    exact_split=True,
)


def at_least(site: Site, x: Tensor, c: Tensor) -> Tensor:
    """max(x, c) for a constant c that broadcasts to x."""
    return torch.maximum(x, c)


def at_least_frame(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Frame:
    """The frame of c + relu(x - c), and c."""
    c = at_least_threshold(site, values, lower, upper)
    chord, intercept, least, largest = two_piece_frame(0.0, 1.0, lower - c, upper - c)
    return chord, (1 - chord) * c + intercept, least, largest, c


def at_least_lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    return Lines(free[0], (1 - free[0]) * frame[4], frame[0], frame[1])


def at_least_loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    c = at_least_threshold(site, values, lower, upper)
    return crosses_zero(site, values, lower - c, upper - c)


def at_least_threshold(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
    """c, with a value for every entry of the box."""
    assert values[1] is not None
    return values[1].expand_as(lower)


AT_LEAST = Relaxation(
    at_least_frame,
    at_least_lines,
    lambda site, frame: adaptive(0.0, 1.0, frame),
    slope_limits,
    at_least_loose,
    at_least_threshold,
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
    "gate": Op(gate_forward, never, gate_interval, GATE),
    "at_least": Op(at_least, never, monotone(at_least), AT_LEAST),
    "max_pool2d": Op(max_pool2d, never, monotone(max_pool2d)),
    "maximum": Op(maximum, never, monotone(maximum)),
    "minimum": Op(minimum, never, monotone(minimum)),
}
