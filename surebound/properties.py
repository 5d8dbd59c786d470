"""What is to be shown: a property as the set of its counterexamples, in disjunctive normal form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import torch
from torch import Tensor

from surebound.errors import SpecError
from surebound.regions import Box, LpBall, Region


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One conjunction of half-spaces over the flattened output y: `C y <= t`, row by row.

    C: float64 [K, m]. t: float64 [K]; a threshold that float64 cannot hold is rounded up, so the set never
    shrinks. text: `c.y - t` of each row as a reader writes it. exact: the thresholds before rounding, one per
    row, or empty when `t` already is exact; witnesses are checked against these.
    """

    C: Tensor
    t: Tensor
    text: tuple[str, ...]
    exact: tuple[Fraction, ...] = ()

    @property
    def thresholds(self) -> tuple[Fraction, ...]:
        """The thresholds without rounding."""
        return self.exact or tuple(Fraction(value) for value in self.t.tolist())

    def holds(self, y: Tensor) -> bool:
        """True when every row holds for the flattened outputs y [m], decided without rounding.

        Non-finite outputs satisfy nothing.
        """
        values = y.tolist()
        if not all(map(math.isfinite, values)):
            return False
        return all(
            sum(Fraction(c) * Fraction(v) for c, v in zip(row, values, strict=True) if c) <= limit
            for row, limit in zip(self.C.tolist(), self.thresholds, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Case:
    """A region of inputs and the disjuncts that make its points counterexamples.

    limits: the box's (lower, upper) per flattened input as exact decimals, for witnesses; the float64 box of
    `region` contains them. None when the region's own numbers are the definition.
    """

    region: Region
    disjuncts: tuple[Disjunct, ...]
    limits: tuple[tuple[Decimal, Decimal], ...] | None = None

    @property
    def input_numel(self) -> int:
        """Number of flattened inputs."""
        return self.region.lower[0].numel()


@dataclass(frozen=True, eq=False)
class Property:
    """x is a counterexample iff it lies in the region of some case and one of that case's disjuncts holds."""

    cases: tuple[Case, ...]


def robust(
    x: Tensor,
    y: int,
    eps: float,
    classes: int,
    norm: float = math.inf,
    clip: tuple[float, float] | None = (0.0, 1.0),
) -> Property:
    """The class of `x` stays `y` within distance `eps`: counterexamples reach another class's score.

    x: one input [*shape], no sample axis. eps: radius in the units of x, which are the network's input units.
    norm: inf, 2 or 1. clip: the range of valid inputs, or None. One disjunct per other class k in ascending
    order, `Y_y - Y_k <= 0`. The region is what float64 makes of x, eps and clip.
    Raises SpecError for a label, radius or input that makes no sense.
    """
    _check_robust(x, y, eps, classes, norm, clip)
    low, high = (-math.inf, math.inf) if clip is None else clip
    centre = x.detach().to("cpu", torch.float64).unsqueeze(0)
    if norm == math.inf:
        region: Region = Box((centre - eps).clamp(min=low), (centre + eps).clamp(max=high))
    else:
        region = LpBall(
            centre,
            torch.tensor([eps], dtype=torch.float64),
            int(norm),
            torch.full_like(centre, low),
            torch.full_like(centre, high),
        )
    others = [k for k in range(classes) if k != y]
    return Property((Case(region, tuple(_beaten_by(y, k, classes) for k in others)),))


def check_fits(prop: Property, input_numel: int, output_numel: int) -> None:
    """Raise SpecError unless every case speaks about that many inputs and outputs of the network."""
    for case in prop.cases:
        if case.input_numel != input_numel:
            raise SpecError(
                f"the property has {case.input_numel} inputs, the network has {input_numel}; "
                "give the property of this network"
            )
        for disjunct in case.disjuncts:
            outputs = disjunct.C.shape[1]
            if outputs != output_numel:
                raise SpecError(
                    f"the property has {outputs} outputs, the network has {output_numel}; "
                    "give the property of this network"
                )


def _beaten_by(label: int, other: int, classes: int) -> Disjunct:
    row = torch.zeros(1, classes, dtype=torch.float64)
    row[0, label], row[0, other] = 1.0, -1.0
    return Disjunct(row, torch.zeros(1, dtype=torch.float64), (f"Y_{label} - Y_{other}",))


def _check_robust(x: Tensor, y: int, eps: float, classes: int, norm: float, clip: tuple[float, float] | None) -> None:
    if classes < 2:
        raise SpecError(f"robustness needs at least 2 classes, got {classes}")
    if not 0 <= y < classes:
        raise SpecError(f"label {y} is not one of the {classes} classes 0..{classes - 1}")
    if not (math.isfinite(eps) and eps >= 0):
        raise SpecError(f"eps must be a finite number >= 0 in input units, got {eps}")
    if norm not in (1, 2, math.inf):
        raise SpecError(f"norm must be 1, 2 or inf, got {norm}")
    if not torch.isfinite(x).all():
        raise SpecError("the input contains NaN or infinity; check how it was loaded")
    if clip is None:
        return
    low, high = clip
    if not low <= high:
        raise SpecError(f"clip range ({low}, {high}) is empty; give (lower, upper)")
    if x.min() < low or x.max() > high:
        raise SpecError(
            f"the input has values in [{x.min().item():g}, {x.max().item():g}], outside the clip range [{low}, {high}];"
            " clip is in the same units as the input: pass another range or clip=None"
        )
