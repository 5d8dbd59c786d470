"""Counterexamples that count: points in decimals, replayed on the original network without any tolerance."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import torch
from torch import Tensor

from surebound.errors import SpecError
from surebound.graph.ir import Original
from surebound.properties import Case, Property, check_fits
from surebound.regions import Box, LpBall

SLACK = 1e-5
SHRINKS = 13

_ENTRY = re.compile(
    r"\(\s*([XY])_(0|[1-9][0-9]{0,8})\s+([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*\)\s*"
)


@dataclass(frozen=True, eq=False)
class Witness:
    """A point of a case's region at which the original network satisfies one of the case's disjuncts.

    x: the point, exact decimals, flattened row-major. fed: what the network was given, [*input shape]: `x` in
    the network's dtype. y: what it answered, flattened. case, disjunct: what it is a counterexample to.
    """

    x: tuple[Decimal, ...]
    fed: Tensor
    y: Tensor
    case: int
    disjunct: int


def replay(point: Tensor, prop: Property, case: int, original: Original, input_shape: Sequence[int]) -> Witness | None:
    """Turn a suspected counterexample into a witness, or None when it is none.

    point: any shape with as many entries as `input_shape`. Its decimals (the shortest that give each float64)
    are moved into the closed region of prop.cases[case] exactly, then rounded to the network's dtype as a
    reader of decimals does it, through float64. The network runs on that one input, and every row of some
    disjunct must hold in exact arithmetic. NaN in the point and non-finite outputs give None.
    Raises SpecError when the property does not fit the network.
    """
    asked = prop.cases[case]
    values = [float(value) for value in point.detach().to("cpu", torch.float64).flatten().tolist()]
    _check_numel(asked, len(values))
    x = _inside(asked, values)
    if x is None:
        return None
    fed = torch.tensor([float(value) for value in x], dtype=torch.float64).to(original.dtype).reshape(*input_shape)
    with torch.no_grad():
        y = original(fed.unsqueeze(0))[0].detach().to("cpu").flatten()
    check_fits(Property((asked,)), len(values), y.numel())
    for index, disjunct in enumerate(asked.disjuncts):
        if disjunct.holds(y):
            return Witness(x, fed, y, case, index)
    return None


def replay_best(
    points: Tensor, prop: Property, case: int, original: Original, input_shape: Sequence[int], tries: int = 8
) -> Witness | None:
    """Replay the most promising of several points [N, ...] and return the first witness.

    One batched run ranks the points by how far they are from the nearest disjunct; at most `tries` of those
    that reach one up to rounding are replayed one by one, as `replay` does it.
    """
    asked = prop.cases[case]
    count = points.shape[0]
    if count == 0:
        return None
    given = points.detach().to("cpu", torch.float64)
    _check_numel(asked, given[0].numel())
    inside = asked.region.project(given.reshape(1, count, *asked.region.shape))[0]
    with torch.no_grad():
        y = original(inside.to(original.dtype).reshape(count, *input_shape)).detach().to("cpu", torch.float64)
    y = y.reshape(count, -1)
    check_fits(Property((asked,)), given[0].numel(), y.shape[1])
    distance = _distance(y, asked)
    for index in distance.argsort()[:tries].tolist():
        if distance[index] <= 0:
            witness = replay(inside[index], prop, case, original, input_shape)
            if witness is not None:
                return witness
    return None


def format_witness(witness: Witness) -> str:
    """The witness in VNN-COMP form, `((X_0 v) ... (Y_0 v) ...)`, one entry per line.

    X are the exact decimals, Y the shortest float64 decimals that give the network's answers back exactly.
    """
    inputs = [f"(X_{index} {value})" for index, value in enumerate(witness.x)]
    outputs = [f"(Y_{index} {float(value)!r})" for index, value in enumerate(witness.y.tolist())]
    return "(" + "\n".join(inputs + outputs) + ")"


def parse_witness(text: str) -> tuple[tuple[Decimal, ...], tuple[Decimal, ...]]:
    """The inputs and outputs of a witness in VNN-COMP form; raises SpecError unless it is complete."""
    body = text.strip()
    if not (body.startswith("(") and body.endswith(")")):
        raise SpecError("a witness looks like ((X_0 v) ... (Y_0 v) ...); the outer parentheses are missing")
    body = body[1:-1].strip()
    values: dict[str, list[Decimal]] = {"X": [], "Y": []}
    position = 0
    while position < len(body):
        match = _ENTRY.match(body, position)
        if match is None:
            raise SpecError(
                f"expected an entry such as (X_0 0.5) in the witness, found '{body[position : position + 40]}'"
            )
        letter, index, number = match.groups()
        if int(index) != len(values[letter]) or (letter == "X" and values["Y"]):
            raise SpecError(f"{letter}_{index} is out of order in the witness; expected X_0, X_1, ..., Y_0, Y_1, ...")
        values[letter].append(Decimal(number))
        position = match.end()
    if not values["X"] or not values["Y"]:
        raise SpecError("a witness needs at least one input and one output")
    return tuple(values["X"]), tuple(values["Y"])


def _check_numel(case: Case, count: int) -> None:
    if count != case.input_numel:
        raise SpecError(
            f"the point has {count} entries, the property {case.input_numel} inputs; give a point of its size"
        )


def _inside(case: Case, values: Sequence[float]) -> tuple[Decimal, ...] | None:
    """The nearest decimals in the closed region, or None for NaN or where none is found."""
    if any(map(math.isnan, values)):
        return None
    region = case.region
    if case.limits is not None:
        return _clipped(values, case.limits)
    if isinstance(region, Box):
        return _clipped(values, _float_limits(region))
    if isinstance(region, LpBall):
        return _into_ball(region, values)
    raise SpecError(f"witnesses in a region of kind {type(region).__name__} are not supported; use a Box or an LpBall")


def _clipped(values: Sequence[float], limits: Sequence[tuple[Decimal, Decimal]]) -> tuple[Decimal, ...]:
    decimals = (Decimal(repr(value)) for value in values)
    return tuple(max(low, min(value, high)) for value, (low, high) in zip(decimals, limits, strict=True))


def _float_limits(region: Box | LpBall) -> list[tuple[Decimal, Decimal]]:
    """The enclosing box of a single group, its floats written out in full."""
    lower, upper = (side[0].flatten().tolist() for side in (region.lower, region.upper))
    return [(Decimal(low), Decimal(high)) for low, high in zip(lower, upper, strict=True)]


def _into_ball(ball: LpBall, values: Sequence[float]) -> tuple[Decimal, ...] | None:
    """Project, then pull towards the centre until the decimals satisfy the ball's definition exactly."""
    limits = _float_limits(ball)
    centre = ball.centre.to(torch.float64)
    bounded = torch.tensor(values, dtype=torch.float64).reshape(1, 1, *ball.shape)
    point = ball.project(bounded)[0]
    for attempt in range(SHRINKS):
        shrink = 0.0 if attempt == 0 else 2.0 ** (2 * attempt - 54)
        decimals = _clipped((point + (centre - point) * shrink).flatten().tolist(), limits)
        if _in_ball(ball, decimals):
            return decimals
    return None


def _in_ball(ball: LpBall, decimals: Sequence[Decimal]) -> bool:
    """Exactly: is the distance from the centre at most the radius?"""
    radius = Fraction(ball.radius[0].item())
    centre = ball.centre[0].flatten().tolist()
    steps = [Fraction(value) - Fraction(middle) for value, middle in zip(decimals, centre, strict=True)]
    if ball.p == 1:
        return sum(map(abs, steps)) <= radius
    return sum(step * step for step in steps) <= radius * radius


def _distance(y: Tensor, case: Case) -> Tensor:
    """How far outputs y [N, m] are from the nearest disjunct, less what rounding may explain; [N]."""
    best = torch.full(y.shape[:1], math.inf, dtype=torch.float64)
    for disjunct in case.disjuncts:
        excess = y @ disjunct.C.T - disjunct.t
        scale = y.abs() @ disjunct.C.abs().T + disjunct.t.abs()
        best = torch.minimum(best, (excess - SLACK * scale).amax(1).nan_to_num(nan=math.inf))
    return best
