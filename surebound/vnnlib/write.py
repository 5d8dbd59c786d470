"""Writes properties as VNN-LIB 1.0 files, in the plain form that every VNN-COMP tool reads."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from surebound.errors import SpecError
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box


def write_vnnlib(path: Path, prop: Property, comment: str = "") -> None:
    """Write a property with one box to `path`; see `vnnlib_text`."""
    path.write_text(vnnlib_text(prop, comment), encoding="utf-8")


def vnnlib_text(prop: Property, comment: str = "") -> str:
    """VNN-LIB 1.0 text whose assignments are the property's counterexamples, one disjunct of outputs per line.

    Limits are the case's decimals or the exact decimals of the region's float64 box, so that reading the text
    gives the same box; thresholds are the exact decimals of `Disjunct.t`. comment: lines put at the top.
    Raises SpecError for several cases or for a region that is not a box, which the plain form cannot say.
    """
    if len(prop.cases) != 1:
        raise SpecError(f"a plain VNN-LIB file states one box, the property has {len(prop.cases)}; write one file each")
    (case,) = prop.cases
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{i} Real)" for i in range(case.input_numel)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(case.disjuncts[0].C.shape[1])]
    for i, (low, high) in enumerate(_limits(case)):
        lines += [f"(assert (>= X_{i} {low:f}))", f"(assert (<= X_{i} {high:f}))"]
    lines += ["(assert (or", *(f"    {_conjunction(disjunct)}" for disjunct in case.disjuncts), "))"]
    return "\n".join(lines) + "\n"


def _limits(case: Case) -> list[tuple[Decimal, Decimal]]:
    if case.limits is not None:
        return list(case.limits)
    region = case.region
    if not isinstance(region, Box):
        raise SpecError(f"VNN-LIB limits inputs one by one; a region of kind {type(region).__name__} cannot be written")
    pairs = zip(region.lower.double().flatten().tolist(), region.upper.double().flatten().tolist(), strict=True)
    return [(Decimal(low), Decimal(high)) for low, high in pairs]


def _conjunction(disjunct: Disjunct) -> str:
    rows = zip(disjunct.C.tolist(), disjunct.t.tolist(), strict=True)
    return f"(and {' '.join(_row(row, threshold) for row, threshold in rows)})"


def _row(row: list[float], threshold: float) -> str:
    """`c y <= t`, as `Y_i <= Y_j` or `Y_i <= t` where it is one of those."""
    terms = {index: value for index, value in enumerate(row) if value}
    positive = [index for index, value in terms.items() if value == 1]
    negative = [index for index, value in terms.items() if value == -1]
    limit = f"{Decimal(threshold):f}"
    if len(terms) == 2 and len(positive) == len(negative) == 1 and threshold == 0:
        return f"(<= Y_{positive[0]} Y_{negative[0]})"
    if len(terms) == len(positive) == 1:
        return f"(<= Y_{positive[0]} {limit})"
    if len(terms) == len(negative) == 1:
        return f"(>= Y_{negative[0]} {Decimal(0) - Decimal(threshold):f})"
    parts = " ".join(f"(* {Decimal(value):f} Y_{index})" for index, value in terms.items())
    return f"(<= (+ {parts}) {limit})"
