"""The search: verdicts against enumeration and sampling, pools against single runs, determinism, evidence."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from nets import Builder, tiny
from numpy.typing import NDArray
from oracle import mixed_integer_minimum
from torch import Tensor

from surebound.attacks.pgd import Descent, pgd
from surebound.bounds import crown
from surebound.bounds.alpha import AlphaCrown, optimise
from surebound.bounds.attained import attained
from surebound.bounds.beta import Splits
from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, Context, Tighten, boxes_of, walked_lower
from surebound.bounds.ibp import unperturbed
from surebound.bounds.memory import Memory
from surebound.bounds.plan import plan
from surebound.bounds.work import Optimised
from surebound.errors import SpecError, UsageError
from surebound.graph.graph_original import GraphOriginal
from surebound.graph.ir import FixedParameters, Graph, Node, evaluate
from surebound.linear.maps import Dense, Rows
from surebound.ops import OPS
from surebound.ops.record import Interval
from surebound.properties import Case, Disjunct, Property, robust
from surebound.regions import Box, LpBall, Region
from surebound.search import neurons
from surebound.search.attack import PATIENCE, REFINEMENT, hopeful, try_points
from surebound.search.branching.scores import neuron_scores
from surebound.search.engine import Bounded
from surebound.search.ledger import Ledger
from surebound.search.mixing import best_weights, combined
from surebound.search.neurons import NeuronEngine
from surebound.search.problem import Problem, problem
from surebound.search.root_bounds import STEPS, raised_in_single
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import Roots, roots_of
from surebound.search.run import Run, VerifyConfig
from surebound.search.stages import far
from surebound.search.tree import Forest, Tree
from surebound.search.verdict import Falsified, Outcome, Unknown, Verified
from surebound.search.verify import verify

F64 = torch.float64


def dense_net(seed: int, sizes: tuple[int, ...], activation: str = "relu", **attrs: float) -> Graph:
    """A fully connected network with float64 parameters."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    nodes = [Node("x", "input", shape=(sizes[0],))]
    value = "x"
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        tensors[f"w{i}"] = torch.randn(fan_out, fan_in, generator=generator, dtype=F64) / fan_in**0.5 * 1.5
        tensors[f"b{i}"] = torch.randn(fan_out, generator=generator, dtype=F64) * 0.3
        nodes += [Node(n, "parameter", shape=tuple(tensors[n].shape), batched=False) for n in (f"w{i}", f"b{i}")]
        nodes.append(Node(f"h{i}", "linear", (value, f"w{i}", f"b{i}"), {}, (fan_out,)))
        value = f"h{i}"
        if i < len(sizes) - 2:
            nodes.append(Node(f"a{i}", activation, (value,), attrs, (fan_out,)))
            value = f"a{i}"
    return Graph(tuple(nodes), ("x",), (value,), OPS, FixedParameters(tensors))


def outputs(graph: Graph, x: Tensor) -> Tensor:
    return evaluate(graph, graph.values(F64), x)[graph.output.name].flatten(1)


def conjunction(rows: list[list[float]], limits: list[float]) -> Disjunct:
    return Disjunct(torch.tensor(rows, dtype=F64), torch.tensor(limits, dtype=F64), tuple("row" for _ in rows))


def prop(lower: Tensor, upper: Tensor, *disjuncts: Disjunct) -> Property:
    return Property((Case(Box(lower[None], upper[None]), disjuncts, None),))


def dense_minimum(graph: Graph, low: Tensor, high: Tensor, disjunct: Disjunct, count: int = 40) -> float:
    """The least of max_k (c_k y - t_k) over a fine grid of a two-dimensional box."""
    axes = [torch.linspace(float(a), float(b), count, dtype=F64) for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    slack = outputs(graph, grid) @ disjunct.C.T - disjunct.t
    return float(slack.amax(1).min())


CONFIG = VerifyConfig(timeout=20.0, dtype=F64)


def forward_first(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """Boxes by forward bounds in networks of any size, without walks where inputs are split."""
    if on:
        monkeypatch.setattr("surebound.search.crown_boxes.LARGE", 0)
        monkeypatch.setattr("surebound.search.root_bounds.DEAR", -1)
        monkeypatch.setattr("surebound.search.inputs.WORTH", -1)


HOW = ("inputs", "inputs, collapsed", "inputs, forward", "neurons", "clipped", "collapsed", "forward")


def search_by(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split inputs or neurons; clipped: with clipped inputs; collapsed: on the collapsed instance from the second batch
    on, whatever it costs; forward: from forward bounds, with walks where neurons are split.
    """
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 10 if "inputs" in how else 0)
    monkeypatch.setattr("surebound.search.stages.CLIPPED", 64 if how == "clipped" else 0)
    monkeypatch.setattr("surebound.search.stages.MEDIUM", 1 if how == "collapsed" else 1 << 40)
    monkeypatch.setattr("surebound.search.collapse.CHEAPER", 1e9 if "collapsed" in how else 0)
    forward_first(monkeypatch, "forward" in how)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "clip", "sigmoid", "tanh"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(4))
def test_verdict_follows_a_dense_grid(activation: str, how: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds just below and above the grid's minimum: proof and witness, by all engines."""
    search_by(how, monkeypatch)
    attrs = {"leaky_relu": {"slope": 0.1}, "clip": {"min": -0.5, "max": 0.7}}.get(activation, {})
    slow = "inputs" not in how and activation in ("sigmoid", "tanh")
    graph = dense_net(seed, (2, 5, 3) if slow else (2, 8, 6, 3), activation, **attrs)
    low, high = torch.tensor([-1.0, -0.5], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    rows = [[1.0, -1.0, 0.0], [0.3, 0.2, -1.0]]
    free = conjunction(rows, [0.0, 0.0])
    least = dense_minimum(graph, low, high, free)
    gap = 0.2 if slow else 0.05
    provable = conjunction(rows, [least - gap, least - gap])
    violated = conjunction(rows, [least + gap, least + gap])
    safe, unsafe = verify(graph, [prop(low, high, provable), prop(low, high, violated)], CONFIG)
    assert isinstance(safe.verdict, Verified), safe
    assert 0 < safe.verdict.margin < 2 * gap
    assert isinstance(unsafe.verdict, Falsified), unsafe


@pytest.mark.parametrize(("count", "wanted"), [(1, 48), (6, 8), (100, 5)])
def test_starting_points_are_shared_by_the_disjuncts_of_a_property(
    count: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick attack has three for each, the whole attack what a property has, but five for each; and the middle."""
    seen: list[tuple[int, int]] = []

    def noting(run: Run, here: NDArray[np.int64], region: Region, starts: Tensor, descent: Descent) -> None:
        if descent != REFINEMENT:
            seen.append((len(here), starts.shape[1]))

    monkeypatch.setattr("surebound.search.attack.descend", noting)
    monkeypatch.setattr("surebound.search.attack.ATTACK", 0)
    monkeypatch.setattr("surebound.search.stages.DEAR", -1)
    graph, low, high = dense_net(0, (2, 12, 8, 2)), -torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    least = dense_minimum(graph, low, high, conjunction([[1.0, 0.5]], [0.0]), 60)
    some = [conjunction([[1.0, 0.5]], [least - 0.02])] * count
    verify(graph, [prop(low, high, *some)], VerifyConfig(timeout=5.0))
    assert seen[:2] == [(count, 4), (count, wanted + 1)]


@pytest.mark.parametrize("how", HOW)
def test_attack_off_never_proves_what_is_false(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted counterexamples of tiny volume: with nobody looking for them the proof must still fail."""
    search_by(how, monkeypatch)
    low, high = -torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    for seed in range(6):
        graph = dense_net(seed, (2, 6, 6, 2))
        least = dense_minimum(graph, low, high, conjunction([[1.0, 0.5]], [0.0]), 60)
        false = prop(low, high, conjunction([[1.0, 0.5]], [least + 1e-6]))
        (found,) = verify(graph, [false], VerifyConfig(timeout=0.5, attack="none"))
        assert isinstance(found.verdict, Unknown), (seed, found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", HOW)
def test_verdict_changes_at_the_minimum_of_a_mixed_integer_program(
    how: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_by(how, monkeypatch)
    graph = tiny(seed, (3, 8, 8, 2), skip=seed == 1)
    low, high = torch.full((3,), -0.4, dtype=F64), torch.full((3,), 0.5, dtype=F64)
    row = [1.0, -0.7]
    (least,) = mixed_integer_minimum(graph, graph.values(F64), (low.numpy(), high.numpy()), np.array([row]))
    middle = float(outputs(graph, ((low + high) / 2)[None])[0] @ torch.tensor(row, dtype=F64))
    step = 1e-4 * (middle - float(least))
    assert step > 0
    below, above = (prop(low, high, conjunction([row], [float(least) + d])) for d in (-step, step))
    assert [found.verdict.name for found in verify(graph, [below, above], CONFIG)] == ["unsat", "sat"]


def test_witness_is_inside_and_violates() -> None:
    graph = dense_net(3, (4, 10, 2))
    low, high = torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64)
    (found,) = verify(graph, [prop(low, high, conjunction([[1.0, 0.0]], [100.0]))], CONFIG)
    assert isinstance(found.verdict, Falsified)
    witness = found.verdict.witness
    assert all(Decimal(0) <= value <= Decimal(1) for value in witness.x)
    y = outputs(graph, witness.fed.double().reshape(1, 4))
    assert torch.equal(y.flatten(), witness.y.double())


def test_disjuncts_and_cases_are_all_needed() -> None:
    """A property with one true and one violated disjunct, or case, is violated."""
    graph = dense_net(1, (2, 4, 2))
    low, high = torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)
    never, always = conjunction([[1.0, 0.0]], [-100.0]), conjunction([[1.0, 0.0]], [100.0])
    one = Property((Case(Box(low[None], high[None]), (never, always), None),))
    two = Property(tuple(Case(Box(low[None], high[None]), (d,), None) for d in (never, always)))
    both = Property((Case(Box(low[None], high[None]), (never, never), None),))
    names = [outcome.verdict.name for outcome in verify(graph, [one, two, both], CONFIG)]
    assert names == ["sat", "sat", "unsat"]


def test_pool_equals_single_runs() -> None:
    """Padding conjunctions of different length and mixing instances changes no verdict."""
    graph = dense_net(5, (3, 10, 8, 3))
    generator = torch.Generator().manual_seed(0)
    properties = []
    for k in range(8):
        centre = torch.rand(3, generator=generator, dtype=F64)
        rows = torch.randn(1 + k % 3, 3, generator=generator, dtype=F64).tolist()
        limits = [float(v) for v in torch.randn(1 + k % 3, generator=generator, dtype=F64)]
        properties.append(prop(centre - 0.2, centre + 0.2, conjunction(rows, limits)))
    pooled = verify(graph, properties, CONFIG)
    single = [verify(graph, [one], CONFIG)[0] for one in properties]
    assert [a.verdict.name for a in pooled] == [b.verdict.name for b in single]
    assert {a.verdict.name for a in pooled} == {"sat", "unsat"}


def strip(outcome: Outcome) -> tuple[object, ...]:
    verdict = outcome.verdict
    proof = [(t.parent.tolist(), t.index.tolist(), t.lower.tolist()) for t in verdict.trees] if isinstance(
        verdict, Verified
    ) else None  # fmt: skip
    return verdict.name, outcome.nodes, outcome.engine, proof


@pytest.mark.parametrize("how", HOW)
def test_same_seed_gives_the_same_tree(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    graph = dense_net(0, (2, 12, 8, 2))
    low, high = -torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    row = [[1.0, -1.0]]
    least = dense_minimum(graph, low, high, conjunction(row, [0.0]))
    case = prop(low, high, conjunction(row, [least - 0.02]))
    first, second = (verify(graph, [case], VerifyConfig(seed=0))[0] for _ in range(2))
    assert first.nodes > 3
    assert strip(first) == strip(second)


def path_of(tree: Tree, leaf: int) -> list[int]:
    rows = []
    while tree.parent[leaf] >= 0:
        rows.append(leaf)
        leaf = int(tree.parent[leaf])
    return rows


@pytest.mark.parametrize("how", HOW)
def test_proof_trees_cover_the_region(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sampled input lies in a leaf, every leaf has a positive margin, and bounds hold for its inputs."""
    search_by(how, monkeypatch)
    graph = dense_net(0, (2, 12, 8, 2))
    low, high = -torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
    least = dense_minimum(graph, low, high, conjunction([[1.0, -1.0]], [0.0]))
    (found,) = verify(graph, [prop(low, high, conjunction([[1.0, -1.0]], [least - 0.02]))])
    assert isinstance(found.verdict, Verified)
    (tree,) = found.verdict.trees
    assert len(tree.leaves) > 2
    assert (tree.lower[tree.leaves] > 0).all()
    assert found.verdict.margin == tree.lower[tree.leaves].min()
    x = Box(low[None], high[None]).sample(2000, torch.Generator().manual_seed(1))[0]
    values = evaluate(graph, graph.values(F64), x, [*tree.names, graph.output.name])
    slack = values[graph.output.name] @ torch.tensor([1.0, -1.0], dtype=F64) - (least - 0.02)
    covered = torch.zeros(len(x), dtype=torch.bool)
    for leaf in tree.leaves:
        inside = torch.ones(len(x), dtype=torch.bool)
        for row in path_of(tree, int(leaf)):
            z = values[tree.names[tree.node[row]]].flatten(1)[:, tree.index[row]]
            inside &= float(tree.sign[row]) * (z - float(tree.threshold[row])) >= 0
        covered |= inside
        if inside.any():
            least = float(slack[inside].min())
            clips = "inputs" in how or how == "clipped"  # there only what is left of the box has the leaf's bound
            assert least > 0 and (clips or float(tree.lower[leaf]) <= least + 1e-9)
    assert covered.all()


@pytest.mark.parametrize("how", HOW)
def test_cases_with_different_boxes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One property over four quarters of a box; its limits are a little below, then above, the least on a grid."""
    search_by(how, monkeypatch)
    graph = dense_net(2, (2, 12, 8, 1))
    corners = [
        (torch.tensor([a, b], dtype=F64), torch.tensor([a + 1, b + 1], dtype=F64)) for a in (-1, 0) for b in (-1, 0)
    ]
    limits = [dense_minimum(graph, low, high, conjunction([[1.0]], [0.0])) for low, high in corners]

    def moved(by: list[float]) -> Property:
        some = zip(corners, limits, by, strict=True)
        return Property(
            tuple(Case(Box(a[None], b[None]), (conjunction([[1.0]], [t + m]),), None) for (a, b), t, m in some)
        )

    (safe,) = verify(graph, [moved([-0.03] * 4)], CONFIG)
    assert isinstance(safe.verdict, Verified) and len(safe.verdict.trees) == 4
    assert sum(len(tree.leaves) for tree in safe.verdict.trees) > 12
    (unsafe,) = verify(graph, [moved([-0.03, -0.03, -0.03, 0.03])], replace(CONFIG, attack="none", timeout=1.0))
    assert not isinstance(unsafe.verdict, Verified)


def test_timeout_is_a_reason_not_a_proof() -> None:
    graph = dense_net(0, (20, 60, 60, 2))
    low, high = -torch.ones(20, dtype=F64), torch.ones(20, dtype=F64)
    x = Box(low[None], high[None]).sample(5000)[0]
    least = float((outputs(graph, x) @ torch.tensor([1.0, -1.0], dtype=F64)).min())
    case = prop(low, high, conjunction([[1.0, -1.0]], [least - 1.0]))
    (found,) = verify(graph, [case], VerifyConfig(timeout=0.2, attack="none"))
    assert isinstance(found.verdict, Unknown)
    assert found.verdict.kind == "timeout"
    assert "0.2 s" in found.verdict.reason


def test_nan_weights_and_overflow_prove_nothing() -> None:
    graph = dense_net(0, (2, 4, 2))
    tensors = dict(graph.parameters())
    for bad in (float("nan"), float("inf"), 1e300):
        broken = {**tensors, "w1": tensors["w1"] * bad}
        hurt = Graph(graph.nodes, graph.inputs, graph.outputs, OPS, FixedParameters(broken))
        low, high = -torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)
        (found,) = verify(hurt, [prop(low, high, conjunction([[1.0, 0.0]], [-1.0]))], VerifyConfig(timeout=1.0))
        assert not isinstance(found.verdict, Verified), bad


def test_ball_regions_are_decided() -> None:
    graph = dense_net(2, (3, 8, 2))
    centre = torch.full((1, 3), 0.5, dtype=F64)
    lower, upper = torch.zeros(1, 3, dtype=F64), torch.ones(1, 3, dtype=F64)
    for p in (1, 2):
        ball = LpBall(centre, torch.tensor([0.2], dtype=F64), p, lower, upper)
        y = outputs(graph, ball.sample(4000)[0]) @ torch.tensor([1.0, -1.0], dtype=F64)
        safe = Property((Case(ball, (conjunction([[1.0, -1.0]], [float(y.min()) - 0.1]),), None),))
        unsafe = Property((Case(ball, (conjunction([[1.0, -1.0]], [float(y.median())]),), None),))
        names = [outcome.verdict.name for outcome in verify(graph, [safe, unsafe], CONFIG)]
        assert names == ["unsat", "sat"]


def test_robustness_of_an_image_classifier() -> None:
    build = Builder(0)
    x = build.input(1, 6, 6)
    h = build.op("relu", build.conv(x, 4, padding=(1, 1)))
    y = build.linear(build.op("reshape", h, shape=(144,)), 3, name="y")
    graph = Graph(tuple(build.nodes.values()), (x,), (y,), OPS, FixedParameters(build.tensors))
    image = torch.rand(1, 6, 6, dtype=F64)
    label = int(outputs(graph, image[None]).argmax())
    small, large = (robust(image, label, eps, 3) for eps in (1e-4, 0.9))
    names = [outcome.verdict.name for outcome in verify(graph, [small, large], VerifyConfig(timeout=10.0))]
    assert names == ["unsat", "sat"]


def test_property_of_another_size_is_refused() -> None:
    graph = dense_net(0, (2, 4, 2))
    low, high = torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)
    with pytest.raises(SpecError, match="3.*2"):
        verify(graph, [prop(low, high, conjunction([[1.0, 0.0]], [0.0]))])


def test_timeout_must_be_positive() -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        VerifyConfig(timeout=0)


def test_forest_paths_and_split_geometry() -> None:
    forest = Forest(["h", "x"])
    root = forest.append(parent=np.array([-1]), root=np.array([0]), slot=-1)
    child = forest.append(
        parent=root.repeat(2), root=0, node=1, index=2, threshold=0.5, sign=np.array([-1, 1]), depth=np.array([1, 1])
    )
    grand = forest.append(parent=child[1:], root=0, node=0, index=4, threshold=0.0, sign=1, depth=np.array([2]))
    splits = forest.paths(np.concatenate([root, child, grand]))
    assert isinstance(splits, Splits)
    assert splits.sign.tolist() == [[0, 0], [-1, 0], [1, 0], [1, 1]]
    assert splits.node[3].tolist() == [0, 1]
    assert splits.index[3].tolist() == [4, 2]
    assert splits.threshold[3].tolist() == [0.0, 0.5]


def test_forest_tells_the_rows_of_a_root_also_after_more_have_come() -> None:
    forest = Forest(["h", "x"])
    first = forest.append(parent=np.array([-1, -1]), root=np.array([0, 2]), slot=-1)
    assert forest.rows(2).tolist() == [1] and forest.rows(1).tolist() == forest.rows(7).tolist() == []
    pair = {"index": 3, "threshold": 0.5, "sign": np.array([-1, 1]), "depth": np.array([1, 1])}
    below = forest.append(parent=first[1:].repeat(2), root=2, node=1, **pair)
    forest.append(parent=below[:1].repeat(2), root=2, node=0, **pair)
    forest.append(parent=first[:1].repeat(2), root=0, node=1, **pair)
    assert forest.rows(2).tolist() == [1, 2, 3, 4, 5] and forest.rows(0).tolist() == [0, 6, 7]
    assert forest.tree(2, "crown").parent.tolist() == [-1, 0, 0, 1, 1]
    assert forest.tree(0, "crown").parent.tolist() == [-1, 0, 0]
    assert {name: at.tolist() for name, at in forest.splits(np.array([0, 2])).items()} == {"h": [3], "x": [3, 3]}
    assert forest.splits(np.array([1])) == {}


def test_mixing_finds_the_farkas_combination() -> None:
    """x <= -0.1 and -x <= -0.1 exclude each other, though neither fails alone on [-1, 1]."""
    a = torch.tensor([[[1.0], [-1.0]]], dtype=F64)
    b = torch.tensor([[0.1, 0.1]], dtype=F64)
    lower, upper = -torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    real = torch.ones(1, 2, dtype=torch.bool)
    weights = best_weights(a, b, lower, upper, torch.ones(1, 2, dtype=F64), real)
    value, _ = combined(weights, a, b, lower, upper)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(value) == pytest.approx(0.1, abs=1e-6)


def test_mixing_is_never_worse_than_the_best_atom() -> None:
    """Atoms of very different size on a tiny box: one is positive, and that is enough."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, 6, 4, generator=generator, dtype=F64)
    b = torch.tensor([-1.4, -15.6, -29.6, 0.04, -0.97, -17.8], dtype=F64).expand(50, 6)
    lower = torch.zeros(50, 4, dtype=F64)
    upper = lower + 1e-8
    real = torch.ones(50, 6, dtype=torch.bool)
    spread = (a.abs() * 1e-8).sum(2)
    weights = best_weights(a, b, lower, upper, spread, real)
    value, _ = combined(weights, a, b, lower, upper)
    assert (value > 0).all()


def attained_of(activation: str, seed: int):
    """A network's bound after some steps on alphas, and where it is attained."""
    graph = dense_net(seed, (3, 8, 6, 2), activation, **({"slope": 0.1} if activation == "leaky_relu" else {}))
    of = plan(graph, ("x",))
    region = Box(-torch.ones(2, 3, dtype=F64), torch.tensor([[1.0, 0.5, 1.0], [0.2, 1.0, 0.3]], dtype=F64))
    ctx = Context(of, unperturbed(of, graph.values(F64)), {"x": region}, Memory())
    boxes = boxes_of(ctx, {}, (BY_WALK,))
    rows = Dense(torch.tensor([[[1.0, -0.7]]], dtype=F64).expand(2, 1, 2))
    keep = frozenset({"a0", "a1", "x"})
    found = optimise(ctx, boxes, graph.output.name, rows, {}, 4, Rates(settled=0.0), keep=keep)
    again = optimise(ctx, boxes, graph.output.name, rows, found.free, 0, Rates(), keep=keep)
    reached = {name: value.squeeze(1) for name, value in again.reached.items()}
    x = region.minimiser(Dense(reached["x"].unsqueeze(1))).squeeze(1)
    at = attained(ctx, boxes, again.free, reached, {"x": x})
    return graph, ctx, boxes, rows, again.lower.squeeze(1), reached, at


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_a_bound_is_the_relaxed_networks_output_where_it_is_attained(activation: str) -> None:
    for seed in range(4):
        graph, ctx, _, rows, lower, _, at = attained_of(activation, seed)
        output = at["a1"].value @ ctx.values["w2"].T + ctx.values["b2"]
        assert torch.allclose((rows.coefficients.squeeze(1) * output).sum(1), lower, atol=1e-9), (
            seed,
            graph.output.name,
        )


def test_scores_are_what_exact_children_gain_at_the_point() -> None:
    """relu: A (0 - y*) for the child that is off, A (z* - y*) for the one that is on, where those are gains."""
    for seed in range(4):
        _, ctx, boxes, _, _, reached, at = attained_of("relu", seed)
        for name in ("a0", "a1"):
            step = ctx.plan.steps[name]
            box: Interval = boxes[step.site.node.inputs[0]]
            score, where = neuron_scores(ctx, step, box, reached[name], at[name])
            a, z, y = reached[name], at[name].operand, at[name].value
            gains = (a * (0 - y)).clamp(min=0) + (a * (z - y)).clamp(min=0)
            used = torch.isfinite(score)
            assert bool((used <= ((box.lower < 0) & (box.upper > 0))).all()) and bool((where[used] == 0).all())
            assert torch.allclose(score[used], gains[used], atol=1e-4)
            assert not bool(used[a == 0].any())


def test_boxes_of_a_long_search_are_tighter_and_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 0)
    made: list[tuple[str, dict[str, Interval]]] = []
    put = RootBoxes.put

    def noting(self: RootBoxes, cases: Tensor, boxes: dict[str, Interval], method: str) -> None:
        made.append((method, boxes))
        put(self, cases, boxes, method)

    monkeypatch.setattr(RootBoxes, "put", noting)
    graph = dense_net(2, (2, 8, 6, 3))
    low, high = torch.tensor([-1.0, -0.5], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    rows = [[1.0, -1.0, 0.0], [0.3, 0.2, -1.0]]
    least = dense_minimum(graph, low, high, conjunction(rows, [0.0, 0.0])) - 0.05
    (found,) = verify(graph, [prop(low, high, conjunction(rows, [least, least]))], CONFIG)
    assert isinstance(found.verdict, Verified)
    assert [tree.root_bound for tree in found.verdict.trees] == ["alpha-crown, float64"]
    (first, crown), (second, alpha) = made
    assert (first, second) == ("crown, float64", "alpha-crown, float64")
    inner = replace(graph, outputs=tuple(alpha))
    values = evaluate(inner, inner.values(F64), low + (high - low) * torch.rand(2000, 2, dtype=F64))
    for name, box in alpha.items():
        assert bool((box.lower >= crown[name].lower).all()) and bool((box.upper <= crown[name].upper).all())
        assert bool((values[name] >= box.lower - 1e-12).all()) and bool((values[name] <= box.upper + 1e-12).all())
    assert any(bool((alpha[name].upper < crown[name].upper - 1e-6).any()) for name in alpha)


@pytest.mark.parametrize(("limits", "first"), [((0.0, 1e9), "alpha"), ((1e9, 1e9), "crown"), ((0.0, 0.0), "crown")])
def test_roots_that_miss_by_much_are_tightened_before_their_first_sub_problem(
    limits: tuple[float, float], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("FEW_DIMENSIONS", "FAR", "HOPELESS"), (0, *limits), strict=True):
        monkeypatch.setattr(f"surebound.search.stages.{name}", value)
    seen: list[str] = []
    bound = NeuronEngine.bound

    def noting(self: NeuronEngine, rows: NDArray[np.int64]) -> Bounded:
        seen.append(self.boxes.methods[0])
        return bound(self, rows)

    monkeypatch.setattr(NeuronEngine, "bound", noting)
    graph = dense_net(2, (2, 8, 6, 3))
    low, high = torch.tensor([-1.0, -0.5], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    least = dense_minimum(graph, low, high, conjunction([[1.0, -1.0, 0.0]], [0.0])) - 0.05
    unsafe = conjunction([[1.0, -1.0, 0.0]], [least])
    (found,) = verify(graph, [prop(low, high, unsafe)], replace(CONFIG, attack="none"))
    assert isinstance(found.verdict, Verified)
    assert seen[0].startswith(first)


@pytest.mark.parametrize("how", ["neurons", "collapsed"])
def test_sub_problems_climb_in_fewer_and_smaller_steps_than_roots(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    seen: set[tuple[bool, int, float]] = set()
    optimise_them = neurons.optimise

    def noting(*given: Any) -> Optimised:
        *_, steps, rates, splits, _, _, _, _ = given
        seen.add((splits.depth == 0, steps, rates.alpha))
        return optimise_them(*given)

    monkeypatch.setattr(neurons, "optimise", noting)
    graph = dense_net(2, (2, 8, 6, 3))
    low, high = torch.tensor([-1.0, -0.5], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    least = dense_minimum(graph, low, high, conjunction([[1.0, -1.0, 0.0]], [0.0])) - 0.05
    (found,) = verify(
        graph, [prop(low, high, conjunction([[1.0, -1.0, 0.0]], [least]))], replace(CONFIG, attack="none")
    )
    assert isinstance(found.verdict, Verified) and found.nodes > 2
    assert {some for some in seen if some[1]} == {(True, 6, 0.5), (False, 3, 0.125)}


def test_only_points_much_nearer_than_any_before_are_descended_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances 4, 3 | 3.8, 2.65 | 2.6, 2.3 of one root: the first two, the second of the next, the last."""
    started: list[int] = []

    def descending(run: Run, here: NDArray[np.int64], region: Region, starts: Tensor, descent: Descent) -> None:
        started.append(len(here))

    monkeypatch.setattr("surebound.search.attack.descend", descending)
    graph = dense_net(0, (1, 1))
    weight, bias = (float(graph.values(F64)[name].flatten()[0]) for name in ("w0", "b0"))
    at = [(distance - bias) / weight for distance in (4, 3, 3.8, 2.65, 2.6, 2.3)]
    box = (torch.tensor([min(at) - 1], dtype=F64), torch.tensor([max(at) + 1], dtype=F64))
    asked = prop(*box, conjunction([[1.0]], [0.0]))
    roots = roots_of([asked], graph.input.shape)
    ledger = Ledger(roots.prop.numpy(), 1, 60.0)
    of = problem(graph, roots, torch.float32, Memory())
    run = Run(of, [asked], GraphOriginal(graph), CONFIG, ledger, RootBoxes(1), np.full(1, np.inf))
    points = torch.tensor(at).reshape(3, 2, 1)
    found = np.stack([try_points(run, np.zeros(2, np.int64), pair) for pair in points])
    assert np.allclose(found, [[4, 3], [3.8, 2.65], [2.6, 2.3]], atol=1e-4)
    assert started == [2, 1, 1]


def test_how_far_a_root_is_counts_its_best_real_row() -> None:
    rows = torch.tensor([[2.0, 0.5], [0.1, 0.5], [0.4, 0.1]], dtype=F64)
    real = torch.tensor([[True, True], [True, True], [True, False]])
    box = Box(torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64))
    nothing = torch.zeros(3, dtype=torch.long)
    roots = Roots(box, nothing, nothing, nothing, nothing, torch.zeros(3, 2, 1), torch.zeros(3, 2), real)
    assert far(roots, rows).tolist() == [True, False, True]


def test_root_boxes_are_kept_by_case_and_rounded_outward() -> None:
    kept = RootBoxes(3)
    third = torch.tensor([[1 / 3], [2 / 3]], dtype=F64)
    kept.put(torch.tensor([2, 0]), {"a": Interval(third, third)}, "first")
    kept.put(torch.tensor([0]), {"a": Interval(third[:1], third[1:])}, "second")
    lower, upper = kept.take(torch.tensor([0, 2, 1, 0]), F64)["a"]
    assert lower.flatten().tolist() == [1 / 3, 1 / 3, -torch.inf, 1 / 3]
    assert upper.flatten().tolist() == [2 / 3, 1 / 3, torch.inf, 2 / 3]
    single = kept.take(torch.tensor([0]), torch.float32)["a"]
    assert single.lower.dtype == torch.float32 and float(single.lower) < 1 / 3 and float(single.upper) > 2 / 3
    assert kept.methods == ["second", "none", "first"]


def test_cases_of_a_property_that_has_ended_are_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surebound.search.root_bounds.AT_ONCE", 1)
    monkeypatch.setattr("surebound.search.root_bounds.TOGETHER", 1)
    bounded: list[int] = []
    boxes_of_all = boxes_of

    def counting(ctx: Context, known: dict[str, Interval], tighten: tuple[Tighten, ...]) -> dict[str, Interval]:
        bounded.append(ctx.groups)
        return boxes_of_all(ctx, known, tighten)

    monkeypatch.setattr("surebound.search.root_bounds.boxes_of", counting)
    graph = dense_net(2, (2, 8, 6, 3))
    low, high = torch.tensor([-1.0, -0.5], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    case = prop(low, high, conjunction([[1.0, -1.0, 0.0]], [0.0])).cases[0]
    (found,) = verify(graph, [Property((case,) * 20)], replace(CONFIG, attack="none", timeout=1e-9))
    assert isinstance(found.verdict, Unknown) and found.verdict.name == "timeout"
    assert sum(bounded) <= 2


def ready_to_tighten(graph: Graph, low: Tensor, high: Tensor) -> tuple[Problem, Context, dict[str, Interval]]:
    """A problem of several cases, and CROWN's boxes of them."""
    never = conjunction([[1.0] + [0.0] * (graph.output.numel - 1)], [0.0])
    roots = roots_of([prop(a, b, never) for a, b in zip(low, high, strict=True)], graph.input.shape)
    of = problem(graph, roots, F64, Memory())
    ctx = of.context(roots.region, F64)
    return of, ctx, boxes_of(ctx, {}, (BY_WALK,))


def both_ways(of: Problem, name: str) -> Rows:
    """Rows of every neuron of a node, from below, then from above."""
    size = of.graph[name].numel
    sign = torch.cat([torch.ones(size, dtype=F64), -torch.ones(size, dtype=F64)]).expand(of.roots.region.groups, -1)
    return Rows(torch.arange(size).repeat(2).expand_as(sign), sign, of.graph[name].shape)


def test_boxes_are_exact_where_single_precision_is_not() -> None:
    """Values near 2e6 cancel: what is left is found in float64, though multipliers come from float32."""
    graph = dense_net(0, (1, 2, 1, 1))
    tensors = graph.parameters()
    tensors["w0"][:], tensors["b0"][:] = torch.tensor([[1000003.0], [999983.0]]), torch.tensor([2e6 + 0.3, 2e6 + 0.7])
    tensors["w1"][:] = torch.tensor([[1.0, -0.999981]], dtype=F64)
    tensors["b1"][:] = -float((tensors["w1"] @ tensors["b0"]).sum())
    slope = float(tensors["w1"] @ tensors["w0"])
    of, ctx, boxes = ready_to_tighten(graph, torch.tensor([[-1.0], [-0.5]], dtype=F64), torch.ones(2, 1, dtype=F64))
    with torch.no_grad():
        found = raised_in_single(of, ctx, boxes, "h1", both_ways(of, "h1"))
    ends = torch.tensor([[-abs(slope), -abs(slope)], [min(-0.5 * slope, slope), -max(-0.5 * slope, slope)]], dtype=F64)
    torch.testing.assert_close(found, ends, rtol=0, atol=1e-8)


def test_boxes_are_those_of_double_precision_also_of_columns_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = dense_net(4, (3, 12, 10, 8, 1))
    low = torch.tensor([[-1.0, -0.5, 0.0], [-0.2, 0.1, -0.6]], dtype=F64)
    of, ctx, boxes = ready_to_tighten(graph, low, low + 0.6)
    rows = both_ways(of, "h2")
    with torch.no_grad():
        plain = walked_lower(ctx, boxes, "h2", rows)
        double = AlphaCrown(STEPS).tighten(ctx, boxes, "h2", rows)
        whole = raised_in_single(of, ctx, boxes, "h2", rows)
        monkeypatch.setattr(crown, "MANY", 1)
        monkeypatch.setattr(crown, "FEW", 1.0)
        assert crown.live_of(ctx, boxes, "h2", rows)
        part = raised_in_single(of, ctx, boxes, "h2", rows)
    assert bool((double >= plain).all()) and bool((double > plain + 1e-3).any())
    torch.testing.assert_close(whole, double, rtol=0, atol=1e-5)
    torch.testing.assert_close(part, double, rtol=0, atol=1e-5)


def test_a_descent_goes_on_where_there_is_hope() -> None:
    """Three properties: one of two roots, clearly violated; one that may be violated; one with a root far away."""
    going = hopeful(torch.tensor([0, 0, 1, 2, 2]), 20, time.monotonic() + 60)
    start = torch.tensor([4.0, 4.0, 4.0, 4.0, 4.0])
    assert going(0, start).tolist() == [True] * 5
    near = torch.tensor([3.0, -1.0, -1e-6, 3.0, 1.9])
    assert going(1, near).tolist() == [False, False, False, True, True]
    assert going(20 // PATIENCE, near).tolist() == [False, False, False, False, True]
    short = hopeful(torch.tensor([0, 1]), 2, time.monotonic() + 60)
    assert short(0, start[:2]).tolist() == [True, True], "nothing is hopeless before the first step"
    late = hopeful(torch.tensor([0, 1]), 20, time.monotonic() - 1)
    assert late(0, start[:2]).tolist() == [False, False]


def test_a_descent_computes_only_what_goes_on() -> None:
    """Regions that are left early keep the best point they had; the others go on as if they were alone."""
    box = Box(torch.tensor([[-1.0, -1.0], [0.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 1.0]]))
    rows: list[int] = []

    def network(x: Tensor) -> Tensor:
        rows.append(len(x))
        return ((x - torch.tensor([0.52, 1.02])) ** 2).sum(1, keepdim=True)  # the second start is hard to improve

    def distance(outputs: Tensor, at: Tensor) -> Tensor:
        return outputs.squeeze(-1) + torch.tensor([10.0, 20.0, 30.0])[at].unsqueeze(1)

    def go(box: Box, which: Tensor, ends: dict[int, int]) -> tuple[Tensor, Tensor]:
        starts = ((box.lower + box.upper) / 2).unsqueeze(1)
        last = torch.tensor([ends.get(int(k), 99) for k in which])
        return pgd(
            network,
            box,
            lambda y, at: distance(y, which[at]),
            lambda y, at: distance(y, which[at]),
            starts,
            Descent(steps=6),
            lambda step, _: step < last,
        )

    points, best = go(box, torch.arange(3), {1: 2})
    assert rows == [3, 3, 3, 2, 2, 2, 2]
    assert torch.equal(distance(network(points.flatten(0, 1)).reshape(3, 1, 1), torch.arange(3)), best)
    for k in (0, 2):
        alone = Box(box.lower[[k]], box.upper[[k]])
        x, value = go(alone, torch.tensor([k]), {})
        assert torch.equal(points[[k]], x) and torch.equal(best[[k]], value)
    x, value = pgd(
        network,
        Box(box.lower[[1]], box.upper[[1]]),
        lambda y, at: distance(y, at + 1),
        lambda y, at: distance(y, at + 1),
        ((box.lower + box.upper) / 2)[[1]].unsqueeze(1),
        Descent(steps=6),
        lambda step, _: torch.tensor([step < 2]),
    )
    assert torch.equal(points[[1]], x) and torch.equal(best[[1]], value)


def test_a_network_that_was_evaluated_in_inference_mode_can_still_be_searched() -> None:
    tensors = {"w": torch.tensor([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.25]], dtype=F64)}
    nodes = (
        Node("x", "input", shape=(2,)),
        Node("w", "parameter", shape=(3, 2), batched=False),
        Node("h", "linear", ("x", "w"), {}, (3,)),
        Node("a", "relu", ("h",), {}, (3,)),
        Node("y", "gather", ("a",), {"axis": 0, "indices": (2, 0)}, (2,)),
    )
    graph = Graph(nodes, ("x",), ("y",), OPS, FixedParameters(tensors))
    ends = torch.full((2,), -1.0, dtype=F64), torch.ones(2, dtype=F64)
    with torch.inference_mode():
        outputs(graph, torch.zeros(1, 2, dtype=F64))
    (found,) = verify(graph, [prop(*ends, conjunction([[1.0, 1.0]], [-0.1]))], CONFIG)
    assert isinstance(found.verdict, Verified)
    (found,) = verify(graph, [prop(*ends, conjunction([[1.0, 1.0]], [1e-3]))], CONFIG)
    assert isinstance(found.verdict, Falsified)
