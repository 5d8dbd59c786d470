"""Clipping: nothing that meets all constraints is lost, what is impossible is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import mlp

from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, boxes_of
from surebound.bounds.memory import Memory
from surebound.graph.ir import Graph, evaluate
from surebound.graph.prepare import prepare
from surebound.linear.maps import merged
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.clipping import Linear, clipped
from surebound.search.neurons import NeuronEngine, clipped_by_bound, dense_row
from surebound.search.problem import problem
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import roots_of
from surebound.search.tree import Forest

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
    """The first coordinate of a point at which the constraint is met with equality, at a corner otherwise; its terms
    cancel.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2000, 1, 6, generator=generator, dtype=F64) * 1e6
    lower = torch.randn(2000, 6, generator=generator, dtype=F64)
    upper = lower + torch.rand(2000, 6, generator=generator, dtype=F64)
    x = torch.where(a[:, 0] > 0, lower, upper)
    x[:, 0] = lower[:, 0] + (upper - lower)[:, 0] * torch.rand(2000, generator=generator, dtype=F64)
    b = -torch.einsum("nki,ni->nk", a, x)
    least, most, worst = clipped(Linear(a, b, lower, upper), torch.ones(2000, 1, dtype=torch.bool))
    assert bool(((x >= least) & (x <= most)).all()) and bool((worst <= 0).all())
    assert bool((most - least < upper - lower)[:, 0].all())


def test_by_hand() -> None:
    """x + y <= 1 and -x <= -0.75 on the unit square leave [0.75, 1] x [0, 0.25], once the first constraint has seen
    what the second leaves; with -y <= -0.5 nothing is left.
    """
    a = torch.tensor([[[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]], dtype=F64)
    b = torch.tensor([[-1.0, 0.75, 0.5]], dtype=F64)
    square = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    two = torch.tensor([[True, True, False]])
    half = clipped(Linear(a, b, *square), two)[:2]
    assert torch.allclose(half[0], torch.tensor([[0.75, 0.0]], dtype=F64)) and torch.equal(half[1], square[1])
    least, most, worst = clipped(Linear(a, b, *half), two)
    assert torch.allclose(least, torch.tensor([[0.75, 0.0]], dtype=F64))
    assert torch.allclose(most, torch.tensor([[1.0, 0.25]], dtype=F64)) and float(worst) <= 0
    assert float(clipped(Linear(a, b, least, most), torch.ones(1, 3, dtype=torch.bool))[2]) == pytest.approx(0.25)


def test_what_is_not_finite_clips_nothing() -> None:
    square = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    for bad in (float("nan"), float("inf"), -float("inf")):
        a, b = torch.tensor([[[bad, 1.0]]], dtype=F64), torch.tensor([[-0.5]], dtype=F64)
        for line in (Linear(a, b, *square), Linear(torch.zeros_like(a), b * bad, *square)):
            least, most, worst = clipped(line, torch.ones(1, 1, dtype=torch.bool))
            assert torch.equal(least, square[0]) and torch.equal(most, square[1]) and not float(worst) > 0


def engine_of(graph: Graph, box: Box, row: torch.Tensor, limit: float) -> tuple[NeuronEngine, Forest]:
    """An engine that clips, for  row y <= limit  on a box, with CROWN's boxes."""
    prepared = prepare(graph)
    unsafe = Disjunct(row, torch.tensor([limit], dtype=F64), ("",))
    of = problem(prepared, roots_of([Property((Case(box, (unsafe,), None),))], graph.input.shape), F64, Memory())
    boxes = RootBoxes(1)
    with torch.no_grad():
        found = boxes_of(of.context(box, F64), {}, (BY_WALK,))
    boxes.put(torch.tensor([0]), {name: found[name] for name in of.plan.operands}, "crown")
    forest = Forest([*of.plan.operands, of.input])
    gaps = torch.ones(1, 1, dtype=F64)
    return NeuronEngine(of, forest, boxes, gaps, 4, Rates(), refreshes=True, clips=True), forest


@pytest.mark.parametrize("activation", ["relu", "clip", "tanh"])
def test_what_meets_the_splits_and_violates_stays(activation: str) -> None:
    """Points that meet random splits are in the box clipped by these; violating ones in that clipped by a bound."""
    found = [clips_something(activation, seed) for seed in range(8)]
    assert any(found)


def test_the_last_walk_comes_with_its_own_bound() -> None:
    """Steps that are far too long end below the best bound; the line of the last walk lies below the margin still."""
    worse = 0
    for seed in range(12):
        graph = mlp(seed, (3, 6, 6, 2))
        box = Box(torch.full((1, 3), -0.5, dtype=F64), torch.full((1, 3), 1.5, dtype=F64))
        x = box.sample(4000, torch.Generator().manual_seed(seed))[0]
        margin = evaluate(graph, graph.values(F64), x)[graph.output.name] @ torch.tensor([1.0, -1.0], dtype=F64)
        engine, forest = engine_of(graph, box, torch.tensor([[1.0, -1.0]], dtype=F64), 0.0)
        engine.rates = Rates(alpha=30.0)
        above = forest.append(parent=np.array([-1]), root=np.array([0]), slot=-1)
        batch = engine.prepare(forest.paths(above), torch.tensor([0]), box)
        found = engine.run(batch, engine.start(batch, above), 6, engine.rates, keep=True)
        row = dense_row(found, engine.problem.input).flatten(1)
        constant = found.last - torch.where(row > 0, row * box.lower, row * box.upper).sum(1, keepdim=True)
        assert bool((x @ row[0] + constant <= margin * float(engine.scale) + 1e-9).all())
        worse += bool((found.last < found.lower - 0.1).any())
    assert worse > 2


def clips_something(activation: str, seed: int) -> bool:
    """Check one network; was something clipped?"""
    graph = mlp(seed, (3, 6, 6, 2), activation, **({"min": -0.5, "max": 0.7} if activation == "clip" else {}))
    box = Box(torch.full((1, 3), -0.5, dtype=F64), torch.full((1, 3), 1.5, dtype=F64))
    x = box.sample(4000, torch.Generator().manual_seed(seed))[0]
    row = torch.tensor([[1.0, -1.0]], dtype=F64)
    hidden = [node.inputs[0] for node in prepare(graph).nodes if node.op == activation]
    values = evaluate(graph, graph.values(F64), x, [*hidden, graph.output.name])
    engine, forest = engine_of(graph, box, row, float((values[graph.output.name] @ row[0]).quantile(0.05)))
    generator = np.random.default_rng(seed)
    above = forest.append(parent=np.array([-1]), root=np.array([0]), slot=-1)
    meets = torch.ones(len(x), dtype=torch.bool)
    smaller = []
    for depth in range(1, 5):
        name, index, sign = hidden[depth % 2], int(generator.integers(6)), int(generator.choice([-1, 1]))
        threshold = float(values[name][meets, index].quantile(0.4))
        above = forest.append(
            parent=above, root=0, node=forest.names.index(name), index=index, threshold=threshold, sign=sign, slot=-1,
            depth=np.array([depth]),
        )  # fmt: skip
        meets &= sign * (values[name][:, index] - threshold) >= 0
        root, splits = torch.tensor([0]), forest.paths(above)
        region, _ = engine.region(above, splits, root, torch.float64)
        batch = engine.prepare(splits, root, region)
        left, unmet = engine.clipped_by_splits(batch)
        assert isinstance(left, Box) and not float(unmet) > 0
        assert bool(((x >= left.lower) & (x <= left.upper)).all(1)[meets].all())
        batch = engine.prepare(splits, root, left)
        found = engine.run(batch, engine.start(batch, above), 4, engine.rates, keep=True)
        bound_row = dense_row(found, engine.problem.input).flatten(1)
        least, most = clipped_by_bound(left, bound_row, found.last)[0]
        violates = meets & (values[graph.output.name] @ row[0] <= engine.problem.roots.threshold[0, 0])
        assert bool(((x >= least) & (x <= most)).all(1)[violates].all())
        smaller.append(float((most - least).sum()) < float(merged(box.upper - box.lower, 1).sum()) - 1e-6)
    assert bool(meets.any())
    return any(smaller)
