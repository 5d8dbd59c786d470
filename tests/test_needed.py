"""Only what rows depend on is bounded by walks, and walks of windows go in larger pieces: with the same bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from nets import NETS, Builder
from torch import Tensor

from surebound.bounds.crown import BY_WALK, boxes_of, caching_lines, walked_lower
from surebound.bounds.memory import Memory
from surebound.bounds.walk import walk
from surebound.bounds.width import width
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.linear.maps import Dense, Rows
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.problem import Problem, problem
from surebound.search.roots import roots_of

F64 = torch.float64


def image(seed: int) -> Graph:
    """Convolutions, strided and dilated ones too, a residual sum and pooling; an image comes out."""
    b = Builder(seed)
    x = b.op("relu", b.conv(b.input(1, 20, 20), 2, (3, 3), padding=(1, 1)))
    y = b.op("relu", b.conv(x, 2, (3, 3), padding=(1, 1)))
    x = b.op("relu", b.op("add", x, b.conv(y, 2, (3, 3), padding=(2, 2), dilation=(2, 2))))
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "ceil_mode": False, "count_include_pad": True}
    x = b.op("avg_pool2d", b.conv(x, 3, (3, 3), stride=(2, 2), padding=(1, 1)), **pool)
    return b.graph(b.conv(b.op("relu", x), 2, (1, 1)))


def asked(graph: Graph, rows: Tensor) -> Problem:
    """Each row of an output at most zero, as disjuncts, on a box."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.randn(1, *graph.input.shape, dtype=F64, generator=generator)
    disjuncts = tuple(Disjunct(row[None], torch.zeros(1, dtype=F64), ("",)) for row in rows)
    prop = Property((Case(Box((middle - 0.1).flatten(1), (middle + 0.1).flatten(1)), disjuncts),))
    return problem(graph, roots_of([prop], graph.input.shape), F64, Memory())


def one_output(graph: Graph) -> Tensor:
    row = torch.zeros(1, graph.output.numel, dtype=F64)
    row[0, 7 % graph.output.numel] = -1.5
    return row


def two_outputs(graph: Graph) -> Tensor:
    return torch.cat([one_output(graph), one_output(graph).roll(graph.output.numel - 10, 1)])


@pytest.mark.parametrize("rows", [one_output, two_outputs])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_out_changes_no_bound(seed: int, rows: Callable[[Graph], Tensor]) -> None:
    graph = prepare(image(seed))
    chosen = rows(graph)
    of = asked(graph, chosen)
    assert len(of.needed) == len(of.plan.operands) and any(bool(mask.any()) for mask in of.needed.values())
    assert len(chosen) > 1 or all(
        2 * mask.sum() < mask.numel() for name, mask in of.needed.items() if graph[name].numel > 100
    )
    ctx, asked_for = of.context(of.roots.region, F64), Dense(of.spec(torch.arange(of.roots.count), F64).transpose(0, 1))
    found = []
    for here in (ctx, replace(ctx, needed={})):
        boxes = boxes_of(here, {}, (BY_WALK,))
        found.append(walked_lower(here, boxes, of.output, asked_for))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    none = walked_lower(ctx, boxes_of(ctx, {}, ()), of.output, asked_for)
    assert bool((found[0] > none + 1e-6).any()), "what is needed is bounded by walks"


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_where_all_is_needed_nothing_is_left_out(name: str) -> None:
    graph = prepare(NETS[name](0))
    assert not asked(graph, one_output(graph)).needed


@pytest.mark.parametrize("seed", range(2))
def test_rows_hold_at_most_their_width(seed: int) -> None:
    """And much less than whole values, where they start at convolutions."""
    graph = prepare(image(seed))
    of = asked(graph, one_output(graph))
    ctx = of.context(of.roots.region, F64)
    boxes = boxes_of(ctx, {}, ())
    smaller = 0
    for start in of.plan.bounded:
        shape, known = graph[start].shape, width(of.plan, start)
        rows = Rows(torch.tensor([[graph[start].numel // 2, 0]]), torch.ones(1, 2, dtype=F64), shape)
        found = walk(of.plan, ctx.values, start, rows, caching_lines(ctx, boxes), keep=frozenset(of.plan.steps))
        held = {name: part.coefficients.numel() // 2 for name, part in {**found.reached, **found.roots}.items()}
        assert max(held.values()) <= known <= max(graph[name].numel for name in of.plan.order(start))
        smaller += 2 * known <= max(graph[name].numel for name in of.plan.order(start))
    assert smaller >= 3
