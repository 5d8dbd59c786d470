"""Functions that jump upward and are constant between jumps: sign, floor, ceil and round.

Above the function on a box lies every line through the top of its last jump that rises, but not so steeply that it
falls below the value at the box's lower end (or, with several jumps, below the tops of earlier ones: a slope of 1
follows them); below it, in the same way, lie lines through the foot of its first jump. The slopes are the
relaxation's free values. A point at which the function jumps belongs to both sides of a split there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.piecewise import unit_interval
from surebound.ops.record import Frame, Lines, Op, Relaxation, never
from surebound.ops.reshape import monotone

Values = Sequence[Tensor | None]
STEEPEST = 1e3
"""Slopes are at most so many times the chord's: a jump at the end of a box has lines of any slope. Nor do they rise by
the jump within the cube root of what the ends are rounded by, or rounding would be more than what they gain.
"""


@dataclass(frozen=True)
class Staircase:
    """A function that rises in jumps; if in several, then by 1 each, at distances of 1.

    leaves(a): where it jumps away from its value a. reaches(b): where it jumps to its value b.
    """

    f: Callable[[Tensor], Tensor]
    leaves: Callable[[Tensor], Tensor]
    reaches: Callable[[Tensor], Tensor]


def frame_of(stairs: Staircase, lower: Tensor, upper: Tensor) -> Frame:
    """The last jump and the value above it, the first and the value below it, the steepest slope through each, and
    CROWN's shares of these: the one where the area between line and function is smaller.
    """
    low, high = stairs.f(lower), stairs.f(upper)
    first, last = stairs.leaves(low), stairs.reaches(high)
    rises, width = high > low, (upper - lower).clamp(min=1e-30)
    rounded = torch.finfo(lower.dtype).eps ** (1 / 3) * torch.maximum(lower.abs(), upper.abs())
    shortest = torch.maximum(width / STEEPEST, rounded)

    def steepest(run: Tensor) -> Tensor:
        found = (high - low) / torch.maximum(run, shortest)
        found = torch.where(last > first, found.clamp(max=1), found)
        return torch.where(rises, found, torch.zeros_like(found))

    above, below = (last - lower > upper - last), (upper - first > first - lower)
    return (
        *(torch.where(rises, last, lower), high, steepest(last - lower)),
        *(torch.where(rises, first, lower), low, steepest(upper - first)),
        *(choice.to(lower.dtype) for choice in (above, below)),
    )


def lines(site: Site, frame: Frame, free: Tensor) -> Lines:
    """free [2, ...]: the shares of the steepest slopes, below and above."""
    last, high, steep_above, first, low, steep_below = frame[:6]
    below, above = free[0] * steep_below, free[1] * steep_above
    return Lines(below, low - below * first, above, high - above * last)


def relaxation(stairs: Staircase) -> Relaxation:
    """Lines, start values and splits of a staircase."""

    def loose(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
        return stairs.f(upper) > stairs.f(lower)

    def threshold(site: Site, values: Values, lower: Tensor, upper: Tensor) -> Tensor:
        """The jump next to the middle; the middle where no jump lies between the ends."""
        middle = lower / 2 + upper / 2
        here = stairs.f(middle)
        left, right = stairs.reaches(here), stairs.leaves(here)
        near = torch.where((middle - left < right - middle) & (left > lower), left, right)
        near = torch.where((near > lower) & (near < upper), near, left)
        return torch.where((near > lower) & (near < upper), near, middle)

    return Relaxation(
        frame=lambda site, values, lower, upper: frame_of(stairs, lower, upper),
        lines=lines,
        init=lambda site, frame: torch.stack([frame[7], frame[6]]),
        limits=unit_interval,
        loose=loose,
        threshold=threshold,
    )


def sign(site: Site, x: Tensor) -> Tensor:
    """-1, 0 or 1, with the gradient of clip(x, -1, 1) for attacks and training (Hubara et al. 2016, section 2.3)."""
    through = x.clamp(-1, 1)
    return torch.sign(x).detach() + (through - through.detach())


def floor(site: Site, x: Tensor) -> Tensor:
    return torch.floor(x)


def ceil(site: Site, x: Tensor) -> Tensor:
    return torch.ceil(x)


def round_even(site: Site, x: Tensor) -> Tensor:
    """To the nearest integer, from the middle to the even one."""
    return torch.round(x)


SIGN = Staircase(torch.sign, torch.zeros_like, torch.zeros_like)
FLOOR = Staircase(torch.floor, lambda a: a + 1, lambda b: b)
CEIL = Staircase(torch.ceil, lambda a: a, lambda b: b - 1)
ROUND = Staircase(torch.round, lambda a: a + 0.5, lambda b: b - 0.5)

STEPS = {
    "sign": Op(sign, never, monotone(sign), relaxation(SIGN)),
    "floor": Op(floor, never, monotone(floor), relaxation(FLOOR)),
    "ceil": Op(ceil, never, monotone(ceil), relaxation(CEIL)),
    "round": Op(round_even, never, monotone(round_even), relaxation(ROUND)),
}
