"""Which way the search takes to boxes of intermediate values: by walks, forward, or forward and by walks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import NETS, tiny

from surebound.bounds.crown import BY_WALK, Context, boxes_of, context
from surebound.bounds.memory import Memory
from surebound.bounds.query import Query
from surebound.graph.ir import evaluate
from surebound.ops.record import Interval
from surebound.regions import Box, LpBall
from surebound.search import crown_boxes as made
from surebound.search.crown_boxes import crown_boxes, forward_boxes, walks_cost

F64 = torch.float64
SPEC = torch.eye(2, dtype=F64)[None]
LAYERS = (3, 24, 24, 24, 2)


def of(groups: int = 3, memory: int = 1 << 30) -> Context:
    graph = tiny(0, LAYERS)
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(groups, 3, dtype=F64, generator=generator)
    box = Box(centre - 0.4, centre + 0.4)
    return context(Query(graph, graph.values(F64), {graph.input.name: box}, SPEC), Memory(memory))


def same(a: dict[str, Interval], b: dict[str, Interval]) -> bool:
    return all(torch.allclose(a[name].lower, b[name].lower, rtol=0, atol=1e-12) for name in b)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network counts as large."""
    monkeypatch.setattr(made, "LARGE", 0)


def test_small_networks_are_walked() -> None:
    assert same(crown_boxes(of(), 0), boxes_of(of(), {}, (BY_WALK,)))


@pytest.mark.usefixtures("large")
def test_where_walks_cost_more_than_is_allowed_boxes_are_the_forward_ones() -> None:
    ctx = of()
    forward = forward_boxes(ctx, torch.arange(3))
    cost = walks_cost(ctx, forward)
    assert same(crown_boxes(ctx, cost // 3 - 1), forward)
    both = crown_boxes(ctx, cost // 3 + 1)
    assert not same(both, forward)
    for name, box in both.items():
        assert (box.lower >= forward[name].lower).all() and (box.upper <= forward[name].upper).all()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("why", ["many inputs split", "many inputs", "ball", "memory"])
def test_walks_are_made_wherever_forward_bounds_alone_would_not_do(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = of(memory=100 if why == "memory" else 1 << 30)
    if why == "many inputs split":
        monkeypatch.setattr(made, "FEW_DIMENSIONS", 2)
        assert not same(crown_boxes(ctx, 0), forward_boxes(ctx, torch.arange(3)))
        return
    if why == "many inputs":
        monkeypatch.setattr(made, "FEW", 2)
    if why == "ball":
        (name,) = ctx.regions
        inf = torch.full((3, 3), torch.inf, dtype=F64)
        ctx = replace(ctx, regions={name: LpBall(0 * inf.clamp(max=1), torch.ones(3, dtype=F64), 2, -inf, inf)})
    assert same(crown_boxes(ctx, 0), boxes_of(ctx, {}, (BY_WALK,)))


@pytest.mark.usefixtures("large")
def test_groups_that_do_not_fit_together_give_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noting(ctx: Context, groups: torch.Tensor) -> dict[str, Interval]:
        seen.append(len(groups))
        return forward_boxes(ctx, groups)

    expected = crown_boxes(of(5), 0)
    monkeypatch.setattr(made, "forward_boxes", noting)
    room = made.held(of(5).plan, 3)
    assert same(crown_boxes(of(5, 2 * room), 0), expected)
    assert seen == [2, 2, 1]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("most", [0, 1 << 60])
@pytest.mark.parametrize("net", NETS)
def test_boxes_contain_every_value(net: str, most: int) -> None:
    graph = NETS[net](1)
    params = graph.values(F64)
    generator = torch.Generator().manual_seed(2)
    centre = torch.randn(2, *graph.input.shape, dtype=F64, generator=generator)
    box = Box(centre - 0.7, centre + 0.7)
    ctx = context(Query(graph, params, {graph.input.name: box}, SPEC), Memory())
    points = box.sample(300, generator)
    for name, found in crown_boxes(ctx, most).items():
        if name == graph.input.name:
            continue
        value = evaluate(graph, params, points.flatten(0, 1), [name])[name].unflatten(0, (2, 300))
        slack = 1e-12 * (1 + float(value.abs().max()))
        assert (value >= found.lower.unsqueeze(1) - slack).all(), name
        assert (value <= found.upper.unsqueeze(1) + slack).all(), name
