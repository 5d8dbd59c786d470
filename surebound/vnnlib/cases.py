"""Boxes and half-spaces from constraints in normal form.

Each term must bound every input from both sides. Numbers are kept exactly up to here; now boxes are rounded outwards to
float64 and thresholds up, so the float64 property contains the decimal one, and `Case.limits` and `Disjunct.exact` keep
what was written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from itertools import chain, product

import torch

from surebound.errors import SpecError
from surebound.properties import Case, Disjunct
from surebound.regions import Box
from surebound.vnnlib.formula import Constraint, Limit, Row, Term, check_product
from surebound.vnnlib.numbers import as_float, decimal_of, representable, rounded_up, written
from surebound.vnnlib.source import Source


def place_of(constraint: Constraint) -> int:
    return constraint.start


@dataclass(frozen=True)
class Limits:
    """The tightest limits of the inputs that some assertions give."""

    lower: dict[int, Limit]
    upper: dict[int, Limit]

    def tightened(self, limits: Sequence[Limit]) -> Limits:
        """Only those of `limits` that are tighter than these, the tightest per input."""
        found = Limits({}, {})
        for limit in limits:
            known, new = (self.upper, found.upper) if limit.upper else (self.lower, found.lower)
            old = new.get(limit.entry, known.get(limit.entry))
            if old is None or (limit.value < old.value if limit.upper else limit.value > old.value):
                new[limit.entry] = limit
        return found

    def key(self) -> frozenset[tuple[int, bool, Fraction]]:
        return frozenset(
            (limit.entry, limit.upper, limit.value) for limit in chain(self.lower.values(), self.upper.values())
        )


def cases_of(
    source: Source, asserted: Sequence[list[Term]], inputs: int, outputs: int, shape: tuple[int, ...]
) -> tuple[Case, ...]:
    """All assertions conjoined, terms with the same box gathered, in the order of the file."""
    common = [constraint for part in asserted if len(part) == 1 for constraint in part[0]]
    choices = [part for part in asserted if len(part) > 1]
    base = Limits({}, {}).tightened(limits_of(common))
    rows = rows_of(common)
    check_product(source, choices, len(rows), 0)
    boxes: dict[frozenset[tuple[int, bool, Fraction]], tuple[Limits, int | None, list[Disjunct]]] = {}
    for combination in product(*choices):
        chosen = list(chain(*combination))
        both = sorted(chain(rows, rows_of(chosen)), key=place_of)
        branch = min(chosen, key=place_of).start if chosen else None
        if not both:
            raise source.error(
                "no output is constrained here, so every input would be a counterexample; assert something about Y_i",
                len(source.text) if branch is None else branch,
            )
        own = base.tightened(limits_of(chosen))
        _, _, disjuncts = boxes.setdefault(own.key(), (own, branch, []))
        disjuncts.append(disjunct_of(source, both, outputs))
    frame = Frame.of(source, base, inputs)
    return tuple(
        case_of(source, frame, own, branch, tuple(disjuncts), shape) for own, branch, disjuncts in boxes.values()
    )


def limits_of(constraints: Sequence[Constraint]) -> list[Limit]:
    return [constraint for constraint in constraints if isinstance(constraint, Limit)]


def rows_of(constraints: Sequence[Constraint]) -> list[Row]:
    return [constraint for constraint in constraints if isinstance(constraint, Row)]


@dataclass(frozen=True)
class Frame:
    """What all boxes have in common, per input: the limits, and their floats and decimals where they exist."""

    limits: Limits
    missing: tuple[tuple[int, bool], ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    decimals: tuple[tuple[Decimal, Decimal], ...]

    @staticmethod
    def of(source: Source, limits: Limits, inputs: int) -> Frame:
        lower, upper = [0.0] * inputs, [0.0] * inputs
        decimals = [(Decimal(0), Decimal(0))] * inputs
        missing: list[tuple[int, bool]] = []
        for index in range(inputs):
            low, high = limits.lower.get(index), limits.upper.get(index)
            if low is None or high is None:
                missing.extend((index, side) for side, known in ((False, low), (True, high)) if known is None)
            else:
                lower[index], upper[index], decimals[index] = side_by_side(source, low, high)
        return Frame(limits, tuple(missing), tuple(lower), tuple(upper), tuple(decimals))


def case_of(
    source: Source,
    frame: Frame,
    own: Limits,
    branch: int | None,
    disjuncts: tuple[Disjunct, ...],
    shape: tuple[int, ...],
) -> Case:
    """The case of one box: the common limits with the branch's own ones in their place."""
    for index, side in frame.missing:
        if index not in (own.upper if side else own.lower):
            raise missing_limit(source, index, side, branch)
    lower, upper, decimals = list(frame.lower), list(frame.upper), list(frame.decimals)
    for index in own.lower.keys() | own.upper.keys():
        low = own.lower.get(index) or frame.limits.lower[index]
        high = own.upper.get(index) or frame.limits.upper[index]
        lower[index], upper[index], decimals[index] = side_by_side(source, low, high)
    corners = (torch.tensor(side, dtype=torch.float64).reshape(1, *shape) for side in (lower, upper))
    return Case(Box(*corners), disjuncts, tuple(decimals))


def missing_limit(source: Source, index: int, upper: bool, branch: int | None) -> SpecError:
    kind, sign = ("upper", "<=") if upper else ("lower", ">=")
    where = "" if branch is None else f" in the conjunction that begins in line {source.line(branch)}"
    name = source.shown.get(f"X_{index}", f"X_{index}")
    return source.error(f"{name} has no {kind} limit{where}; add ({sign} {name} NUMBER)", source.declared[f"X_{index}"])


def side_by_side(source: Source, low: Limit, high: Limit) -> tuple[float, float, tuple[Decimal, Decimal]]:
    """Both limits of an input as floats rounded outwards and as decimals, rounded inwards if there are none."""
    name = source.shown.get(f"X_{low.entry}", f"X_{low.entry}")
    last = max(low.start, high.start)
    if low.value > high.value:
        raise source.error(
            f"the region is empty: {name} >= {written(low.value)} (line {source.line(low.start)}) and "
            f"{name} <= {written(high.value)} (line {source.line(high.start)}) exclude each other; correct one",
            last,
        )
    floats = as_float(low.value), as_float(high.value)
    if not all(map(math.isfinite, floats)):
        raise source.error(f"a limit of {name} is beyond the range of float64; bound it by finite floats", last)
    lower, upper = floats
    if Fraction(lower) > low.value:
        lower = math.nextafter(lower, -math.inf)
    if Fraction(upper) < high.value:
        upper = math.nextafter(upper, math.inf)
    decimals = decimal_of(low.value, ROUND_CEILING), decimal_of(high.value, ROUND_FLOOR)
    if decimals[0] > decimals[1]:
        raise source.error(f"no decimal number lies between the limits of {name}; write them as decimals", last)
    return lower, upper, decimals


def disjunct_of(source: Source, rows: Sequence[Row], outputs: int) -> Disjunct:
    """The half-spaces of one conjunction; thresholds that no float64 equals are rounded up."""
    scaled = [made_exact(source, row) for row in rows]
    matrix = torch.zeros(len(rows), outputs, dtype=torch.float64)
    for position, row in enumerate(scaled):
        for index, value in row.coefficients:
            matrix[position, index] = float(value)
    exact = tuple(row.threshold for row in scaled)
    rounded = [rounded_up(value) for value in exact]
    if not all(map(math.isfinite, rounded)):
        raise source.error("a threshold is beyond the range of float64", rows[0].start)
    inexact = any(Fraction(value) != limit for value, limit in zip(rounded, exact, strict=True))
    thresholds = torch.tensor(rounded, dtype=torch.float64)
    return Disjunct(matrix, thresholds, tuple(map(text_of, scaled)), exact if inexact else ())


def made_exact(source: Source, row: Row) -> Row:
    """The same half-space with coefficients that float64 holds exactly."""
    if all(representable(value) for _, value in row.coefficients):
        return row
    factor = math.lcm(*(value.denominator for _, value in row.coefficients))
    coefficients = tuple((index, value * factor) for index, value in row.coefficients)
    if not all(representable(value) for _, value in coefficients):
        raise source.error(
            "float64 cannot hold the coefficients of this constraint exactly, nor a common multiple of them; "
            "write them with fewer digits",
            row.start,
        )
    return Row(row.start, coefficients, row.threshold * factor)


def text_of(row: Row) -> str:
    """`c.y - t` for readers: "Y_7 - Y_0", "Y_0 - 3.99", "2 Y_1 + Y_3 + 1.5"."""
    parts = [
        (value < 0, f"Y_{index}" if abs(value) == 1 else f"{written(abs(value))} Y_{index}")
        for index, value in row.coefficients
        if value
    ]
    if row.threshold or not parts:
        parts.append((row.threshold > 0, written(abs(row.threshold))))
    (negative, first), *rest = parts
    return ("-" if negative else "") + first + "".join(f" {'-' if minus else '+'} {part}" for minus, part in rest)
