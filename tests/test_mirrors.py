"""Neurons that are each other's copies or mirror images: merged, and nothing else about the network changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.graph.ir import FixedParameters, Graph, Node, evaluate
from surebound.ops import OPS
from surebound.proofs.replay import replay
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.mirrors import merge_mirrors, twins
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Verified
from surebound.search.verify import verify

F64 = torch.float64


def layers(weights: Sequence[Tensor], biases: Sequence[Tensor | None], outputs: tuple[str, ...] = ()) -> Graph:
    """Linear layers h0, h1, .. with relus r0, r1, .. between them, in float32."""
    tensors, nodes, x = {}, [Node("x", "input", shape=(weights[0].shape[1],))], "x"
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        own = {f"w{i}": weight.float()} | ({} if bias is None else {f"b{i}": bias.float()})
        tensors |= own
        nodes += [Node(name, "parameter", shape=tuple(tensor.shape), batched=False) for name, tensor in own.items()]
        nodes.append(Node(f"h{i}", "linear", (x, *own), {}, (len(weight),)))
        x = f"h{i}"
        if i < len(weights) - 1:
            nodes.append(Node(f"r{i}", "relu", (x,), {}, (len(weight),)))
            x = f"r{i}"
    return Graph(tuple(nodes), ("x",), outputs or (x,), OPS, FixedParameters(tensors))


def minimum_of(count: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """The least of `count` (a power of two) affine functions of two inputs, with four relus for the least of two."""
    generator = torch.Generator().manual_seed(count)
    weights = [torch.randn(count, 2, generator=generator)]
    biases: list[Tensor | None] = [torch.randn(count, generator=generator)]
    while count > 1:
        pairs = torch.eye(count).reshape(count // 2, 2, count)
        x, y = pairs[:, 0], pairs[:, 1]
        four = torch.stack([x + y, -x - y, x - y, y - x], 1).reshape(2 * count, count)
        last, shift = weights.pop(), biases.pop()
        weights.append(four.double() @ last.double())
        biases.append(None if shift is None else four.double() @ shift.double())
        out = torch.kron(torch.eye(count // 2), torch.tensor([[0.5, -0.5, -0.5, -0.5]]))
        weights.append(out)
        biases.append(None)
        count //= 2
    return weights, biases


def values(graph: Graph, x: Tensor, *names: str) -> list[Tensor]:
    found = evaluate(graph, graph.values(F64), x, names)
    return [found[name] for name in names]


def random_net(seed: int, copies: bool) -> Graph:
    """A network in whose hidden layers some neurons are copies or mirror images of others."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(rows, columns, generator=generator)
        bias = torch.randn(rows, generator=generator)
        if copies:
            of = torch.randint(rows, (rows,), generator=generator)
            sign = torch.randint(2, (rows,), generator=generator) * 2 - 1.0
            weight, bias = weight[of] * sign.unsqueeze(1), bias[of] * sign
            weight[0], bias[0] = 0.0, 0.0
        return weight, bias

    parts = [matrix(9, 3), matrix(8, 9), (torch.randn(2, 8, generator=generator), torch.randn(2, generator=generator))]
    return layers([part[0] for part in parts], [part[1] for part in parts])


@pytest.mark.parametrize("seed", range(6))
def test_outputs_and_kept_neurons_are_the_same(seed: int) -> None:
    graph = random_net(seed, True)
    merged = merge_mirrors(graph)
    x = torch.randn(500, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    (wanted,), (found,) = values(graph, x, "h2"), values(merged, x, "h2")
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)
    gone = 0
    for name in ("h0", "h1"):
        before, after = values(graph, x, name)[0], values(merged, x, name)[0]
        dropped = (after == 0).all(0)
        gone += int((dropped & (before != 0).any(0)).sum())
        assert torch.allclose(before[:, ~dropped], after[:, ~dropped], rtol=0, atol=1e-13)
    assert gone >= 4


def test_minima_keep_one_neuron_in_four() -> None:
    """min(x, y) = x - relu(x - y), with bounds that are at least as tight."""
    graph = layers(*minimum_of(8))
    merged = merge_mirrors(graph)
    x = torch.randn(300, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    box = Box(torch.full((1, 2), -1.0, dtype=F64), torch.full((1, 2), 1.0, dtype=F64))
    spec = torch.tensor([[[1.0], [-1.0]]], dtype=F64)
    bounds = []
    for each in (graph, merged):
        query = Query(each, each.values(F64), {"x": box}, spec)
        bounds.append(Crown().bound(query).lower)
    assert torch.allclose(*(values(each, x, each.output.name)[0] for each in (graph, merged)), rtol=0, atol=1e-6)
    assert (bounds[1] >= bounds[0] - 1e-9).all() and (bounds[1] > bounds[0] + 0.1).any()
    for node in merged:
        if node.op == "relu":
            (operand,) = values(merged, x, node.inputs[0])
            assert int((operand != 0).any(0).sum()) == node.numel // 4


def test_networks_without_twins_stay_as_they_are() -> None:
    graph = random_net(0, False)
    assert merge_mirrors(graph).nodes == graph.nodes


def test_sums_that_are_not_exact_are_not_made() -> None:
    """Weights 1e30 and 1 of two copies: their sum is no number of float64."""
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]])
    graph = layers([rows, torch.tensor([[1e30, 1.0, 1.0]])], [None, None])
    assert merge_mirrors(graph).nodes == graph.nodes
    graph = layers([rows, torch.tensor([[float("inf"), 1.0, 1.0]])], [None, None])
    assert merge_mirrors(graph).nodes == graph.nodes


@pytest.mark.parametrize("watched", ["h0", "r0"])
def test_neurons_that_are_seen_elsewhere_stay(watched: str) -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    graph = layers([rows, torch.ones(1, 2)], [None, None])
    assert merge_mirrors(graph).nodes != graph.nodes
    seen = layers([rows, torch.ones(1, 2)], [None, None], ("h1", watched))
    assert merge_mirrors(seen).nodes == seen.nodes
    doubled = Node("sum", "add", (watched, watched), {}, (2,))
    besides = Graph((*graph.nodes, doubled), ("x",), ("h1", "sum"), OPS, graph.parameters)
    assert merge_mirrors(besides).nodes == besides.nodes


def test_two_readers_of_one_layer() -> None:
    """Both read what is left, and past it."""
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.5, 1.0], [1.0, 2.0]])
    graph = layers(
        [rows, torch.tensor([[1.0, -1.0, 2.0, 0.5], [0.0, 3.0, 1.0, 1.0]])], [torch.tensor([1.0, -1, 2, 1]), None]
    )
    own = {"w9": torch.tensor([[2.0, 1.0, -1.0, 1.0]])}
    more = (Node("w9", "parameter", shape=(1, 4), batched=False), Node("h9", "linear", ("r0", "w9"), {}, (1,)))
    parameters = FixedParameters({**graph.parameters(), **own})
    both = Graph((*graph.nodes, *more), ("x",), ("h1", "h9"), OPS, parameters)
    merged = merge_mirrors(both)
    assert merged.nodes != both.nodes
    x = torch.randn(200, 2, dtype=F64)
    for found, wanted in zip(values(merged, x, "h1", "h9"), values(both, x, "h1", "h9"), strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-13)


def test_signs_and_places_of_twins() -> None:
    weight = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [-0.0, 0.0]])
    bias = torch.tensor([1.0, -1.0, 0.0, 1.0, -1.0, 0.0, -0.0])
    found = twins(weight, bias)
    assert found is not None
    assert found.first.tolist() == [0, 0, 2, 0, 4, 5, 5]
    assert found.sign.tolist() == [1, -1, 1, 1, 1, 1, 1]
    assert found.rank.tolist() == [0, 1, 0, 2, 0, 0, 1]


@pytest.mark.parametrize("few", [0, 10])
def test_verdicts_and_proofs_on_merged_networks(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits just below and above the least of eight functions on a grid, by input and by neuron splits."""
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", few)
    graph = layers(*minimum_of(8))
    box = Box(torch.full((1, 2), -1.0, dtype=F64), torch.full((1, 2), 1.0, dtype=F64))
    axis = torch.linspace(-1, 1, 201, dtype=F64)
    least = float(values(graph, torch.cartesian_prod(axis, axis), graph.output.name)[0].min())
    row = torch.ones(1, 1, dtype=F64)
    for gap in (0.01, -0.01):
        prop = Property((Case(box, (Disjunct(row, torch.tensor([least - gap], dtype=F64), ("",)),), None),))
        (outcome,) = verify(graph, [prop], VerifyConfig(timeout=30.0))
        assert isinstance(outcome.verdict, Verified if gap > 0 else Falsified)
        if isinstance(outcome.verdict, Verified):
            assert replay(graph, prop, outcome.verdict.trees).holds
