"""Schedules of rates and radii: values by hand, shapes, messages."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from surebound.errors import UsageError
from surebound.training.radii import Adaptive, BiLinear, ByBatch, Fixed, Linear, Progress, Range, Smoothed
from surebound.training.schedules import constant, cosine, cyclic, multistep, warmed_up

PAPER = Smoothed(8.8 / 255, start=101, length=801, batches=196, mid=0.4)
"""CNN-7 on CIFAR-10 (Xu et al. 2020)."""

# ---------------------------------------------------------------- rates


def test_one_cycle_goes_up_and_down_in_straight_lines() -> None:
    assert [cyclic()(t) for t in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [cyclic(0.4)(t) for t in (0, 0.2, 0.4, 0.7, 1, 1.1)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_warming_up_leads_to_the_schedule_and_leaves_it_the_rest_of_the_run() -> None:
    rate = warmed_up(0.2, cosine)
    assert [rate(t) for t in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    steps = warmed_up(0.5, multistep((0.5,)))
    assert [steps(t) for t in (0, 0.25, 0.5, 0.74, 0.75, 1)] == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1])
    assert [warmed_up(0, constant)(t) for t in (0, 1)] == [1, 1]


# ---------------------------------------------------------------- radii


def test_a_smoothed_ramp_by_hand() -> None:
    """First 10, last 30, middle 20: k = 0.5 / (10 * 4 * 10^3 + 10^4) = 1e-5."""
    ramp = Smoothed(0.5, start=2, length=2, batches=10, mid=0.5)
    assert (ramp.first, ramp.middle, ramp.last) == (10, 20, 30)
    expected = {0: 0, 10: 0, 11: 1e-5, 15: 5**4 * 1e-5, 20: 0.1, 25: 0.3, 30: 0.5, 31: 0.5, 1000: 0.5}
    assert [ramp(t) for t in expected] == pytest.approx(list(expected.values()))


def test_a_smoothed_ramp_is_the_formula_of_the_papers() -> None:
    assert (PAPER.first, PAPER.last) == (100 * 196, 901 * 196)
    assert PAPER.middle == 19600 + int(156996 * 0.4)
    a, b = PAPER.middle - PAPER.first, PAPER.last - PAPER.middle
    k = PAPER.eps / (b * 4 * a**3 + a**4)
    for t in (19601, 50_000, PAPER.middle - 1):
        assert PAPER(t) == pytest.approx(k * (t - PAPER.first) ** 4)
    for t in (PAPER.middle, 150_000, PAPER.last):
        assert PAPER(t) == pytest.approx(k * a**4 + (PAPER.eps - k * a**4) * (t - PAPER.middle) / b)


@pytest.mark.parametrize(("power", "mid"), [(2.0, 0.4), (4.0, 0.25), (4.0, 0.4)])
def test_a_smoothed_ramp_has_neither_a_jump_nor_a_bend_in_the_middle(power: float, mid: float) -> None:
    ramp = replace(PAPER, mid=mid, power=power)
    slope = (ramp.eps - ramp(ramp.middle)) / (ramp.last - ramp.middle)
    before, after = (ramp(t + 1) - ramp(t) for t in (ramp.middle - 1, ramp.middle))
    assert after == pytest.approx(slope) and before == pytest.approx(slope, rel=2 * power / (ramp.middle - ramp.first))


def test_a_smoothed_ramp_without_a_curve_is_a_line_and_without_a_line_all_curve() -> None:
    line, ramp = Linear(0.3, 2, 4, 5), Smoothed(0.3, 2, 4, 5, mid=0.0)
    assert [ramp(t) for t in range(40)] == pytest.approx([line(t) for t in range(40)])
    assert [replace(ramp, power=1.0, mid=0.5)(t) for t in range(40)] == pytest.approx([line(t) for t in range(40)])
    curve = replace(ramp, mid=1.0)
    assert [curve(t) for t in (5, 15, 25)] == pytest.approx([0, 0.3 / 16, 0.3])


@pytest.mark.parametrize("ramp", [Linear(0.3, 3, 4, 5), Smoothed(0.3, 3, 4, 5), Fixed(0.3), Smoothed(0.3, 1, 7, 1)])
def test_ramps_never_fall_and_stay_within_0_and_eps(ramp: ByBatch) -> None:
    values = [ramp(t) for t in range(60)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert min(values) >= 0 and max(values) == 0.3 == values[-1]


def test_other_ramps_by_hand() -> None:
    times = (0, 10, 15, 20, 30, 40, 50, 60)
    settings = (0.4, 2, 4, 10)
    assert [Linear(*settings)(t) for t in times] == pytest.approx([0, 0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert [BiLinear(*settings)(t) for t in times] == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.2, 0, 0])
    assert [Range(*settings)(t) for t in times] == [0, 0.4, 0.4, 0.4, 0.4, 0.4, 0, 0]
    assert Fixed(0.4)(0) == Fixed(0.4)(99) == 0.4


@pytest.mark.parametrize("kind", [Linear, Smoothed])
def test_a_ramp_of_no_length_is_a_step(kind: type[Linear] | type[Smoothed]) -> None:
    ramp = kind(0.4, 3, 0, 10)
    assert [ramp(t) for t in (0, 19, 20, 21)] == [0, 0, 0.4, 0.4]


def test_an_adaptive_radius_by_hand() -> None:
    schedule = Adaptive(0.02, start=2, batches=2, least=0.001, most=0.008)
    states = [Progress()]
    for batch, loss in enumerate([None, 2.0, 2.0, 1.0, 0.9, 1.0, 1.6, 0.01, 0.9, 0.8]):
        states.append(schedule.advance(states[-1], batch, loss))
    steps = [state.step for state in states[1:]]
    # two batches of epoch 1; then 2.0 as before (neither falls nor jumps); 1.0, 0.9 fall; 1.0 and 1.6 rise; ...
    assert steps == pytest.approx([0, 0, 1e-3, 1.5e-3, 2.25e-3, 2.25e-3, 1.125e-3, 1.6875e-3, 1e-3, 1.5e-3])
    grown = [0, 0, 1e-3, 2.5e-3, 4.75e-3, 7e-3, 8.125e-3, 9.8125e-3, 10.8125e-3, 12.3125e-3]
    assert [state.eps for state in states[1:]] == pytest.approx(grown)


def test_an_adaptive_radius_starts_with_the_least_step_and_ends_at_eps() -> None:
    schedule = Adaptive(0.02, start=1, batches=2, least=0.001, most=0.008)
    first = schedule.advance(Progress(), 0)
    assert first == Progress(0.001, 0.001) and schedule.advance(first, 1, 5.0) == Progress(0.002, 0.001, 5.0)
    state = first
    for batch in range(1, 100):
        state = schedule.advance(state, batch, 1 / batch)
        assert state.step <= 0.008
    assert state.eps == 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cyclic(0.0), r"peak .* within \(0, 1\).* got 0.0"),
        (lambda: warmed_up(1.0, constant), r"warming up must lie within \[0, 1\), got 1.0"),
        (lambda: Fixed(-0.1), "eps must be a finite number >= 0"),
        (lambda: Linear(float("nan"), 1, 1, 1), "eps must be a finite number >= 0"),
        (lambda: Linear(0.1, 0, 1, 1), "starts with epoch 1 or later, of 1 batch or more, got 0 and 1"),
        (lambda: Range(0.1, 1, 1, 0), "got 1 and 0"),
        (lambda: BiLinear(0.1, 1, -1, 1), "lasts 0 epochs or more, got length=-1"),
        (lambda: Smoothed(0.1, 1, 1, 1, mid=1.5), r"mid in \[0, 1\] and power >= 1, got 1.5 and 4.0"),
        (lambda: Smoothed(0.1, 1, 1, 1, power=0.5), "got 0.25 and 0.5"),
        (lambda: Adaptive(0.1, 1, 1, least=0.0), "0 < least <= most, got 0.0"),
        (lambda: Adaptive(0.1, 1, 1, growth=0.5), "growth >= 1"),
        (lambda: Adaptive(0.1, 1, 1).advance(Progress(0, 1e-9), 0, float("nan")), "the loss is nan"),
    ],
)
def test_messages(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
