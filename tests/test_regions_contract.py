"""Regions: exact minima of linear maps, samples and projections that stay inside, casts that lose nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from surebound.errors import SpecError
from surebound.linear.maps import Dense, LinearMap, Rows
from surebound.regions import Box, LpBall, Region

G = 4
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Made:
    """A region and what it was made from: a norm ball (p infinite: none) cut to limits."""

    region: Region
    centre: Tensor
    radius: Tensor
    p: float
    lower: Tensor
    upper: Tensor

    def breach(self, x: Tensor) -> float:
        """How far the worst of the points [G, n, *shape] lies outside."""
        low, high = self.lower.unsqueeze(1) - x, x - self.upper.unsqueeze(1)
        worst = max(float(low.max()), float(high.max()))
        if np.isfinite(self.p):
            size = (x - self.centre.unsqueeze(1)).flatten(2).abs().pow(self.p).sum(-1).pow(1 / self.p)
            worst = max(worst, float((size - self.radius.unsqueeze(1)).max()))
        return worst


def box(shape: tuple[int, ...], scale: float = 1.0) -> Made:
    centre = torch.randn(G, *shape, dtype=torch.float64) * scale
    lower, upper = centre - torch.rand_like(centre) * scale, centre + torch.rand_like(centre) * scale
    return Made(Box(lower, upper), centre, torch.zeros(G), np.inf, lower, upper)


def thin(shape: tuple[int, ...], scale: float = 1.0) -> Made:
    """A box with some sides of length zero."""
    made = box(shape, scale)
    upper = torch.where(torch.rand_like(made.upper) < 0.5, made.lower, made.upper)
    return Made(Box(made.lower, upper), made.centre, made.radius, np.inf, made.lower, upper)


def ball(p: int, cut: str) -> Callable[..., Made]:
    """A ball, `cut` "not", "some" (the limits take part of it away), or "most" (little but the limits is left)."""

    def make(shape: tuple[int, ...], scale: float = 1.0) -> Made:
        centre = torch.randn(G, *shape, dtype=torch.float64) * scale
        radius = (0.5 + torch.rand(G, dtype=torch.float64)) * scale
        reach = {"not": torch.inf, "some": 0.4, "most": 0.05}[cut] * scale
        lower, upper = (
            centre - reach * (0.1 + torch.rand_like(centre)),
            centre + reach * (0.1 + torch.rand_like(centre)),
        )
        return Made(LpBall(centre, radius, p, lower, upper), centre, radius, float(p), lower, upper)

    return make


REGIONS: dict[str, Callable[..., Made]] = {
    "box": box,
    "thin box": thin,
    "l2 ball": ball(2, "not"),
    "l2 ball, cut": ball(2, "some"),
    "l2 ball, mostly cut away": ball(2, "most"),
    "l1 ball": ball(1, "not"),
    "l1 ball, cut": ball(1, "some"),
    "l1 ball, mostly cut away": ball(1, "most"),
}
each_region = pytest.mark.parametrize("kind", REGIONS)
each_shape = pytest.mark.parametrize("shape", [(4,), (2, 3), (1,)], ids=str)
each_scale = pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4, 1e8])


def random_rows(shape: tuple[int, ...], count: int = 6) -> Dense:
    """Rows with zeros, one zero row and one with equal entries."""
    value = torch.randn(G, count, *shape, dtype=torch.float64)
    value = torch.where(torch.rand_like(value) < 0.2, torch.zeros_like(value), value)
    value[:, 1] = 0.0
    value[:, 2] = -0.5
    return Dense(value)


def values(rows: LinearMap, x: Tensor) -> Tensor:
    """A x: [G, S, n] for points [G, n, *shape]."""
    return torch.einsum("gsm,gnm->gsn", rows.dense().reshape(*rows.rows, -1), x.flatten(2))


# --- oracles: one row, centre, radius, limits as flat arrays ------------------------------------------------------


def box_oracle(a: Array, centre: Array, radius: float, lower: Array, upper: Array) -> float:
    """The least value at a corner."""
    corners = itertools.product(*zip(lower, upper, strict=True))
    return min(float(a @ np.array(corner)) for corner in corners)


def l1_oracle(a: Array, centre: Array, radius: float, lower: Array, upper: Array) -> float:
    """A linear program in the positive and negative parts of the step."""
    room = list(np.minimum(upper - centre, radius)) + list(np.minimum(centre - lower, radius))
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(
        np.concatenate([a, -a]),
        np.ones((1, 2 * len(a))),
        [radius],
        bounds=[(0, r) for r in room],
        method="highs",
        options=options,
    )
    assert found.status == 0, found.message
    return float(a @ centre + found.fun)


def l2_oracle(a: Array, centre: Array, radius: float, lower: Array, upper: Array) -> float:
    """|step_i| = min(t |a_i|, room_i) with t from the piece between two breakpoints where the norm is the radius."""
    room = np.where(a > 0, centre - lower, upper - centre)
    size = np.abs(a)
    moving = size > 0
    if not moving.any():
        return float(a @ centre)
    order = np.argsort(np.where(moving, room / np.where(moving, size, 1), np.inf))
    step = np.where(moving, room, 0.0)
    for k in range(int(moving.sum())):
        full, free = order[:k], [i for i in order[k:] if moving[i]]
        left = radius**2 - float((room[full] ** 2).sum())
        if left < 0:
            break
        t = np.sqrt(left / float((size[free] ** 2).sum()))
        guess = np.zeros(len(a))
        guess[full], guess[free] = room[full], t * size[free]
        if (guess <= room + 1e-12 * (1 + radius)).all():
            step = guess
            break
    return float(a @ centre - size @ step)


ORACLES = {np.inf: box_oracle, 1.0: l1_oracle, 2.0: l2_oracle}


# --- the contract ------------------------------------------------------------------------------------------------


@each_region
@each_shape
@each_scale
def test_minimise_is_below_all_samples_and_reached(kind: str, shape: tuple[int, ...], scale: float) -> None:
    made = REGIONS[kind](shape, scale)
    rows = random_rows(shape)
    least = made.region.minimise(rows)
    slack = 1e-9 * scale * 10
    assert least.shape == rows.rows
    assert (values(rows, made.region.sample(300)) - least.unsqueeze(2)).min() >= -slack
    best = made.region.minimiser(rows)
    assert best.shape == (*rows.rows, *shape)
    assert made.breach(best) <= slack
    at_best = (rows.dense() * best).reshape(*rows.rows, -1).sum(-1)
    torch.testing.assert_close(least, at_best, rtol=0, atol=slack)


@each_region
@pytest.mark.parametrize("shape", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_minimise_agrees_with_an_oracle(kind: str, shape: tuple[int, ...], scale: float) -> None:
    made = REGIONS[kind](shape, scale)
    rows = random_rows(shape)
    found = made.region.minimise(rows).numpy()
    centre, lower, upper = (part.flatten(1).numpy() for part in (made.centre, made.lower, made.upper))
    for g, s in itertools.product(range(G), range(rows.rows[1])):
        a = rows.dense()[g, s].flatten().numpy()
        wanted = ORACLES[made.p](a, centre[g], float(made.radius[g]), lower[g], upper[g])
        assert found[g, s] == pytest.approx(wanted, rel=0, abs=1e-8 * scale if made.p == 1 else 1e-9 * scale * 10)


@each_region
def test_minimise_takes_every_form_of_map(kind: str) -> None:
    made = REGIONS[kind]((2, 3))
    single = Rows(torch.randint(6, (G, 5)), torch.randn(G, 5, dtype=torch.float64), (2, 3))
    diagonal = Rows(torch.arange(6).expand(G, 6), torch.randn(G, 6, dtype=torch.float64), (2, 3))
    for rows in (single, diagonal):
        torch.testing.assert_close(made.region.minimise(rows), made.region.minimise(Dense(rows.dense())))
        torch.testing.assert_close(made.region.minimiser(rows), made.region.minimiser(Dense(rows.dense())))


@each_region
@each_shape
def test_samples_are_inside_and_differ(kind: str, shape: tuple[int, ...]) -> None:
    made = REGIONS[kind](shape)
    points = made.region.sample(64)
    assert points.shape == (G, 64, *shape)
    assert made.breach(points) <= 1e-12
    wide = made.region.upper - made.region.lower
    assert bool(((points.amax(1) - points.amin(1)) >= 0.05 * wide).all())


@each_region
def test_samples_follow_the_generator(kind: str) -> None:
    made = REGIONS[kind]((4,))
    first, second = (made.region.sample(5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, made.region.sample(5, torch.Generator().manual_seed(2)))


@each_region
@each_shape
def test_projections_are_inside_and_keep_what_is_inside(kind: str, shape: tuple[int, ...]) -> None:
    made = REGIONS[kind](shape)
    far = made.centre.unsqueeze(1) + 5 * torch.randn(G, 20, *shape, dtype=torch.float64)
    assert made.breach(made.region.project(far)) <= 1e-12
    near = made.region.sample(20)
    torch.testing.assert_close(made.region.project(near), near, rtol=0, atol=1e-12)


@each_region
def test_the_enclosing_box_is_the_smallest(kind: str) -> None:
    made = REGIONS[kind]((2, 3))
    eye = Rows(torch.arange(6).expand(G, 6), torch.ones(G, 6, dtype=torch.float64), (2, 3))
    lower, upper = made.region.minimise(eye), -made.region.minimise(eye.negated())
    torch.testing.assert_close(made.region.lower.flatten(1), lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(made.region.upper.flatten(1), upper, rtol=0, atol=1e-9)
    assert made.region.groups == G
    assert made.region.shape == (2, 3)


@each_region
def test_take_repeats_and_reorders_groups(kind: str) -> None:
    made = REGIONS[kind]((3,))
    rows = random_rows((3,))
    groups = torch.tensor([2, 0, 2, 3, 1])
    taken = made.region.take(groups)
    assert taken.groups == 5
    assert type(taken) is type(made.region)
    assert torch.equal(taken.lower, made.region.lower[groups])
    assert torch.equal(taken.upper, made.region.upper[groups])
    found = taken.minimise(Dense(rows.dense()[groups]))
    torch.testing.assert_close(found, made.region.minimise(rows)[groups], rtol=0, atol=1e-12)


@each_region
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e8])
def test_casting_to_float32(kind: str, scale: float) -> None:
    made = REGIONS[kind]((4,), scale)
    cast = made.region.to(torch.float32)
    assert cast.lower.dtype == cast.upper.dtype == torch.float32
    if isinstance(cast, Box):
        assert bool((cast.lower.double() <= made.lower).all())
        assert bool((cast.upper.double() >= made.upper).all())
    torch.testing.assert_close(cast.lower.double(), made.region.lower, rtol=3e-7, atol=3e-7 * scale)
    torch.testing.assert_close(cast.upper.double(), made.region.upper, rtol=3e-7, atol=3e-7 * scale)
    rows = random_rows((4,))
    single = Dense(rows.dense().float())
    torch.testing.assert_close(cast.minimise(single).double(), made.region.minimise(rows), rtol=1e-5, atol=3e-5 * scale)
    same = made.region.to(torch.float64)
    assert torch.equal(same.lower, made.region.lower)
    assert torch.equal(same.upper, made.region.upper)


def test_a_box_that_float32_holds_stays_as_it_is() -> None:
    lower, upper = torch.tensor([[0.25, -1.5]], dtype=torch.float64), torch.tensor([[0.5, -1.5]], dtype=torch.float64)
    cast = Box(lower, upper).to(torch.float32)
    assert torch.equal(cast.lower.double(), lower)
    assert torch.equal(cast.upper.double(), upper)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["box", "l2", "l1"])
def test_a_region_of_one_point(kind: str, dtype: torch.dtype) -> None:
    centre = torch.randn(G, 3, dtype=dtype)
    limits = torch.full_like(centre, -torch.inf), torch.full_like(centre, torch.inf)
    point: Region = (
        Box(centre, centre.clone())
        if kind == "box"
        else LpBall(centre, torch.zeros(G, dtype=dtype), int(kind[1]), *limits)
    )
    rows = Dense(random_rows((3,)).dense().to(dtype))
    here = centre.unsqueeze(1)
    value = (rows.dense() * here).sum(-1)
    torch.testing.assert_close(point.minimise(rows), value)
    assert torch.equal(point.project(here), here)
    torch.testing.assert_close(point.project(here + 1), here)
    torch.testing.assert_close(point.minimiser(rows), here.expand(-1, rows.rows[1], -1))
    torch.testing.assert_close(point.sample(4), here.expand(-1, 4, -1))


@each_region
def test_minimise_has_the_derivative_of_a_minimum(kind: str) -> None:
    """By the envelope theorem the gradient in the rows is the minimiser."""
    made = REGIONS[kind]((2, 3))
    coefficients = torch.randn(G, 3, 2, 3, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(made.region.minimise(Dense(coefficients)).sum(), coefficients)
    best = made.region.minimiser(Dense(coefficients.detach()))
    torch.testing.assert_close(gradient, best, rtol=0, atol=1e-6)


@each_region
def test_operations_leave_the_region_alone(kind: str) -> None:
    made = REGIONS[kind]((3,))
    kept = made.region.lower.clone(), made.region.upper.clone()
    rows = random_rows((3,))
    before = rows.dense().clone()
    x = torch.randn(G, 2, 3, dtype=torch.float64)
    point = x.clone()
    made.region.minimise(rows), made.region.minimiser(rows), made.region.project(x), made.region.sample(3)
    made.region.take(torch.tensor([0])), made.region.to(torch.float32)
    assert torch.equal(made.region.lower, kept[0]) and torch.equal(made.region.upper, kept[1])
    assert torch.equal(rows.dense(), before)
    assert torch.equal(x, point)


# --- errors ------------------------------------------------------------------------------------------------------


def test_an_empty_box_is_refused() -> None:
    lower = torch.zeros(1, 3)
    with pytest.raises(SpecError, match=r"the region is empty: at flat position 1 the lower limit 0\.0 .* -2\.0"):
        Box(lower, torch.tensor([[1.0, -2.0, 1.0]]))


def test_a_box_with_nan_is_refused() -> None:
    lower = torch.zeros(1, 3)
    with pytest.raises(SpecError, match=r"empty: at flat position 2 .*NaN counts as empty"):
        Box(lower, torch.tensor([[1.0, 0.0, torch.nan]]))
    with pytest.raises(SpecError, match=r"empty: at flat position 0"):
        Box(torch.tensor([[torch.nan]]), torch.ones(1, 1))


def test_a_box_with_limits_of_two_shapes_is_refused() -> None:
    with pytest.raises(SpecError, match=r"limits of one shape, got \(1, 3\) and \(1, 2\)"):
        Box(torch.zeros(1, 3), torch.ones(1, 2))


@pytest.mark.parametrize("radius", [-0.1, torch.nan])
def test_a_ball_of_negative_radius_is_refused(radius: float) -> None:
    zero = torch.zeros(1, 2)
    with pytest.raises(SpecError, match="the region is empty: a ball's radius"):
        LpBall(zero, torch.tensor([radius]), 2, zero - 1, zero + 1)


def test_a_ball_whose_centre_is_outside_the_limits_is_refused() -> None:
    zero = torch.zeros(1, 2)
    with pytest.raises(SpecError, match="centre must lie between"):
        LpBall(zero, torch.ones(1), 2, zero + 0.1, zero + 1)


def test_a_ball_of_another_norm_is_refused() -> None:
    zero = torch.zeros(1, 2)
    with pytest.raises(SpecError, match="p = 1 and p = 2, got 3"):
        LpBall(zero, torch.ones(1), 3, zero - 1, zero + 1)
