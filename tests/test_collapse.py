"""The collapsed instance: the same network inside its region, the same bounds, the same verdicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import NETS, region, spec_of, tiny
from numpy.typing import NDArray

from surebound.bounds.crown import BY_WALK, boxes_of, walked_lower
from surebound.bounds.memory import Memory
from surebound.bounds.query import nothing
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.linear.maps import Dense
from surebound.ops.record import Interval
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.collapse import best_kept, can_collapse, collapse, first_steps, kept
from surebound.search.collapsed import CollapsedEngine
from surebound.search.engine import Bounded
from surebound.search.inputs import InputEngine, Left
from surebound.search.problem import Problem, problem
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import roots_of
from surebound.search.run import VerifyConfig
from surebound.search.tree import Forest
from surebound.search.verdict import Verified
from surebound.search.verify import verify

F64 = torch.float64
COLLAPSIBLE = [name for name, build in NETS.items() if name != "affine"]


def problem_of(name: str, kind: str, seed: int, size: float) -> tuple[Problem, dict[str, Interval]]:
    """A network over two cases, and CROWN's boxes of them."""
    graph = prepare(NETS[name](seed))
    regions = region(kind, graph.input.shape, 2, seed, size)
    rows = spec_of(graph, 2, 1, seed)[0].flatten(1)
    free = Disjunct(rows, torch.zeros(len(rows), dtype=F64), ("",) * len(rows))
    cases = tuple(Case(regions.take(torch.tensor([case])), (free,), None) for case in range(2))
    of = problem(graph, roots_of([Property(cases)], graph.input.shape), F64, Memory())
    with torch.no_grad():
        boxes = boxes_of(of.context(of.roots.region, F64), {}, (BY_WALK,))
    return of, {node: boxes[node] for node in of.plan.operands}


@pytest.mark.parametrize("size", [0.05, 0.5])
@pytest.mark.parametrize("kind", ["box", "l2"])
@pytest.mark.parametrize("name", COLLAPSIBLE)
def test_network_and_bounds_are_the_same(name: str, kind: str, size: float) -> None:
    """Outputs at points of the case, and CROWN bounds from the same boxes, whichever neurons are left besides."""
    of, boxes = problem_of(name, kind, 1, size)
    if not can_collapse(of.plan):
        pytest.skip("a value of this network is read by two relaxed steps")
    x = of.roots.region.sample(200, torch.Generator().manual_seed(0))
    for case in range(2):
        own = {node: Interval(box.lower[case : case + 1], box.upper[case : case + 1]) for node, box in boxes.items()}
        at = torch.tensor([case])
        ctx = of.context(of.roots.region.take(at), F64)
        first = of.plan.relaxed[0].site.node
        also = {first.inputs[0]: torch.tensor([0, first.numel - 1])}
        for choice in (
            kept(ctx, own, {}, frozenset()),
            kept(ctx, own, also, frozenset()),
            kept(ctx, own, {}, first_steps(of.plan)),
        ):
            found = collapse(of, case, own, choice)
            small = found.problem
            assert torch.allclose(small.network(x[case]), of.network(x[case]), atol=1e-9)
            spec = of.spec(at, F64)
            with torch.no_grad():
                whole = walked_lower(ctx, own, of.output, Dense(spec))
                rows = Dense(small.spec(at, F64))
                less = walked_lower(small.context(small.roots.region, F64), found.boxes, small.output, rows)
            assert torch.allclose(less, whole, atol=1e-9)


@pytest.mark.parametrize("name", COLLAPSIBLE)
def test_only_what_is_unstable_or_asked_for_is_left(name: str) -> None:
    of, boxes = problem_of(name, "box", 1, 0.05)
    own = {node: Interval(box.lower[:1], box.upper[:1]) for node, box in boxes.items()}
    ctx = of.context(of.roots.region.take(torch.tensor([0])), F64)
    left = kept(ctx, own, {}, frozenset())
    asked = kept(ctx, own, {name: torch.tensor([0]) for name in own}, frozenset())
    assert all(0 in index.tolist() for index in asked.values()) and len(asked) == len(of.plan.relaxed)
    for step in of.plan.relaxed:
        box = own[step.site.node.inputs[0]]
        unstable = step.relaxation.loose(
            step.site,
            [None if moves else ctx.values[o] for o, moves in zip(step.site.node.inputs, step.perturbed, strict=True)],
            box.lower.unsqueeze(1),
            box.upper.unsqueeze(1),
        )
        assert left.get(step.site.node.name, torch.empty(0)).tolist() == unstable.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", ["mlp", "residual", "leaky"])
def test_input_splits_go_on_with_the_network_of_their_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same outputs inside of the case."""
    monkeypatch.setattr("surebound.search.collapse.CHEAPER", 1e9)
    of, boxes = problem_of(name, "box", 1, 0.5)
    root_boxes = RootBoxes(2)
    root_boxes.put(torch.arange(2), boxes, "crown, float64")
    engine = InputEngine(of, Forest([*of.plan.operands, of.input]), Left(of.graph.input.numel))
    for case in range(2):
        smaller = engine.collapsed(case, root_boxes, nothing)
        assert smaller is not None and smaller.left is engine.left and smaller.problem.neurons < of.neurons
        x = of.roots.region.take(torch.tensor([case])).sample(200, torch.Generator().manual_seed(0))[0]
        assert torch.allclose(smaller.problem.network(x), of.network(x), rtol=1e-9, atol=1e-9)


def test_what_would_cost_more_is_not_collapsed() -> None:
    """A small network all of whose neurons are unstable."""
    of, boxes = problem_of("mlp", "box", 1, 50.0)
    own = {node: Interval(box.lower[:1], box.upper[:1]) for node, box in boxes.items()}
    left = kept(of.context(of.roots.region.take(torch.tensor([0])), F64), own, {}, frozenset())
    assert sum(map(len, left.values())) > 0.8 * of.neurons
    assert best_kept(of, 0, own, {}) is None


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_makes_the_same_tree(seed: int, skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that goes over to the collapsed instance after its first batch, against one that does not."""
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 0)
    monkeypatch.setattr("surebound.search.stages.CLIPPED", 0)
    monkeypatch.setattr("surebound.search.collapse.CHEAPER", 1e9)
    batches: list[int] = []
    bound = CollapsedEngine.bound

    def noting(self: CollapsedEngine, rows: NDArray[np.int64]) -> Bounded:
        batches.append(len(rows))
        return bound(self, rows)

    monkeypatch.setattr(CollapsedEngine, "bound", noting)
    graph = tiny(seed, (2, 16, 16, 1), skip)
    box = Box(torch.full((1, 2), -4.0, dtype=F64), torch.full((1, 2), 4.0, dtype=F64))
    axis = torch.linspace(-4, 4, 400, dtype=F64)
    least = problem_over(graph, box, 0.0).network(torch.cartesian_prod(axis, axis)).min() - 0.01
    found = []
    for medium in (1 << 40, 1):
        monkeypatch.setattr("surebound.search.stages.MEDIUM", medium)
        (outcome,) = verify(graph, [above(box, float(least))], VerifyConfig(timeout=30.0, dtype=F64, attack="none"))
        assert isinstance(outcome.verdict, Verified)
        (tree,) = outcome.verdict.trees
        found.append((tree.parent.tolist(), tree.node.tolist(), tree.index.tolist(), tree.sign.tolist()))
        assert (sum(batches) > 2) == (medium == 1)
    assert found[0] == found[1]


def above(box: Box, limit: float) -> Property:
    """The network's one output stays above a limit."""
    unsafe = Disjunct(torch.ones(1, 1, dtype=F64), torch.tensor([limit], dtype=F64), ("",))
    return Property((Case(box, (unsafe,), None),))


def problem_over(graph: Graph, box: Box, limit: float) -> Problem:
    """What a search of `above` works on."""
    prepared = prepare(graph)
    return problem(prepared, roots_of([above(box, limit)], graph.input.shape), F64, Memory())
