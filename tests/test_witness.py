"""Witnesses: exact decimals, the original network, tolerance zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surebound.errors import SpecError
from surebound.properties import Case, Property, robust
from surebound.regions import LpBall, Region
from surebound.vnnlib import parse_vnnlib
from surebound.witness import Witness, format_witness, parse_witness, replay, replay_best


@dataclass(frozen=True)
class Network:
    """An original network that remembers what it was fed."""

    function: Callable[[Tensor], Tensor] = lambda x: x
    dtype: torch.dtype = torch.float32
    fed: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        self.fed.append(x)
        return self.function(x)


def prop(body: str, inputs: int = 1, outputs: int = 1) -> Property:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return parse_vnnlib("".join(f"(declare-const {name} Real)\n" for name in names) + body)


POINT = "(assert (= X_0 0.1))"
FREE = "(assert (<= X_0 1))(assert (>= X_0 -1))"


def test_decimal_that_no_float_equals_is_the_witness() -> None:
    network = Network()
    witness = replay(torch.tensor([0.7]), prop(POINT + "(assert (>= Y_0 0.1))"), 0, network, (1,))
    assert witness is not None
    assert witness.x == (Decimal("0.1"),)
    assert witness.fed.dtype == torch.float32
    assert witness.fed.item() == torch.tensor(0.1).item() > 0.1
    assert witness.y.item() == witness.fed.item()
    assert [tuple(x.shape) for x in network.fed] == [(1, 1)]


def test_tolerance_is_zero() -> None:
    """float32(0.1) = 0.100000001..., which is not at most 0.1."""
    asked = prop(POINT + "(assert (<= Y_0 0.1))")
    assert replay(torch.tensor([0.1]), asked, 0, Network(), (1,)) is None
    just_below = Network(lambda x: torch.nextafter(x, torch.zeros_like(x)))
    assert replay(torch.tensor([0.1]), asked, 0, just_below, (1,)) is not None


def test_the_threshold_before_rounding_decides() -> None:
    """The double nearest to 0.1 lies above 0.1, and the disjunct's float threshold is that double."""
    asked = prop(FREE + "(assert (<= Y_0 0.1))")
    assert asked.cases[0].disjuncts[0].t.item() == 0.1
    assert replay(torch.tensor([0.1]).double(), asked, 0, Network(dtype=torch.float64), (1,)) is None
    below = torch.tensor([math.nextafter(0.1, 0)], dtype=torch.float64)
    assert replay(below, asked, 0, Network(dtype=torch.float64), (1,)) is not None


def test_rows_are_summed_exactly() -> None:
    """In float64 1e17 + 1 - 1e17 is 0."""
    asked = prop(FREE + "(assert (<= (+ Y_0 Y_1 Y_2) 0))", outputs=3)
    for one, counts in ((1.0, False), (0.0, True)):
        answer = torch.tensor([[1e17, one, -1e17]], dtype=torch.float64)
        witness = replay(torch.zeros(1), asked, 0, Network(lambda x, y=answer: y, torch.float64), (1,))
        assert (witness is not None) == counts


def test_equality_on_the_boundary_counts() -> None:
    asked = robust(torch.tensor([0.5, 0.5]), 0, 0.25, 2)
    witness = replay(torch.tensor([0.25, 0.25]), asked, 0, Network(), (2,))
    assert witness is not None
    assert witness.x == (Decimal("0.25"), Decimal("0.25"))
    assert replay(torch.tensor([0.5, 0.25]), asked, 0, Network(), (2,)) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5.0, "0.3"), (-5.0, "0.1"), (math.inf, "0.3"), (0.1, "0.1"), (0.25, "0.25"), (math.nextafter(0.1, 0), "0.1")],
)
def test_points_are_clipped_in_decimals(value: float, expected: str) -> None:
    asked = prop("(assert (>= X_0 0.1))(assert (<= X_0 0.3))(assert (<= Y_0 1))")
    witness = replay(torch.tensor([value], dtype=torch.float64), asked, 0, Network(), (1,))
    assert witness is not None
    assert witness.x == (Decimal(expected),)
    assert witness.fed.item() == torch.tensor(float(expected)).item()


def test_limits_beyond_float64_precision_are_respected() -> None:
    limit = "0.10000000000000000000001"
    asked = prop(f"(assert (>= X_0 {limit}))(assert (<= X_0 1))(assert (<= Y_0 1))")
    witness = replay(torch.tensor([0.1], dtype=torch.float64), asked, 0, Network(), (1,))
    assert witness is not None
    assert witness.x == (Decimal(limit),)


@given(
    st.lists(st.decimals(-10, 10, places=20), min_size=2, max_size=2),
    st.floats(allow_nan=False),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_witnesses_lie_in_the_closed_region(limits: list[Decimal], value: float, dtype: torch.dtype) -> None:
    low, high = sorted(limits)
    asked = prop(f"(assert (>= X_0 {low:f}))(assert (<= X_0 {high:f}))(assert (<= Y_0 11))")
    witness = replay(torch.tensor([value], dtype=torch.float64), asked, 0, Network(dtype=dtype), (1,))
    assert witness is not None
    assert low <= witness.x[0] <= high
    assert torch.equal(witness.fed, torch.tensor([float(witness.x[0])], dtype=torch.float64).to(dtype))


def test_the_network_gets_its_own_shape_row_major() -> None:
    box = "".join(f"(assert (<= X_{i} 9))(assert (>= X_{i} 0))" for i in range(6))
    network = Network(lambda x: x[:, :, 0, 2])
    asked = prop(box + "(assert (>= Y_0 2))", inputs=6)
    witness = replay(torch.arange(6.0), asked, 0, network, (1, 2, 3))
    assert witness is not None
    assert network.fed[0].shape == (1, 1, 2, 3)
    assert torch.equal(witness.fed, torch.arange(6.0).reshape(1, 2, 3))
    assert witness.x == tuple(map(Decimal, ("0.0", "1.0", "2.0", "3.0", "4.0", "5.0")))


def test_case_and_disjunct_are_told() -> None:
    text = "(assert (or (and (= X_0 1) (<= Y_0 0)) (and (= X_0 2) (<= Y_0 0)) (and (= X_0 2) (>= Y_0 2))))"
    asked = prop(text)
    assert replay(torch.tensor([1.0]), asked, 0, Network(), (1,)) is None
    witness = replay(torch.tensor([1.0]), asked, 1, Network(), (1,))
    assert witness is not None
    assert (witness.case, witness.disjunct, witness.x) == (1, 1, (Decimal(2),))


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
def test_answers_that_are_no_numbers_never_count(answer: float) -> None:
    asked = prop(FREE + "(assert (<= Y_0 0))", outputs=2)
    network = Network(lambda x: torch.tensor([[-1.0, answer]]).expand(len(x), 2))
    assert replay(torch.zeros(1), asked, 0, network, (1,)) is None
    assert replay_best(torch.zeros(3, 1), asked, 0, network, (1,)) is None


def test_points_that_are_no_numbers_never_count() -> None:
    network = Network(torch.zeros_like)
    asked = prop(FREE + "(assert (<= Y_0 0))")
    assert replay(torch.tensor([math.nan]), asked, 0, network, (1,)) is None
    assert network.fed == []
    assert replay_best(torch.tensor([[math.nan]]), asked, 0, network, (1,)) is None


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_ball_witnesses_satisfy_the_definition_exactly(norm: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(20, generator=generator)
    asked = robust(centre, 0, 0.3, 2, norm=norm)
    point = centre + torch.randn(20, generator=generator)
    witness = replay(point, asked, 0, Network(lambda x: x[:, :2] * 0), (20,))
    assert witness is not None
    steps = [Fraction(v) - Fraction(c) for v, c in zip(witness.x, centre.tolist(), strict=True)]
    size = sum(abs(step) ** norm for step in steps)
    assert size <= Fraction(0.3) ** norm
    assert size >= Fraction(0.29999) ** norm
    assert all(0 <= value <= 1 for value in witness.x)


def test_ball_of_radius_zero_gives_its_centre() -> None:
    asked = robust(torch.tensor([0.1]), 0, 0.0, 2, norm=2)
    assert isinstance(asked.cases[0].region, LpBall)
    witness = replay(torch.tensor([0.9]), asked, 0, Network(lambda x: torch.cat([x, x], 1)), (1,))
    assert witness is not None
    assert Fraction(witness.x[0]) == Fraction(torch.tensor(0.1).item())


def test_best_of_several_points() -> None:
    asked = prop(FREE + "(assert (or (<= Y_0 -0.5) (>= Y_0 0.75)))")
    network = Network()
    points = torch.tensor([[0.0], [0.5], [0.8], [-0.4], [0.7]])
    witness = replay_best(points, asked, 0, network, (1,))
    assert witness is not None
    assert witness.fed.item() == pytest.approx(0.8)
    assert witness.disjunct == 1
    assert [len(x) for x in network.fed] == [5, 1]


def test_best_never_trusts_the_batch() -> None:
    """A network that answers differently in a batch: only the single run counts."""
    asked = prop(FREE + "(assert (<= Y_0 0))")
    network = Network(lambda x: torch.full((len(x), 1), -1.0 if len(x) > 1 else 1.0))
    assert replay_best(torch.zeros(6, 1), asked, 0, network, (1,), tries=3) is None
    assert [len(x) for x in network.fed] == [6, 1, 1, 1]


def test_best_tries_points_that_miss_by_rounding_and_no_others() -> None:
    asked = prop(FREE + "(assert (<= Y_0 0.5))")
    network = Network(lambda x: torch.full((len(x), 1), 0.5000001 if len(x) > 1 else 0.5))
    assert replay_best(torch.zeros(2, 1), asked, 0, network, (1,)) is not None
    network = Network(lambda x: torch.full((len(x), 1), 0.51 if len(x) > 1 else 0.5))
    assert replay_best(torch.zeros(2, 1), asked, 0, network, (1,)) is None
    assert [len(x) for x in network.fed] == [2]


def test_best_of_no_points() -> None:
    assert replay_best(torch.zeros(0, 1), prop(FREE + "(assert (<= Y_0 0))"), 0, Network(), (1,)) is None


def test_sizes_that_do_not_fit_are_refused() -> None:
    asked = prop(FREE + "(assert (<= Y_0 0))")
    with pytest.raises(SpecError, match=r"the point has 2 entries, the property 1 inputs"):
        replay(torch.zeros(2), asked, 0, Network(), (2,))
    with pytest.raises(SpecError, match=r"the point has 2 entries, the property 1 inputs"):
        replay_best(torch.zeros(3, 2), asked, 0, Network(), (2,))
    two = Network(lambda x: torch.cat([x, x], 1))
    with pytest.raises(SpecError, match=r"the property has 1 outputs, the network has 2"):
        replay(torch.zeros(1), asked, 0, two, (1,))
    with pytest.raises(SpecError, match=r"the property has 1 outputs, the network has 2"):
        replay_best(torch.zeros(3, 1), asked, 0, two, (1,))


def test_unknown_regions_are_refused() -> None:
    sphere = cast(Region, SimpleNamespace(lower=torch.zeros(1, 1), upper=torch.ones(1, 1)))
    asked = prop(FREE + "(assert (<= Y_0 0))")
    odd = Property((Case(sphere, asked.cases[0].disjuncts),))
    with pytest.raises(SpecError, match=r"witnesses in a region of kind SimpleNamespace are not supported; use a Box"):
        replay(torch.zeros(1), odd, 0, Network(), (1,))


def made(x: tuple[str, ...], y: list[float]) -> Witness:
    return Witness(tuple(map(Decimal, x)), torch.zeros(len(x)), torch.tensor(y), 0, 0)


def test_witness_text() -> None:
    text = format_witness(made(("0.1", "-1E-7"), [0.1, -2.0]))
    assert text == "((X_0 0.1)\n(X_1 -1E-7)\n(Y_0 0.10000000149011612)\n(Y_1 -2.0))"
    assert parse_witness(text) == (
        (Decimal("0.1"), Decimal("-1E-7")),
        (Decimal("0.10000000149011612"), Decimal("-2.0")),
    )


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=3))
def test_witness_text_gives_everything_back(values: list[float]) -> None:
    witness = made(tuple(map(repr, values)), values)
    x, y = parse_witness(format_witness(witness))
    assert x == witness.x
    assert torch.equal(torch.tensor([float(v) for v in y]), witness.y)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sat", r"the outer parentheses are missing"),
        ("((X_0 1)", r"expected an entry such as \(X_0 0\.5\) in the witness, found '\(X_0 1'"),
        ("((X_0 nan) (Y_0 1))", r"found '\(X_0 nan\)"),
        ("((X_1 1) (Y_0 1))", r"X_1 is out of order"),
        ("((X_0 1) (Y_0 1) (X_1 1))", r"X_1 is out of order"),
        ("((X_0 1) (X_0 1) (Y_0 1))", r"X_0 is out of order"),
        ("((X_0 1))", r"at least one input and one output"),
        ("()", r"at least one input and one output"),
    ],
)
def test_incomplete_witness_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_witness(text)
