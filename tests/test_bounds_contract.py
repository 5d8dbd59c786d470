"""Every bounding method on every small network and region: sound, batched, exact where it must be, differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from nets import BENT, NETS, Builder, mlp, region, residual, spec_of
from oracle import outputs_at, row_values, sharp_points
from torch import Tensor

from surebound.bounds import crown
from surebound.bounds.alpha import AlphaCrown, optimise
from surebound.bounds.beta import Splits
from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, Context, Crown, Ibp, boxes_of, context, walked_lower
from surebound.bounds.forward import Forward
from surebound.bounds.ibp import intersect
from surebound.bounds.memory import Memory, chunked, pieces
from surebound.bounds.plan import plan
from surebound.bounds.query import Bounds, Method, Query
from surebound.bounds.work import Target, Work
from surebound.errors import OutOfMemory, SureboundError, UnsupportedOp
from surebound.graph.ir import FixedParameters, Graph, Node, Site, evaluate
from surebound.linear.maps import Dense
from surebound.ops import OPS
from surebound.ops.record import Interval, Op, always
from surebound.regions import Box, LpBall, Region

METHODS: dict[str, Method] = {
    "ibp": Ibp(),
    "crown-ibp": Crown("ibp"),
    "crown": Crown(),
    "alpha-ibp": AlphaCrown(4, "ibp"),
    "alpha": AlphaCrown(4),
    "alpha-optimised": AlphaCrown(2, "optimised"),
    "forward": Forward(),
    "forward-backward": Forward(backward=True),
}
REGIONS = ("box", "l2", "l1")
each_method = pytest.mark.parametrize("method", METHODS)
each_net = pytest.mark.parametrize("net", NETS)
each_net_and_bent = pytest.mark.parametrize("net", [*NETS, *BENT])
each_region = pytest.mark.parametrize("kind", REGIONS)
each_method_and_net = pytest.mark.parametrize(
    ("method", "net", "kind"),
    [(m, n, REGIONS[(i + j) % 3]) for i, m in enumerate(METHODS) for j, n in enumerate(NETS)],
)
"""Every method on every net, with the regions taking turns."""
DIFFERENTIABLE = ("ibp", "crown-ibp", "crown", "forward", "forward-backward", "alpha from given values")


@cache
def graph_of(net: str) -> Graph:
    return (NETS | BENT)[net](1)


def params_of(net: str) -> Mapping[str, Tensor]:
    return graph_of(net).values(torch.float64)


def query_of(net: str, kind: str, groups: int = 3) -> Query:
    graph = graph_of(net)
    return Query(graph, params_of(net), {"x": region(kind, graph.input.shape, groups)}, spec_of(graph))


@cache
def points_of(net: str, kind: str) -> Tensor:
    """Points of the query's region, many of them led towards the rows' minima."""
    query = query_of(net, kind)
    torch.manual_seed(0)
    return sharp_points(query.graph, query.params, query.regions["x"], query.spec)


@cache
def bounds_of(method: str, net: str, kind: str) -> Bounds:
    return METHODS[method].bound(query_of(net, kind))


def slack_of(value: Tensor) -> float:
    return 1e-9 * (1 + float(value.detach().abs().max()))


@each_net
@each_region
def test_the_regions_leave_neurons_unstable(net: str, kind: str) -> None:
    """Otherwise the tests below would say little."""
    unstable = Ibp().bound(query_of(net, kind)).stats.unstable
    assert (int((unstable > 0).sum()) >= 2) == (net != "affine")


# --- soundness ---------------------------------------------------------------------------------------------------


@each_method
@each_net_and_bent
@each_region
def test_bounds_are_below_every_point(method: str, net: str, kind: str) -> None:
    query, points = query_of(net, kind), points_of(net, kind)
    found = bounds_of(method, net, kind)
    (y,) = outputs_at(query.graph, query.params, {"x": points}, query.graph.output.name)
    least = row_values(query.spec, y).amin(2)
    assert found.lower.shape == least.shape
    assert torch.isfinite(found.lower).all()
    assert (least - found.lower).min() >= -slack_of(least)


@each_method
@each_net_and_bent
@each_region
def test_boxes_contain_every_value(method: str, net: str, kind: str) -> None:
    query, points = query_of(net, kind), points_of(net, kind)
    found = bounds_of(method, net, kind)
    perturbed = [node for node in query.graph.nodes if node.batched]
    assert set(found.boxes) == {node.name for node in perturbed}
    values = outputs_at(query.graph, query.params, {"x": points}, *(node.name for node in perturbed))
    for node, value in zip(perturbed, values, strict=True):
        box = found.boxes[node.name]
        assert box.lower.shape == box.upper.shape == (3, *node.shape)
        slack = slack_of(value)
        assert (value - box.lower.unsqueeze(1)).min() >= -slack, node.name
        assert (box.upper.unsqueeze(1) - value).min() >= -slack, node.name


@each_net_and_bent
def test_methods_that_spend_more_give_more(net: str) -> None:
    """Where the better method starts from what the other one found."""
    lower = {method: bounds_of(method, net, "box").lower for method in METHODS}
    slack = slack_of(lower["ibp"])
    assert (lower["alpha-ibp"] - lower["crown-ibp"]).min() >= -slack
    assert (lower["alpha"] - lower["crown"]).min() >= -slack
    for method in ("crown", "alpha", "alpha-optimised"):
        for name, box in bounds_of(method, net, "box").boxes.items():
            wide = bounds_of("ibp", net, "box").boxes[name]
            assert (box.lower - wide.lower).min() >= -slack
            assert (wide.upper - box.upper).min() >= -slack


@pytest.mark.parametrize("scale", [1e-2, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("net", ["mlp", "leaky", "residual", "conv"])
@each_method
def test_hostile_scales(method: str, net: str, scale: float) -> None:
    """Inputs (and with them all values) far from 1; the tolerance is relative to the values."""
    graph = graph_of(net)
    small = region("box", graph.input.shape)
    large = Box(small.lower * scale, small.upper * scale)
    query = Query(graph, params_of(net), {"x": large}, spec_of(graph))
    points = sharp_points(graph, query.params, large, query.spec)
    (y,) = outputs_at(graph, query.params, {"x": points})
    least = row_values(query.spec, y).amin(2)
    found = METHODS[method].bound(query)
    assert (least - found.lower).min() >= -1e-9 * (scale + float(least.abs().max()))


# --- exactness ---------------------------------------------------------------------------------------------------


@each_method_and_net
def test_a_region_of_one_point_gives_the_value(method: str, net: str, kind: str) -> None:
    graph, params = graph_of(net), params_of(net)
    x = torch.randn(2, *graph.input.shape, dtype=torch.float64)
    point: Region = Box(x, x.clone())
    if kind != "box":
        point = LpBall(x, torch.zeros(2, dtype=torch.float64), int(kind[1]), x - 1, x + 1)
    spec = spec_of(graph, groups=2)
    found = METHODS[method].bound(Query(graph, params, {"x": point}, spec))
    wanted = row_values(spec, evaluate(graph, params, x)[graph.output.name].unsqueeze(1)).squeeze(2)
    torch.testing.assert_close(found.lower, wanted, rtol=0, atol=slack_of(wanted))


@pytest.mark.parametrize(
    "net", ["mlp", "conv", "batch_norm", "residual", "leaky", "average", "shapes", "scaled", "graft"]
)
@pytest.mark.parametrize("method", ["crown", "alpha", "alpha-optimised"])
@each_region
def test_where_no_neuron_is_unstable_the_bound_is_exact(method: str, net: str, kind: str) -> None:
    graph, params = graph_of(net), params_of(net)
    query = Query(graph, params, {"x": region(kind, graph.input.shape, size=1e-7)}, spec_of(graph))
    found = METHODS[method].bound(query)
    assert found.stats.unstable.tolist() == [0, 0, 0]
    small = query.regions["x"]
    start = ((small.lower + small.upper) / 2).requires_grad_()
    values = row_values(query.spec, evaluate(graph, params, start)[graph.output.name].unsqueeze(1)).squeeze(2)
    gradients = [torch.autograd.grad(row.sum(), start, retain_graph=True)[0] for row in values.unbind(1)]
    rows = Dense(torch.stack(gradients, 1))
    exact = values + small.minimise(rows) - rows.dot(start.detach().unsqueeze(1))
    exact = exact.detach()
    torch.testing.assert_close(found.lower, exact, rtol=0, atol=1e-12 + 1e-13 * float(exact.abs().max()))


def test_ibp_of_one_layer_is_written_out_by_hand() -> None:
    graph = mlp(3, (3, 4, 2))
    params = params_by_role(graph)
    box = region("box", (3,), groups=1)
    w1, b1, w2 = params
    centre, radius = (box.lower + box.upper)[0] / 2, (box.upper - box.lower)[0] / 2
    low = (w1 @ centre + b1 - w1.abs() @ radius).clamp(min=0)
    high = (w1 @ centre + b1 + w1.abs() @ radius).clamp(min=0)
    rows = torch.tensor([[1.0, -2.0], [-1.0, 0.5]], dtype=torch.float64)
    joined = rows @ w2
    wanted = joined.clamp(min=0) @ low + joined.clamp(max=0) @ high
    found = Ibp().bound(Query(graph, graph.values(torch.float64), {"x": box}, rows.unsqueeze(0)))
    torch.testing.assert_close(found.lower[0], wanted)
    torch.testing.assert_close(found.boxes["a1"].lower[0], low)
    torch.testing.assert_close(found.boxes["a1"].upper[0], high)
    assert found.stats.neurons == 4
    unstable = (w1 @ centre + b1 - w1.abs() @ radius < 0) & (w1 @ centre + b1 + w1.abs() @ radius > 0)
    assert found.stats.unstable.tolist() == [int(unstable.sum())]


def test_crown_of_one_layer_is_written_out_by_hand() -> None:
    graph = mlp(3, (3, 4, 2))
    w1, b1, w2 = params_by_role(graph)
    box = region("box", (3,), groups=1, size=2.0)
    centre, radius = (box.lower + box.upper)[0] / 2, (box.upper - box.lower)[0] / 2
    low, high = w1 @ centre + b1 - w1.abs() @ radius, w1 @ centre + b1 + w1.abs() @ radius
    assert bool(((low < 0) & (high > 0)).any())
    rows = torch.tensor([[1.0, -2.0], [-1.0, 0.5]], dtype=torch.float64)
    wanted = []
    for row in rows @ w2:
        bound, at_x = 0.0, torch.zeros(3, dtype=torch.float64)
        for i in range(4):
            slope, intercept = 1.0 if low[i] >= 0 else 0.0, 0.0
            if low[i] < 0 < high[i] and row[i] > 0:
                slope = float(high[i] > -low[i])
            elif low[i] < 0 < high[i]:
                slope = float(high[i] / (high[i] - low[i]))
                intercept = float(-low[i] * slope)
            at_x = at_x + row[i] * slope * w1[i]
            bound += float(row[i] * (slope * b1[i] + intercept))
        wanted.append(bound + float(at_x @ centre - at_x.abs() @ radius))
    found = Crown().bound(Query(graph, graph.values(torch.float64), {"x": box}, rows.unsqueeze(0)))
    torch.testing.assert_close(found.lower[0], torch.tensor(wanted, dtype=torch.float64))


def params_by_role(graph: Graph) -> list[Tensor]:
    """Parameters in the order in which the network reads them."""
    params = graph.values(torch.float64)
    return [params[name] for node in graph.nodes for name in node.inputs if name in params]


# --- batches -----------------------------------------------------------------------------------------------------


@each_method_and_net
def test_a_batch_is_a_loop(method: str, net: str, kind: str) -> None:
    """Bounds and boxes of groups together are those of each group alone."""
    query, together = query_of(net, kind), bounds_of(method, net, kind)
    for g in range(3):
        alone = METHODS[method].bound(
            Query(query.graph, query.params, {"x": query.regions["x"].take(torch.tensor([g]))}, query.spec)
        )
        slack = slack_of(together.lower)
        torch.testing.assert_close(alone.lower[0], together.lower[g], rtol=0, atol=slack)
        assert alone.stats.unstable[0] == together.stats.unstable[g]
        for name, box in alone.boxes.items():
            torch.testing.assert_close(box.lower[0], together.boxes[name].lower[g], rtol=0, atol=slack)
            torch.testing.assert_close(box.upper[0], together.boxes[name].upper[g], rtol=0, atol=slack)


def test_lines_are_made_once_for_a_box_and_anew_for_another() -> None:
    query = query_of("mlp", "box")
    ctx = context(query, Memory())
    rows = Dense(query.spec.expand(ctx.groups, *query.spec.shape[1:]))
    start = query.graph.output.name
    wide = boxes_of(ctx, {}, ())
    tight = boxes_of(ctx, {}, (BY_WALK,))
    for boxes in (wide, tight, wide):
        fresh = walked_lower(context(query, Memory()), boxes, start, rows)
        assert torch.equal(walked_lower(ctx, boxes, start, rows), fresh)
    params = {name: value.clone().requires_grad_() for name, value in query.params.items()}
    ctx = context(replace(query, params=params), Memory())
    boxes = boxes_of(ctx, {}, ())
    with torch.no_grad():
        first = walked_lower(ctx, boxes, start, rows)
    second = walked_lower(ctx, boxes, start, rows)
    found = torch.autograd.grad(second.sum(), list(params.values()), allow_unused=True, retain_graph=True)
    ctx = context(replace(query, params=params), Memory())
    again = walked_lower(ctx, boxes_of(ctx, {}, ()), start, rows)
    expected = torch.autograd.grad(again.sum(), list(params.values()), allow_unused=True)
    assert torch.equal(first, second.detach())
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))
    assert ctx.plan is context(query, Memory()).plan


@each_net
@pytest.mark.parametrize("method", ["crown", "alpha-optimised"])
def test_leaving_out_what_is_zero_changes_nothing(method: str, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks that read only the neurons which are not surely zero, from one row on instead of from many."""
    whole = bounds_of(method, net, "box")
    monkeypatch.setattr(crown, "MANY", 1)
    monkeypatch.setattr(crown, "FEW", 1.0)
    part = METHODS[method].bound(query_of(net, "box"))
    slack = slack_of(whole.lower)
    torch.testing.assert_close(part.lower, whole.lower, rtol=0, atol=slack)
    for name, box in whole.boxes.items():
        for one, other in zip(box, part.boxes[name], strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=slack_of(one))


@each_net
@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_zeros_is_bounded_by_zero(method: str, net: str) -> None:
    """There is nothing to optimise in it."""
    query = query_of(net, "box")
    found = METHODS[method].bound(replace(query, spec=torch.zeros_like(query.spec[:, :1])))
    assert bool((found.lower == 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_bounds_are_the_same_where_nobody_wants_gradients(method: str) -> None:
    query = query_of("conv", "box")
    expected = METHODS[method].bound(query)
    with torch.no_grad():
        found = METHODS[method].bound(query)
    assert torch.equal(found.lower, expected.lower)
    assert all(torch.equal(box.lower, expected.boxes[name].lower) for name, box in found.boxes.items())


def test_constants_other_than_zero_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where max(x, c) is surely c its lines have no slope, but a value."""
    b = Builder(3)
    floor = b.param(torch.tensor([-0.5, 2.5, 0.1, 3.0], dtype=torch.float64))
    graph = b.graph(b.linear(b.op("at_least", b.linear(b.input(3), 4), floor), 2))
    query = Query(graph, graph.values(torch.float64), {"x": region("box", (3,), size=0.3)}, spec_of(graph))
    whole = Crown().bound(query)
    below = next(whole.boxes[step.site.node.inputs[0]] for step in plan(graph, ("x",)).relaxed).upper
    assert bool((below[:, [1, 3]] < 2.5).all()) and whole.stats.unstable.tolist() != [0, 0, 0]
    monkeypatch.setattr(crown, "MANY", 1)
    monkeypatch.setattr(crown, "FEW", 1.0)
    torch.testing.assert_close(Crown().bound(query).lower, whole.lower, rtol=0, atol=1e-9)


@each_net
def test_where_intervals_are_exact_already_no_walk_is_needed(net: str) -> None:
    """A node called "one affine map" of the roots has the same box by intervals and by a walk."""
    query = query_of(net, "box")
    ctx = context(query, Memory())
    boxes = boxes_of(ctx, {}, ())
    found = [name for name in ctx.plan.steps if ctx.plan.one_affine_map(name)]
    assert found
    for name in found:
        node = query.graph[name]
        eye = torch.eye(node.numel, dtype=torch.float64).expand(3, -1, -1).reshape(3, node.numel, *node.shape)
        lower = walked_lower(ctx, boxes, name, Dense(eye))
        upper = -walked_lower(ctx, boxes, name, Dense(-eye))
        torch.testing.assert_close(boxes[name].lower.reshape(3, -1), lower, rtol=0, atol=1e-9)
        torch.testing.assert_close(boxes[name].upper.reshape(3, -1), upper, rtol=0, atol=1e-9)


@each_method
def test_rows_of_their_own_for_each_group(method: str) -> None:
    query = query_of("mlp", "box")
    own = spec_of(query.graph, groups=3, seed=4)
    together = METHODS[method].bound(Query(query.graph, query.params, query.regions, own)).lower
    for g in range(3):
        shared = METHODS[method].bound(Query(query.graph, query.params, query.regions, own[g : g + 1])).lower
        torch.testing.assert_close(together[g], shared[g], rtol=0, atol=1e-9)


@pytest.mark.parametrize("net", ["mlp", "conv", "graft", "shapes"])
@pytest.mark.parametrize("make", [lambda m: Crown(memory=m), lambda m: AlphaCrown(2, "optimised", memory=m)])
def test_little_memory_gives_the_same_bounds(net: str, make: Callable[[Memory], Method]) -> None:
    """One row at a time, and groups packed with their neurons or joined over the batch."""
    query = query_of(net, "box")
    wide = make(Memory()).bound(query)
    narrow = make(Memory(budget=1)).bound(query)
    torch.testing.assert_close(narrow.lower, wide.lower, rtol=0, atol=1e-9)
    twice = {"x": query.regions["x"].take(torch.tensor([2, 2]))}
    joined = make(Memory()).bound(Query(query.graph, query.params, twice, query.spec))
    torch.testing.assert_close(joined.lower, wide.lower[[2, 2]], rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha"])
def test_a_fixed_operand_with_a_value_per_group(method: str) -> None:
    """A mask that differs between the samples (dropout while training)."""
    b = Builder(5)
    mask = b.put(Node("mask", "parameter", shape=(6,), batched=True), torch.ones(2, 6, dtype=torch.float64))
    h = b.op("mul", b.op("relu", b.linear(b.input(4), 6)), mask)
    graph = b.graph(b.linear(b.op("relu", b.linear(h, 5)), 3))
    masks = (torch.rand(3, 6) > 0.4).double()
    params = {**FixedParameters(b.tensors)(), "mask": masks}
    around = region("box", (4,), size=1.5)
    query = Query(graph, params, {"x": around}, spec_of(graph))
    together = METHODS[method].bound(query).lower
    for g in range(3):
        own = {**params, "mask": masks[g : g + 1]}
        alone = METHODS[method].bound(Query(graph, own, {"x": around.take(torch.tensor([g]))}, query.spec)).lower
        torch.testing.assert_close(together[g], alone[0], rtol=0, atol=1e-9)
        points = around.take(torch.tensor([g])).sample(300)[0]
        y = evaluate(graph, {**params, "mask": masks[g].expand(300, -1)}, points)[graph.output.name]
        assert (row_values(query.spec, y.unsqueeze(0)).amin(2) - alone).min() >= -1e-9


# --- queries -----------------------------------------------------------------------------------------------------


@each_method
def test_several_inputs(method: str) -> None:
    b = Builder(2)
    x, u = b.input(3, name="x"), b.input(2, 2, name="u")
    h = b.op("add", b.linear(x, 4), b.op("relu", b.linear(b.flat(u), 4)))
    graph = b.graph(b.linear(b.op("relu", h), 3))
    regions = {"x": region("box", (3,)), "u": region("l2", (2, 2), seed=1)}
    query = Query(graph, graph.values(torch.float64), regions, spec_of(graph))
    found = METHODS[method].bound(query)
    points = {name: r.sample(500) for name, r in regions.items()}
    (y,) = outputs_at(graph, query.params, points)
    assert (row_values(query.spec, y).amin(2) - found.lower).min() >= -1e-9


@each_method
def test_a_root_inside_the_network(method: str) -> None:
    """What comes before the root plays no part."""
    graph = graph_of("mlp")
    params = graph.values(torch.float64)
    around = region("box", graph["a1"].shape)
    found = METHODS[method].bound(Query(graph, params, {"a1": around}, spec_of(graph)))
    flat = around.sample(500).flatten(0, 1)
    unread = torch.full((1500, 4), torch.nan, dtype=torch.float64)
    y = evaluate(graph, params, {"x": unread, "a1": flat})[graph.output.name].reshape(3, 500, -1)
    assert (row_values(spec_of(graph), y).amin(2) - found.lower).min() >= -1e-9
    assert set(found.boxes) == {"a1", "z2", "a2", "z3"}


@each_method
@pytest.mark.parametrize("start", ["z1", "a1", "z2", "x"])
def test_rows_over_an_inner_node(method: str, start: str) -> None:
    query = query_of("mlp", "box")
    count = query.graph[start].numel
    eye = torch.eye(count, dtype=torch.float64).unsqueeze(0)
    inner = Query(query.graph, query.params, query.regions, torch.cat([eye, -eye], 1), start)
    found = METHODS[method].bound(inner)
    (value,) = outputs_at(query.graph, query.params, {"x": points_of("mlp", "box")}, start)
    assert (value - found.lower[:, :count].unsqueeze(1)).min() >= -1e-9
    assert (-found.lower[:, count:].unsqueeze(1) - value).min() >= -1e-9


@each_method
def test_an_output_that_nothing_perturbs_has_its_value(method: str) -> None:
    b = Builder(2)
    x = b.input(3)
    constant = b.op("relu", b.param(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)), name="constant")
    graph = b.graph(b.op("add", b.linear(x, 3), constant))
    spec = torch.eye(3, dtype=torch.float64).unsqueeze(0)
    query = Query(graph, graph.values(torch.float64), {"x": region("box", (3,))}, spec, start="constant")
    found = METHODS[method].bound(query).lower
    assert found.tolist() == [[1.0, 0.0, 3.0]] * 3


@each_method
@pytest.mark.parametrize("net", ["mlp", "residual", "tanh"])
def test_known_boxes_are_used(method: str, net: str) -> None:
    """Boxes that are known to be tighter tighten what is read from them, and stay in force."""
    query = query_of(net, "box")
    name = next(node.inputs[0] for node in query.graph.nodes if node.op in ("relu", "tanh"))
    points = points_of(net, "box")
    (value,) = outputs_at(query.graph, query.params, {"x": points}, name)
    middle = value.median(1).values
    for known in (Interval(value.amin(1), middle), Interval(middle, value.amax(1))):
        found = METHODS[method].bound(Query(query.graph, query.params, query.regions, query.spec, known={name: known}))
        assert bool((found.boxes[name].lower >= known.lower).all())
        assert bool((found.boxes[name].upper <= known.upper).all())
        kept = ((value >= known.lower.unsqueeze(1)) & (value <= known.upper.unsqueeze(1))).flatten(2).all(2)
        (y,) = outputs_at(query.graph, query.params, {"x": points})
        least = torch.where(kept.unsqueeze(1), row_values(query.spec, y), torch.inf).amin(2)
        assert (least - found.lower).min() >= -1e-9


def test_a_warm_start_continues() -> None:
    query = query_of("mlp", "box")
    first = AlphaCrown(5).bound(query)
    again = AlphaCrown(0).bound(query, first.warm)
    torch.testing.assert_close(again.lower, first.lower, rtol=0, atol=1e-9)
    further = AlphaCrown(5).bound(query, first.warm)
    assert (further.lower - first.lower).min() >= -1e-12
    assert all(bool(((value >= 0) & (value <= 1)).all()) for value in further.warm.values())
    assert set(first.warm) == {"a1", "a2"}


@each_net
def test_warm_values_of_any_size_are_made_admissible(net: str) -> None:
    """Values found in another region may lie beyond the limits here; what is not a number may be anything."""
    query, points = query_of(net, "box"), points_of(net, "box")
    (y,) = outputs_at(query.graph, query.params, {"x": points})
    least = row_values(query.spec, y).amin(2)
    warm = {name: 3 * torch.randn_like(value) for name, value in AlphaCrown(0).bound(query).warm.items()}
    for value in warm.values():
        value[(0,) * value.dim()] = torch.nan
    for steps in (0, 2):
        found = AlphaCrown(steps).bound(query, warm)
        assert torch.isfinite(found.lower).all()
        assert (least - found.lower).min() >= -slack_of(least)


def test_optimising_raises_the_bounds() -> None:
    query = query_of("mlp", "box")
    wide = Query(query.graph, query.params, {"x": region("box", (4,), size=2.0)}, query.spec)
    crown, alpha = Crown().bound(wide).lower, AlphaCrown(20).bound(wide).lower
    best = AlphaCrown(20, "optimised").bound(wide).lower
    assert (alpha - crown).mean() > 0.01 * crown.abs().mean()
    assert (best - alpha).mean() > 0


@each_method
def test_no_steps_and_no_neurons(method: str) -> None:
    query = query_of("affine", "box")
    wanted = Crown().bound(query).lower
    torch.testing.assert_close(METHODS[method].bound(query).lower, wanted, rtol=0, atol=1e-9)
    start = query_of("mlp", "box")
    torch.testing.assert_close(AlphaCrown(0).bound(start).lower, Crown().bound(start).lower, rtol=0, atol=1e-12)


@each_method
@pytest.mark.parametrize("net", ["mlp", "conv", "sigmoid"])
def test_bounding_changes_nothing_and_repeats_itself(method: str, net: str) -> None:
    query = query_of(net, "box")
    tensors = [*query.params.values(), query.spec, query.regions["x"].lower, query.regions["x"].upper]
    before = [value.clone() for value in tensors]
    first, second = (METHODS[method].bound(query).lower for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@each_method
@each_net
def test_float32_is_close_to_float64(method: str, net: str) -> None:
    """Smoke: finite, and near."""
    query = query_of(net, "box")
    graph = query.graph
    small = Query(graph, graph.values(torch.float32), {"x": query.regions["x"].to(torch.float32)}, query.spec.float())
    found = METHODS[method].bound(small).lower
    assert found.dtype == torch.float32
    wanted = bounds_of(method, net, "box").lower
    # optimising wanders: Adam turns rounding into steps of its own
    near = 2e-2 if method.startswith("alpha") else 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=near, atol=near * float(wanted.abs().max()))


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DIFFERENTIABLE)
@each_net
@each_region
def test_gradients_are_the_derivatives(method: str, net: str, kind: str) -> None:
    """With respect to parameters and the region, against central differences along random directions."""
    query = query_of(net, kind, groups=2)
    torch.manual_seed(5)
    names = [name for name, value in query.params.items() if value.is_floating_point()]
    base = [query.params[name] for name in names]
    around = query.regions["x"]
    base.append(around.lower if isinstance(around, Box) else around.centre)  # type: ignore[attr-defined]
    weight = torch.randn(2, query.spec.shape[1], dtype=torch.float64)
    way, warm = METHODS.get(method), None
    if way is None:
        way, warm = AlphaCrown(0), AlphaCrown(3).bound(query).warm

    def loss(*tensors: Tensor) -> Tensor:
        params = {**query.params, **dict(zip(names, tensors[:-1], strict=True))}
        shift = tensors[-1] - base[-1].detach()
        if isinstance(around, Box):
            moved: Region = Box(around.lower + shift, around.upper + shift)
        else:
            assert isinstance(around, LpBall)
            limits = around.lower + shift, around.upper + shift
            moved = LpBall(around.centre + shift, around.radius, around.p, *limits)
        found = way.bound(Query(query.graph, params, {"x": moved}, query.spec), warm)
        return (found.lower * weight).sum()

    leaves = [value.detach().clone().requires_grad_() for value in base]
    gradients = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    for _ in range(2):
        moves = [torch.randn_like(value) for value in base]
        # a tangent found by bisection is known to a few digits, so the differences are taken far apart
        step, tolerance = (3e-4, 1e-2) if net in ("sigmoid", "tanh") else (1e-6, 1e-4)
        with torch.no_grad():
            ahead = loss(*(value + step * move for value, move in zip(base, moves, strict=True)))
            here = loss(*base)
            behind = loss(*(value - step * move for value, move in zip(base, moves, strict=True)))
        slopes = [float(ahead - behind) / (2 * step), float(ahead - here) / step, float(here - behind) / step]
        along = sum(float((g * move).sum()) for g, move in zip(gradients, moves, strict=True) if g is not None)
        slope = min(slopes, key=lambda slope: abs(slope - along))  # beside a kink, the side that the gradient is of
        assert along == pytest.approx(slope, rel=tolerance, abs=tolerance / 10)


# --- splits ------------------------------------------------------------------------------------------------------


def phases(graph: Graph, points: Tensor, params: Mapping[str, Tensor], depth: int, thresholds: bool) -> Splits:
    """Splits of random neurons (and of the input) that at least a few of the points satisfy, by group."""
    readers = {name for node in graph.nodes for name in node.inputs if node.op in ("relu", "tanh", "clip")}
    names = tuple(n.name for n in graph.nodes if n.name in readers | {"x"})
    values = [value.flatten(2) for value in outputs_at(graph, params, {"x": points}, *names)]
    groups = len(points)
    rows = []
    for g in range(groups):
        alive = torch.ones(points.shape[1], dtype=torch.bool)
        row: list[tuple[int, int, float, float]] = []
        while len(row) < depth:
            k = int(torch.randint(len(names), ()))
            i = int(torch.randint(values[k].shape[2], ()))
            z = values[k][g, :, i]
            at = float(z[alive].median()) if thresholds or names[k] == "x" else 0.0
            sign = 1.0 if torch.rand(()) > 0.5 else -1.0
            if int((alive & (sign * (z - at) >= 0)).sum()) < 20:
                sign = -sign
            alive = alive & (sign * (z - at) >= 0)
            row.append((k, i, at, sign))
        if g == groups - 1:
            row[-1] = (0, 0, 0.0, 0.0)
        rows.append(row)
    node, index, threshold, sign = (torch.tensor([[s[j] for s in row] for row in rows]) for j in range(4))
    return Splits(names, node.long(), index.long(), threshold.double(), sign.double())


def satisfied(splits: Splits, graph: Graph, points: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """bool [G, n]: points that satisfy their group's splits."""
    values = [value.flatten(2) for value in outputs_at(graph, params, {"x": points}, *splits.names)]
    kept = torch.ones(points.shape[:2], dtype=torch.bool)
    for g in range(len(points)):
        for d in range(splits.depth):
            z = values[int(splits.node[g, d])][g, :, int(splits.index[g, d])]
            kept[g] &= splits.sign[g, d] * (z - splits.threshold[g, d]) >= 0
    return kept


SPLIT_NETS = {
    "mlp": lambda: mlp(2, (3, 6, 6, 2)),
    "residual": lambda: residual(2),
    "tanh": lambda: mlp(2, (3, 5, 5, 2), act="tanh"),
    "clip": lambda: mlp(2, (3, 5, 5, 2), act="clip", min=0.0, max=0.8),
}


@pytest.mark.parametrize("net", SPLIT_NETS)
@pytest.mark.parametrize("seed", range(3))
def test_splits_with_any_multipliers_are_sound(net: str, seed: int) -> None:
    torch.manual_seed(seed)
    graph = SPLIT_NETS[net]()
    params, spec = graph.values(torch.float64), spec_of(graph)
    around = region("box", graph.input.shape, size=1.5)
    query = Query(graph, params, {"x": around}, spec)
    points = around.sample(4000)
    splits = phases(graph, points, params, 4, net == "tanh")
    kept = satisfied(splits, graph, points, params)
    assert int(kept.sum(1).min()) > 0
    (y,) = outputs_at(graph, params, {"x": points})
    least = torch.where(kept.unsqueeze(1), row_values(spec, y), torch.inf).amin(2)
    ctx = context(query, Memory())
    rows = Dense(spec.expand(3, -1, -1))
    whole = boxes_of(ctx, {}, (BY_WALK,))
    for chosen, boxes in (
        (splits, whole),
        (splits, refined(ctx, whole, splits)),
        (splits.per_width(whole), refined(ctx, whole, splits)),
    ):
        free: dict[str, Tensor] = {}
        for size in (0.0, 0.1, 1.0, 10.0):
            beta = size * torch.rand(3, spec.shape[1], 4, dtype=torch.float64)
            _, bound = Work.of(ctx, boxes, rows, free, chosen, beta, None, False).walk(graph.output.name, frozenset())
            assert (least - bound).min() >= -slack_of(least)
        beta = torch.zeros(3, spec.shape[1], 4, dtype=torch.float64)
        found = optimise(ctx, boxes, graph.output.name, rows, free, 12, Rates(), chosen, beta)
        assert found.beta is not None and bool((found.beta >= 0).all())
        assert (least - found.lower).min() >= -slack_of(least)
        bare = optimise(ctx, boxes, graph.output.name, rows, free, 0, Rates())
        assert (found.lower - bare.lower).min() >= -1e-9
        assert (found.lower - bare.lower).max() > 1e-3


def refined(ctx: Context, boxes: Mapping[str, Interval], splits: Splits) -> dict[str, Interval]:
    """Boxes after the splits have cut them."""
    return boxes_of(ctx, {n: b for n, b in splits.clamp(boxes).items() if n in splits.names}, ())


def test_multipliers_in_widths() -> None:
    """One unit stands for 1 / width; boxes without a usable width keep the absolute unit."""
    upper = torch.tensor([[4.0, 0.0, torch.inf], [0.5, 1.0, 2.0]])
    box = Interval(torch.zeros(2, 3), upper)
    index = torch.tensor([[0, 1, 2], [2, 0, 0]])
    sign = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0]])
    splits = Splits(("a", "b"), torch.tensor([[0, 0, 0], [0, 1, 0]]), index, torch.zeros(2, 3), sign)
    wide = splits.per_width({"a": box, "b": Interval(torch.zeros(2, 3), 10 * upper)})
    assert wide.unit is not None
    assert wide.unit[0].tolist() == [0.25, 1.0, 1.0]
    assert wide.unit[1, :2].tolist() == pytest.approx([0.5, 0.2])
    assert wide.at(torch.tensor([1])).unit is not None


def test_splits_cut_the_boxes() -> None:
    box = Interval(torch.full((2, 2, 2), -1.0), torch.ones(2, 2, 2))
    splits = Splits(
        ("u", "z"),
        torch.tensor([[1, 1, 1], [1, 0, 1]]),
        torch.tensor([[0, 3, 3], [2, 0, 1]]),
        torch.tensor([[0.0, 0.25, 0.5], [0.5, 0.0, 0.0]]),
        torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0]]),
    )
    cut = splits.clamp({"z": box, "u": box, "v": box})
    assert cut["z"].lower.tolist() == [[[0.0, -1.0], [-1.0, 0.5]], [[-1.0, -1.0], [-1.0, -1.0]]]
    assert cut["z"].upper.tolist() == [[[1.0, 1.0], [1.0, 0.25]], [[1.0, 1.0], [0.5, 1.0]]]
    assert cut["u"].lower.tolist() == [[[-1.0, -1.0], [-1.0, -1.0]], [[0.0, -1.0], [-1.0, -1.0]]]
    assert cut["u"].upper is box.upper or torch.equal(cut["u"].upper, box.upper)
    assert cut["v"] is box
    assert torch.equal(box.lower, torch.full((2, 2, 2), -1.0))
    assert splits.depth == 3
    assert splits.present == [0, 1]
    assert splits.to(torch.float64).threshold.dtype == torch.float64


def test_addends_are_written_out_by_hand() -> None:
    graph = mlp(0, (2, 3, 2))
    splits = Splits(
        ("z1",),
        torch.zeros(1, 3, dtype=torch.long),
        torch.tensor([[2, 0, 2]]),
        torch.tensor([[0.5, -1.0, 0.25]], dtype=torch.float64),
        torch.tensor([[1.0, -1.0, -1.0]], dtype=torch.float64),
    )
    beta = torch.tensor([[[1.0, 2.0, 4.0], [0.0, 0.5, 0.0]]], dtype=torch.float64)
    addend = splits.addends(graph, beta)["z1"]
    assert addend.rows.dense().tolist() == [[[2.0, 0.0, -1.0 + 4.0], [0.5, 0.0, 0.0]]]
    assert addend.constant.tolist() == [[0.5 + 2.0 - 1.0, 0.5]]


def ready(net: str, kind: str = "box") -> tuple[Context, dict[str, Interval], Dense, str]:
    """What `optimise` needs: context, boxes, rows, start."""
    query = query_of(net, kind)
    ctx = context(query, Memory())
    rows = Dense(query.spec.expand(3, *query.spec.shape[1:]))
    return ctx, boxes_of(ctx, {}, (BY_WALK,)), rows, query.graph.output.name


def test_rows_that_matter_no_more_end_the_optimisation() -> None:
    ctx, boxes, rows, start = ready("mlp")
    free: dict[str, Tensor] = {}
    first = optimise(ctx, boxes, start, rows, free, 0, Rates())
    asked = []

    def none(lower: Tensor) -> Tensor:
        asked.append(lower)
        return torch.zeros_like(lower, dtype=torch.bool)

    stopped = optimise(ctx, boxes, start, rows, free, 20, Rates(), wanted=none)
    assert torch.equal(stopped.lower, first.lower)
    assert len(asked) == 1
    gain = optimise(ctx, boxes, start, rows, free, 20, Rates()).lower - first.lower
    assert float(gain.max()) > 1e-3
    only = gain == gain.max()
    some = optimise(ctx, boxes, start, rows, free, 20, Rates(), wanted=lambda lower: only)
    torch.testing.assert_close((some.lower - first.lower)[only], gain[only])
    assert torch.equal(some.lower[~only], first.lower[~only])


def test_groups_go_on_with_their_own_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that go on when another one leaves read the neurons in use that are their own."""
    ctx, boxes, rows, start = ready("mlp")
    one, others = rows.take(torch.tensor([0])), torch.tensor([[False], [True], [True]])

    def bounds() -> Tensor:
        live = crown.live_of(ctx, boxes, start, one)
        return optimise(ctx, boxes, start, one, {}, 6, Rates(), wanted=lambda lower: others, live=live).lower

    whole = bounds()
    monkeypatch.setattr(crown, "MANY", 1)
    monkeypatch.setattr(crown, "FEW", 1.0)
    assert any(not torch.equal(live[0], live[2]) for live in crown.live_of(ctx, boxes, start, one).values())
    torch.testing.assert_close(bounds(), whole, rtol=0, atol=1e-9)


def test_what_is_kept_gives_the_bound() -> None:
    """The free values and multipliers of the best step, walked again, give the best bounds."""
    ctx, boxes, rows, start = ready("mlp")
    free: dict[str, Tensor] = {}
    fast = Rates(alpha=0.9, decay=1.0)
    found = optimise(ctx, boxes, start, rows, free, 9, fast)
    again = optimise(ctx, boxes, start, rows, found.free, 0, fast)
    torch.testing.assert_close(again.lower, found.lower, rtol=0, atol=1e-12)


def test_pieces_of_groups_are_optimised_as_all_groups_together() -> None:
    """Every group with rows, splits, multipliers, free values and weights of its own."""
    ctx, boxes, _, start = ready("mlp")
    own = Dense(spec_of(ctx.plan.graph, groups=3, seed=4))
    splits = phases(ctx.plan.graph, points_of("mlp", "box"), ctx.values, 3, False)
    threshold, logits = torch.randn(2, 3, own.rows[1], dtype=torch.float64)
    conjunction = Target(own.coefficients, threshold)
    apart = replace(ctx, memory=Memory(budget=1))
    for target, weights in ((own, None), (conjunction, logits)):
        rows = own.rows[1] if weights is None else 1
        beta = torch.rand(3, rows, 3, dtype=torch.float64)
        free = {name: torch.rand(1, 3, rows, *boxes[name].lower.shape[1:]).double() for name in ("a1", "a2")}
        whole, cut = (
            optimise(c, boxes, start, target, free, 3, Rates(), splits, beta, weights, keep=frozenset({"a1"}))
            for c in (ctx, apart)
        )
        torch.testing.assert_close(cut.lower, whole.lower, rtol=0, atol=1e-9)
        torch.testing.assert_close(cut.beta, whole.beta, rtol=0, atol=1e-6)
        torch.testing.assert_close(cut.logits, whole.logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(dict(cut.free), dict(whole.free), rtol=0, atol=1e-6)
        torch.testing.assert_close(dict(cut.reached), dict(whole.reached), rtol=0, atol=1e-6)


@pytest.mark.parametrize("net", ["mlp", "tanh"])
def test_a_conjunction_is_bounded_by_convex_combinations(net: str) -> None:
    """At every point some atom is at least the bound; with one atom it is that atom's own bound."""
    ctx, boxes, rows, start = ready(net)
    threshold = torch.randn(3, rows.rows[1], dtype=torch.float64)
    (y,) = outputs_at(ctx.plan.graph, ctx.values, {"x": points_of(net, "box")})
    least = (row_values(rows.dense(), y) - threshold.unsqueeze(2)).amax(1).amin(1)
    free: dict[str, Tensor] = {}
    target = Target(rows.dense(), threshold)
    found = optimise(ctx, boxes, start, target, free, 15, Rates(), logits=torch.zeros_like(threshold))
    assert found.lower.shape == (3, 1)
    assert (least - found.lower[:, 0]).min() >= -1e-9
    for k in range(2):
        alone = torch.full_like(threshold, -torch.inf)
        alone[:, k] = 0.0
        single = optimise(ctx, boxes, start, target, free, 0, Rates(), logits=alone)
        row = optimise(ctx, boxes, start, rows.take(torch.tensor([k])), free, 0, Rates())
        torch.testing.assert_close(single.lower, row.lower - threshold[:, k : k + 1], rtol=0, atol=1e-12)


# --- what has no rule, what does not fit ---------------------------------------------------------------------------


def product(b: Builder, x: str) -> str:
    return b.op("mul", x, b.linear(x, 4), name="bad")


def pooled(b: Builder, x: str) -> str:
    square = b.op("reshape", x, shape=(1, 2, 2))
    attrs = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    return b.flat(b.op("max_pool2d", square, name="bad", **attrs))


def quotient(b: Builder, x: str) -> str:
    return b.op("div", b.param(torch.ones(4, dtype=torch.float64)), x, name="bad")


def grafted(b: Builder, x: str) -> str:
    line = b.param(torch.ones(4) > 0), x, b.param(torch.zeros(4, dtype=torch.float64))
    return b.op("graft", b.param(torch.ones(4, dtype=torch.float64)), *line, name="bad")


@each_method
@pytest.mark.parametrize(
    ("make", "op", "reason", "rules"),
    [
        (product, "mul", "it is not affine in what is perturbed", "interval (IBP) only"),
        (pooled, "max_pool2d", "it is not affine in what is perturbed", "interval (IBP) only"),
        (quotient, "div", "it is not affine in what is perturbed", "interval (IBP) only"),
        (grafted, "graft", "only its first operand may be perturbed", "interval (IBP), linear bounds"),
    ],
    ids=["product", "pool", "quotient", "graft"],
)
def test_an_op_without_a_rule_is_named(
    method: str, make: Callable[[Builder, str], str], op: str, reason: str, rules: str
) -> None:
    b = Builder(0)
    last = make(b, b.input(4))
    graph = b.graph(last if b.shape(last) == (4,) else b.linear(last, 3))
    origin = graph["bad"].origin
    query = Query(graph, graph.values(torch.float64), {"x": region("box", (4,))}, spec_of(graph))
    with pytest.raises(UnsupportedOp) as caught:
        METHODS[method].bound(query)
    error = caught.value
    assert (error.op, error.node, error.origin, error.reason, error.rules) == (op, "bad", origin, reason, rules)
    assert str(error) == (
        f"op '{op}' at node 'bad' ({origin}) is not supported: {reason}. Rules that exist for it: {rules}. "
        "To add one see docs/add-an-op.md."
    )
    assert error.exit_code == 3


def test_boxes_that_miss_each_other_give_the_earlier_one() -> None:
    ends = ((0.0, 2.0), (3.0, 4.0), (0.0, 1.0), (1.0, 5.0)), ((1.0, 3.0), (1.0, 2.0), (math.nan, 0.5), (2.0, 4.0))
    first, second = (Interval(*torch.tensor(pairs).T) for pairs in ends)
    found = intersect(first, second)
    assert torch.stack([*found], 1).tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.5], [2.0, 4.0]]


def two_inputs() -> Graph:
    """y = relu(W x) + u, and a node beside the way to the output."""
    b = Builder(0)
    x, u = b.input(3, name="x"), b.input(3, name="u")
    z = b.op("relu", b.linear(x, 3), name="z")
    b.op("relu", b.linear(z, 3), name="beside")
    return b.graph(b.op("add", z, u))


@each_method
def test_an_input_without_a_region_is_refused(method: str) -> None:
    graph = two_inputs()
    query = Query(graph, graph.values(torch.float64), {"x": region("box", (3,))}, spec_of(graph))
    with pytest.raises(SureboundError, match="'u'"):
        METHODS[method].bound(query)


@each_method
def test_a_region_of_no_node_is_refused(method: str) -> None:
    """Silence would mean bounds of 0."""
    graph = graph_of("mlp")
    query = Query(graph, params_of("mlp"), {"nothing": region("box", (4,))}, spec_of(graph))
    with pytest.raises(SureboundError, match="'nothing'"):
        METHODS[method].bound(query)


@each_method
def test_rows_over_a_node_beside_the_output_are_bounded_or_refused(method: str) -> None:
    graph = two_inputs()
    regions = {name: region("box", (3,), seed=i) for i, name in enumerate(graph.inputs)}
    spec = -torch.eye(3, dtype=torch.float64).unsqueeze(0)
    query = Query(graph, graph.values(torch.float64), regions, spec, start="beside")
    try:
        lower = METHODS[method].bound(query).lower
    except SureboundError as error:
        assert "'beside'" in str(error)
        return
    points = {name: r.sample(500) for name, r in regions.items()}
    (value,) = outputs_at(graph, query.params, points, "beside")
    assert (row_values(spec, value).amin(2) - lower).min() >= -1e-9


@each_method
def test_perturbed_weights_are_bounded_or_refused(method: str) -> None:
    """An input and a bias (or a weight) that move together."""
    graph = mlp(0, (3, 4, 2))
    params = graph.values(torch.float64)
    x = torch.randn(1, 3, dtype=torch.float64)
    for name in graph["z1"].inputs[1:]:
        centre = params[name].unsqueeze(0)
        regions = {"x": Box(x, x + 0.1), name: Box(centre - 0.1, centre + 0.1)}
        try:
            lower = METHODS[method].bound(Query(graph, params, regions, spec_of(graph))).lower
        except SureboundError as error:
            assert "z1" in str(error) or name in str(error)
            continue
        points, shifts = regions["x"].sample(50)[0], regions[name].sample(50)[0]
        y = [
            evaluate(graph, {**params, name: w}, p.unsqueeze(0))[graph.output.name]
            for p, w in zip(points, shifts, strict=True)
        ]
        least = row_values(spec_of(graph), torch.stack(y, 1)).amin(2)
        assert (least - lower).min() >= -1e-9


def test_a_part_that_is_not_needed_is_not_refused() -> None:
    b = Builder(0)
    x = b.input(4)
    product(b, x)
    graph = b.graph(b.linear(x, 3))
    assert set(plan(graph, ("x",)).steps) == {graph.output.name}


def test_a_plan_knows_what_moves() -> None:
    graph = graph_of("residual")
    of = plan(graph, ("x",))
    assert [step.site.node.name for step in of.relaxed] == [node.name for node in graph.nodes if node.op == "relu"]
    assert all(
        step.perturbed == tuple(graph[name].batched for name in step.site.node.inputs) for step in of.steps.values()
    )
    order = of.order(graph.output.name)
    assert order[0] == graph.output.name and order[-1] == "x"
    assert {name: [step.site.node.op for step in steps] for name, steps in of.operands.items()} == {
        node.inputs[0]: ["relu"] for node in graph.nodes if node.op == "relu"
    }


def test_memory_counts_rows_and_pieces() -> None:
    assert Memory(6 * 10 * 8 * 7).rows(10, torch.float64) == 7
    assert Memory(6 * 10 * 8 * 7).rows(10, torch.float32) == 14
    assert Memory(1).rows(1000, torch.float64) == 1
    assert list(pieces(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize("still", [1e300, 1e308, 1.7e308, 5e-324])
def test_forms_of_numbers_at_the_ends_of_their_range(still: float) -> None:
    """An input that stands still at a huge or tiny number, and is scaled to 1e8 or more behind."""
    b = Builder(0)
    x = b.input(2)
    scale = min(1e8 / still, 1e300)
    z = b.op("linear", x, b.param(torch.tensor([[scale, 1.0], [scale, -1.0]], dtype=torch.float64)))
    graph = b.graph(b.op("relu", z))
    ends = (torch.tensor([[still, end]], dtype=torch.float64) for end in (-1.0, 1.0))
    params = graph.values(torch.float64)
    region = Box(*ends)
    values = evaluate(graph, params, region.sample(50)[0])[graph.output.name]
    for sign in (1, -1):
        spec = sign * torch.eye(2, dtype=torch.float64)[None]
        lower = Forward().bound(Query(graph, params, {"x": region}, spec)).lower[0]
        assert (lower <= (sign * values).amin(0) + 1e-9 * values.abs().amax()).all()
        assert not torch.isnan(lower).any()


@pytest.mark.parametrize("backward", [False, True])
def test_forms_trust_no_interval_of_a_users_own_op(backward: bool) -> None:
    """A difference that the network keeps above zero, as its interval knows: no measure of its Jacobian."""

    def gap(site: Site, m: Interval, x: Interval) -> Interval:
        return Interval((m.lower - x.upper).clamp(min=0), (m.upper - x.lower).clamp(min=0))

    own = Op(lambda site, m, x: m - x, always, gap)
    for seed in range(20):
        b = Builder(seed)
        x = b.input(3)
        h, k = (b.op("relu", b.linear(x, 3)) for _ in range(2))
        graph = replace(b.graph(b.op("sub", b.op("add", h, k), h)), ops=OPS | {"sub": own})
        params = graph.values(torch.float64)
        query = Query(graph, params, {graph.input.name: region("box", (3,))}, spec_of(graph))
        points = query.regions[graph.input.name].sample(300)
        y = evaluate(graph, params, points.flatten(0, 1))[graph.output.name].unflatten(0, points.shape[:2])
        values = torch.einsum("gsm,gnm->gns", query.spec.expand(len(y), -1, -1), y)
        assert (Forward(backward).bound(query).lower <= values.amin(1) + 1e-9).all(), seed


def test_an_overflow_is_no_bound() -> None:
    """Two terms of 1e308 whose sum is too large for a number, of which one is taken away again."""
    b = Builder(0)
    x = b.input(1)
    y = b.op("relu", b.op("linear", x, b.param(torch.full((2, 1), 1e308, dtype=torch.float64))))
    row = b.param(torch.tensor([[1.0, 1.0], [1.0, -0.5]], dtype=torch.float64))
    graph = b.graph(b.op("linear", y, row))
    region = Box(torch.tensor([[0.9]], dtype=torch.float64), torch.tensor([[1.1]], dtype=torch.float64))
    found = Forward().bound(
        Query(graph, graph.values(torch.float64), {"x": region}, torch.eye(2, dtype=torch.float64)[None])
    )
    assert found.lower[0, 0] == -torch.inf
    assert found.lower[0, 1] <= 0.45e308


def test_forms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OutOfMemory, match=r"forward bounds in 4 inputs hold .* GB .*; use crown, or more memory"):
        Forward(memory=Memory(100)).bound(query_of("mlp", "box"))


def test_work_that_does_not_fit_is_halved() -> None:
    asked = []

    def fits_three(piece: slice) -> int:
        asked.append(piece.stop - piece.start)
        if asked[-1] > 3:
            raise MemoryError("too much")
        return asked[-1]

    assert sum(chunked(fits_three, 20, 16)) == 20
    assert max(asked[2:]) <= 8 and asked[0] == 16

    def fits_nothing(piece: slice) -> int:
        raise MemoryError("too much")

    with pytest.raises(OutOfMemory, match="one row of 20 does not fit into memory: too much"):
        chunked(fits_nothing, 20, 16)


def test_the_table_of_ops_is_the_graphs() -> None:
    """The nets above exercise every op that has linear bounds."""
    used = {node.op for net in [*NETS, *BENT] for node in graph_of(net).nodes} - {"input", "parameter"}
    bounded = {name for name, op in OPS.items() if op.relax is not None or op.affine((True, False))}
    assert bounded <= used | {"maximum", "minimum", "max_pool2d", "softmax"}


def test_optimising_leaves_the_parameters_gradients_alone() -> None:
    """Live parameters may be optimised for: nothing is added to their `.grad`, and the bounds are differentiable."""
    query = query_of("mlp", "box")
    params = {name: value.clone().requires_grad_() for name, value in query.params.items()}
    for method in (AlphaCrown(3), AlphaCrown(4, "optimised")):
        found = method.bound(Query(query.graph, params, query.regions, query.spec))
        assert all(value.grad is None for value in params.values())
        fixed = method.bound(query)
        torch.testing.assert_close(found.lower, fixed.lower, rtol=0, atol=1e-9)
        gradients = torch.autograd.grad(found.lower.sum(), list(params.values()))
        assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert not method.bound(query).lower.requires_grad
