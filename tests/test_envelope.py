"""Concave envelopes of a hidden layer: never above the function, as tight as the convex hull, and a search by them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from nets import Builder
from oracle import mixed_integer_minimum
from scipy.optimize import linprog
from torch import Tensor

from surebound.bounds.envelope import Hidden, Shares, least
from surebound.graph.ir import Graph
from surebound.ops.record import Interval
from surebound.proofs.replay import replay
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.envelopes import EnvelopeEngine
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Verified
from surebound.search.verify import Progress, verify

F64 = torch.float64
CONFIG = VerifyConfig(timeout=60.0, attack="none")


def hidden(seed: int, groups: int = 6, neurons: int = 10, inputs: int = 5, scale: float = 1.0) -> Hidden:
    """Random functions over boxes, some inputs standing still, some neurons known to be on one side of a number."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    lower = randn(groups, inputs)
    upper = lower + 2 * torch.rand(groups, inputs, generator=g, dtype=F64) * (randn(groups, inputs) > -1)
    threshold = 0.3 * randn(groups, neurons) * (randn(groups, neurons) > 0)
    side, endless = randn(groups, neurons), torch.full((groups, neurons), torch.inf, dtype=F64)
    known = Interval(torch.where(side > 1, threshold, -endless), torch.where(side < -1, threshold, endless))
    found = Hidden(
        randn(groups, neurons),
        randn(groups, inputs),
        randn(groups),
        randn(neurons, inputs),
        0.3 * randn(neurons),
        lower,
        upper,
        known,
    )
    return scaled(found, scale)


def scaled(of: Hidden, scale: float) -> Hidden:
    """The same functions of inputs that are larger, times the scale."""
    ends = (end * scale for end in of.known)
    return replace(
        of,
        c=of.c * scale,
        bias=of.bias * scale,
        lower=of.lower * scale,
        upper=of.upper * scale,
        known=Interval(*ends),
    )


def at(of: Hidden, x: Tensor) -> tuple[Tensor, Tensor]:
    """h [N, P] at points [N, P, n], and which of these are as known."""
    z = x @ of.weight.T + of.bias
    meets = ((z >= of.known.lower.unsqueeze(1)) & (z <= of.known.upper.unsqueeze(1))).all(2)
    linear = torch.einsum("ni,npi->np", of.r, x) + of.c.unsqueeze(1)
    return linear + torch.einsum("nj,npj->np", of.a, z.clamp(min=0)), meets


def points(of: Hidden, count: int, seed: int = 0) -> Tensor:
    """Points [N, P, n] of the boxes: random ones, and corners."""
    g = torch.Generator().manual_seed(seed)
    share = torch.rand(len(of.a), count, of.lower.shape[1], generator=g, dtype=F64)
    share = torch.cat([share, share.round()], 1)
    return of.lower.unsqueeze(1) + share * (of.upper - of.lower).unsqueeze(1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_below_every_point_that_is_as_known(seed: int, scale: float) -> None:
    of = hidden(seed, scale=scale)
    x = points(of, 4000)
    h, meets = at(of, x)
    size = h.abs().amax(1)
    found = least(of)
    assert bool((found.lower.unsqueeze(1) <= torch.where(meets, h, torch.inf) + 1e-9 * size.unsqueeze(1)).all())
    assert bool(((found.point >= of.lower) & (found.point <= of.upper)).all())
    assert bool((found.gaps >= -1e-9 * size.unsqueeze(1)).all())


@pytest.mark.parametrize("seed", range(6))
def test_envelopes_are_the_least_concave_functions_above(seed: int) -> None:
    """At random shares, against the best mixture of corners, found by a linear program."""
    of = hidden(seed, 3, 6, 4)
    of = replace(of, a=-of.a.abs(), known=Interval(torch.full_like(of.a, -torch.inf), torch.full_like(of.a, torch.inf)))
    shares = Shares.of(of)
    t = torch.rand(3, 4, dtype=F64, generator=torch.Generator().manual_seed(seed))
    gaps = shares.gaps(t, 6)
    corners = np.array(list(product([0.0, 1.0], repeat=4)))
    for n in range(3):
        z = corners @ shares.weight[n].T.numpy() + shares.bias[n].numpy()
        equal = np.concatenate([corners.T, np.ones((1, 16))])
        for j in range(6):
            best = linprog(-np.maximum(z[:, j], 0), A_eq=equal, b_eq=[*t[n].tolist(), 1.0])
            value = float((shares.weight[n, j] @ t[n] + shares.bias[n, j]).clamp(min=0))
            assert float(gaps[n, j]) == pytest.approx(float(-of.a[n, j]) * (-best.fun - value), abs=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_planes_touch_the_convex_function_and_are_below_it(seed: int) -> None:
    """Where all is as known, the function is h less the gaps."""
    of = hidden(seed)
    shares = Shares.of(of)
    g = torch.Generator().manual_seed(seed)
    t = torch.rand(40, 6, 5, dtype=F64, generator=g)

    def convex(t: Tensor) -> tuple[Tensor, Tensor]:
        x = of.lower + t * (of.upper - of.lower)
        h, meets = at(of, x.unsqueeze(1))
        return h[:, 0] - shares.gaps(t, 10).sum(1), meets[:, 0]

    planes = [shares.chords(), *(shares.plane(part) for part in t)]
    for place, part in enumerate(t):
        value, meets = convex(part)
        for number, (slope, constant) in enumerate(planes):
            here = (slope * part).sum(1) + constant
            assert bool((~meets | (here <= value + 1e-9)).all())
            if number == place + 1:
                assert torch.allclose(here[meets], value[meets], atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_bounds_come_near_the_least_value_of_the_convex_function(seed: int) -> None:
    """Which is found by planes made wherever the largest of them is least, by linear programs (Kelley 1960)."""
    of = hidden(seed, 1, 24, 6)
    endless = torch.full_like(of.a, torch.inf)
    of = replace(of, known=Interval(-endless, endless))
    shares = Shares.of(of)
    slope, constant = shares.chords()
    chord = float(slope.clamp(max=0).sum() + constant)
    cuts = [(slope[0].numpy(), float(constant))]
    t = torch.full((1, 6), 0.5, dtype=F64)
    for _ in range(300):
        slope, constant = shares.plane(t)
        cuts.append((slope[0].numpy(), float(constant)))
        a = np.array([[*row, -1.0] for row, _ in cuts])
        best = linprog([0] * 6 + [1], a, [-c for _, c in cuts], bounds=[(0, 1)] * 6 + [(None, None)])
        t = torch.from_numpy(best.x[:6]).unsqueeze(0).clamp(0, 1)
    exact = float(best.fun)
    shifted = replace(of, c=of.c - exact - 10.0)  # else steps end where a bound is positive, or cannot be
    found = float(least(replace(of, c=of.c - exact + 1e-3)).lower) + exact - 1e-3
    assert chord <= found <= exact + 1e-9
    assert found - chord >= 0.7 * (exact - chord)
    assert float(least(shifted).lower) <= -10.0 + 1e-9


def test_a_group_is_bounded_alike_alone_and_with_others() -> None:
    of = hidden(3, 40)
    together = least(of)
    for n in range(0, 40, 7):
        one = slice(n, n + 1)
        known = Interval(of.known.lower[one], of.known.upper[one])
        alone = least(Hidden(of.a[one], of.r[one], of.c[one], of.weight, of.bias, of.lower[one], of.upper[one], known))
        for mine, theirs in zip(alone, together, strict=True):
            torch.testing.assert_close(mine[0], theirs[n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_bounded_above_zero(bad: float) -> None:
    of = hidden(1)
    of = replace(of, c=of.c + 1e6)
    assert bool((least(of).lower > 0).all())
    for name in ("a", "r", "c", "lower"):
        value = getattr(of, name).clone()
        value.view(-1)[0] = bad
        found = least(replace(of, **{name: value})).lower
        assert not float(found[0]) > 0 or not bool(torch.isfinite(found[0])), name


# --- the search --------------------------------------------------------------------------------------------------


def network(seed: int, inputs: int = 6, neurons: int = 12, direct: bool = False) -> Graph:
    """One hidden layer of ReLUs, also with an input that is added to what comes of it."""
    b = Builder(seed)
    x = b.input(inputs)
    y = b.linear(b.op("relu", b.linear(x, neurons)), inputs)
    return b.graph(b.linear(b.op("add", x, y) if direct else y, 2))


def at_most(graph: Graph, limits: list[float], seed: int = 0) -> Property:
    """y_0 - y_1 at most each of some numbers: disjuncts; on a box of which one side has no width."""
    lower, upper = torch.full((1, 6), -0.7, dtype=F64), torch.full((1, 6), 0.8, dtype=F64)
    lower[0, 2] = upper[0, 2]
    row = torch.tensor([[1.0, -1.0]], dtype=F64)
    disjuncts = tuple(Disjunct(row, torch.tensor([limit], dtype=F64), ("",)) for limit in limits)
    return Property((Case(Box(lower, upper), disjuncts, None),))


def minimum(graph: Graph) -> float:
    """Of y_0 - y_1 on the box of `at_most`."""
    box = at_most(graph, [0.0]).cases[0].region
    ends = box.lower[0].numpy(), box.upper[0].numpy()
    return float(mixed_integer_minimum(graph, graph.values(F64), ends, np.array([[1.0, -1.0]]))[0])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Searches go to the engine with their first sub-problem; how many it bounded."""
    bounded: list[int] = []
    bound = EnvelopeEngine.bound

    def counted(self: EnvelopeEngine, rows: np.ndarray) -> object:  # pyright: ignore[reportMissingTypeArgument]
        bounded.append(len(rows))
        return bound(self, rows)

    monkeypatch.setattr(EnvelopeEngine, "bound", counted)
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 0)
    monkeypatch.setattr("surebound.search.stages.MEDIUM", -2)
    return bounded


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_verdict_follows_the_minimum(seed: int, direct: bool, at_once: list[int]) -> None:
    """Just below it a proof, which holds when it is replayed; just above it a witness, without an attack no proof."""
    graph = network(seed, direct=direct)
    least_value = minimum(graph)
    below, above = (at_most(graph, [least_value + gap, least_value - 5]) for gap in (-1e-3, 1e-3))
    (safe,) = verify(graph, [below], CONFIG)
    assert isinstance(safe.verdict, Verified), safe
    assert 0 < safe.verdict.margin <= 1e-3 + 1e-9
    assert at_once
    assert replay(graph, below, safe.verdict.trees).holds
    (unsafe,) = verify(graph, [above], replace(CONFIG, timeout=1.0))
    assert not isinstance(unsafe.verdict, Verified)
    (unsafe,) = verify(graph, [above], replace(CONFIG, attack="pgd"))
    assert isinstance(unsafe.verdict, Falsified), unsafe


def test_a_search_that_is_interrupted_goes_on(at_once: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a proof by other engines, with splits of inputs too, is replayed by this one."""
    monkeypatch.setattr("surebound.search.envelopes.EnvelopeEngine.batch", 4)
    graph = network(1, neurons=16)
    prop = at_most(graph, [minimum(graph) - 1e-4])
    left: list[tuple[object, ...]] = []

    def stop(now: Progress) -> None:
        if now.nodes >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(graph, [prop], CONFIG, stop, unfinished=lambda _, trees: left.append(trees))
    (found,) = verify(graph, [prop], CONFIG, begun={0: left[0]})  # pyright: ignore[reportArgumentType]
    assert isinstance(found.verdict, Verified)
    assert found.nodes > 0
    assert replay(graph, prop, found.verdict.trees).holds
    monkeypatch.setattr("surebound.search.stages.MEDIUM", 1 << 40)
    for few in (0, 10):
        monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", few)
        (other,) = verify(graph, [prop], CONFIG)
        assert isinstance(other.verdict, Verified)
        with monkeypatch.context() as patch:
            patch.setattr("surebound.search.stages.FEW_DIMENSIONS", 0)
            patch.setattr("surebound.search.stages.MEDIUM", -2)
            assert replay(graph, prop, other.verdict.trees).holds
