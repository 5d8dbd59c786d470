"""Exact numbers as float64 and as decimals, rounded to the side that is safe."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction


def as_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def rounded_up(value: Fraction) -> float:
    """The least float64 that is not below `value`."""
    nearest = as_float(value)
    if math.isinf(nearest) or Fraction(nearest) >= value:
        return nearest
    return math.nextafter(nearest, math.inf)


def representable(value: Fraction) -> bool:
    nearest = as_float(value)
    return math.isfinite(nearest) and Fraction(nearest) == value


def exact_decimal(value: Fraction) -> Decimal | None:
    """The decimal equal to `value`, if its expansion ends."""
    denominator = value.denominator
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    digits = Decimal(value.numerator * (10**places // denominator))
    return Context(prec=1_000_000).scaleb(digits, -places)


def decimal_of(value: Fraction, rounding: str) -> Decimal:
    exact = exact_decimal(value)
    if exact is not None:
        return exact
    return Context(prec=60, rounding=rounding).divide(Decimal(value.numerator), Decimal(value.denominator))


def written(value: Fraction) -> str:
    """A number for messages and row texts: its decimals if they end, otherwise the fraction."""
    exact = exact_decimal(value)
    return str(value) if exact is None else str(exact)
