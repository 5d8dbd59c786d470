"""Clipping: nothing that meets all constraints is lost, what is impossible is found."""

from __future__ import annotations

import pytest
import torch

from surebound.search.clipping import Linear, clipped

F64 = torch.float64


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(5))
def test_points_that_meet_all_constraints_stay(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(20, 3, 4, generator=generator, dtype=F64)
    lower = torch.randn(20, 4, generator=generator, dtype=F64) * scale
    upper = lower + torch.rand(20, 4, generator=generator, dtype=F64) * scale
    x = lower + (upper - lower) * torch.rand(500, 20, 4, generator=generator, dtype=F64)
    inside = torch.einsum("nki,ni->nk", a, x[0])
    b = -inside - scale * 0.1 * torch.rand(20, 3, generator=generator, dtype=F64)  # the first point meets them all
    real = torch.rand(20, 3, generator=generator) < 0.8
    least, most, worst = clipped(Linear(a, b, lower, upper), real)
    meets = ((torch.einsum("nki,pni->pnk", a, x) + b <= 0) | ~real).all(2)
    within = ((x >= least) & (x <= most)).all(2)
    assert bool(meets[0].all()) and bool(within[meets].all())
    assert bool((worst <= 0).all())
    assert bool((least >= lower).all()) and bool((most <= upper).all())
    assert bool((most - least < upper - lower).any()) and bool((~within).any())


def test_a_point_on_the_border_stays() -> None:
    """Constraints that hold with equality at a corner, at numbers that cancel."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 2, 6, generator=generator, dtype=F64) * 1e6
    lower = torch.randn(200, 6, generator=generator, dtype=F64)
    upper = lower + torch.rand(200, 6, generator=generator, dtype=F64)
    x = lower + (upper - lower) * torch.rand(200, 6, generator=generator, dtype=F64)
    b = -torch.einsum("nki,ni->nk", a, x)
    least, most, worst = clipped(Linear(a, b, lower, upper), torch.ones(200, 2, dtype=torch.bool))
    assert bool(((x >= least) & (x <= most)).all()) and bool((worst <= 0).all())


def test_by_hand() -> None:
    """x + y <= 1 and -x <= -0.75 on the unit square leave [0.75, 1] x [0, 0.25]; with -y <= -0.5 nothing is left."""
    a = torch.tensor([[[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]], dtype=F64)
    b = torch.tensor([[-1.0, 0.75, 0.5]], dtype=F64)
    square = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    least, most, worst = clipped(Linear(a, b, *square), torch.tensor([[True, True, False]]))
    assert torch.allclose(least, torch.tensor([[0.75, 0.0]], dtype=F64))
    assert torch.allclose(most, torch.tensor([[1.0, 0.25]], dtype=F64)) and float(worst) <= 0
    assert float(clipped(Linear(a, b, *square), torch.ones(1, 3, dtype=torch.bool))[2]) == pytest.approx(0.25)


def test_what_is_not_finite_clips_nothing() -> None:
    square = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    for bad in (float("nan"), float("inf"), -float("inf")):
        a, b = torch.tensor([[[bad, 1.0]]], dtype=F64), torch.tensor([[-0.5]], dtype=F64)
        for line in (Linear(a, b, *square), Linear(torch.zeros_like(a), b * bad, *square)):
            least, most, worst = clipped(line, torch.ones(1, 1, dtype=torch.bool))
            assert torch.equal(least, square[0]) and torch.equal(most, square[1]) and not float(worst) > 0
