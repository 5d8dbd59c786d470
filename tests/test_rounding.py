"""What rounding explains: cancellation gets room, small outputs do not, and shapes and infinities are compared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from surebound.graph.check import check
from surebound.graph.ir import FixedParameters, Graph, Node, evaluate
from surebound.graph.rounding import Scatter, scattered, worst
from surebound.ops import OPS

RELATIVE = 1e-5


def product(weights: Tensor) -> Graph:
    """y = W x."""
    nodes = (
        Node("x", "input", shape=weights.shape[1:]),
        Node("w", "parameter", shape=tuple(weights.shape), batched=False),
        Node("y", "linear", ("x", "w"), {}, tuple(weights.shape[:1])),
    )
    return check(Graph(nodes, ("x",), ("y",), OPS, FixedParameters({"w": weights})))


def float32(graph: Graph, x: Tensor, order: Tensor) -> Tensor:
    """The product in float32 with its terms added up one by one in another order."""
    w = graph.parameters()["w"].float()
    total = torch.zeros(len(x), len(w))
    for index in order.tolist():
        total = total + x[:, index, None].float() * w[:, index]
    return total


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("size", [2, 30, 400])
def test_cancellation_is_explained_and_a_lost_term_is_not(size: int, scale: float):
    """Half of the entries cancel to 1e-6 of their terms."""
    graph = product(scale * torch.randn(6, 2 * size))
    w = graph.parameters()["w"]
    w[:3, size:] = -w[:3, :size] * (1 + 1e-6 * torch.randn(3, size))
    x = torch.randn(5, size).repeat(1, 2)
    found = scattered(graph, {"x": x}, ["y"])["y"]
    theirs = float32(graph, x, torch.randperm(2 * size))
    assert not worst(found.exact, theirs, found.allowed(theirs, RELATIVE))
    theirs = float32(graph, x, torch.arange(1, 2 * size))
    gap = worst(found.exact, theirs, found.allowed(theirs, RELATIVE))
    assert gap and gap.difference > 100 * gap.allowed


def test_a_small_entry_beside_a_large_one_gets_no_room():
    graph = product(torch.tensor([[1e6, -1e6], [1e-6, 2e-6]]))
    x = torch.tensor([[1.0, 1.001]])
    found = scattered(graph, {"x": x}, ["y"])["y"]
    theirs = found.exact.float()
    assert not worst(found.exact, theirs, found.allowed(theirs, RELATIVE))
    theirs[0, 1] *= 1.001
    gap = worst(found.exact, theirs, found.allowed(theirs, RELATIVE))
    assert gap and gap.difference < 1e-8


def test_double_precision_is_compared_in_double_precision():
    graph = product(torch.randn(3, 50, dtype=torch.float64))
    x = torch.randn(4, 50, dtype=torch.float64)
    found = scattered(graph, {"x": x}, ["y"])["y"]
    theirs = evaluate(graph, graph.values(torch.float64), x)["y"]
    assert not worst(found.exact, theirs, found.allowed(theirs, 1e-12))
    assert worst(found.exact, theirs * (1 + 1e-9), found.allowed(theirs, 1e-12))


def test_given_values_are_what_later_nodes_read():
    nodes = (
        Node("x", "input", shape=(2,)),
        Node("a", "neg", ("x",), {}, (2,)),
        Node("y", "neg", ("a",), {}, (2,)),
    )
    graph = check(Graph(nodes, ("x",), ("y",), OPS, FixedParameters({})))
    x, a = torch.ones(1, 2), torch.full((1, 2), 5.0)
    found = scattered(graph, {"x": x}, ["a", "y"], {"a": a})
    assert found["a"].exact.tolist() == [[-1.0, -1.0]]
    assert found["y"].exact.tolist() == [[-5.0, -5.0]]
    assert scattered(graph, {"x": x}, ["y"], {"a": a[:, :1]})["y"].exact.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("ours", "theirs", "differs"),
    [
        ([1.0, math.inf], [1.0, math.inf], False),
        ([1.0, math.nan], [1.0, math.nan], False),
        ([1.0, math.inf], [1.0, -math.inf], True),
        ([1.0, 2.0], [1.0, math.inf], True),
        ([1.0, math.nan], [1.0, 2.0], True),
        ([1.0, math.inf], [1.0, 2.0], True),
        ([], [], False),
    ],
)
def test_infinities(ours: list[float], theirs: list[float], differs: bool):
    a, b = torch.tensor([ours]).double(), torch.tensor([theirs])
    assert bool(worst(a, b, Scatter(a, torch.zeros_like(a)).allowed(b, RELATIVE))) == differs


def test_what_overflows_in_float32_may_be_infinite_there():
    graph = product(torch.full((1, 2), 1e30))
    found = scattered(graph, {"x": torch.full((1, 2), 1e10)}, ["y"])["y"]
    for kind, explained in ((torch.float32, True), (torch.float64, False)):
        theirs = torch.full((1, 1), math.inf, dtype=kind)
        assert bool(worst(found.exact, theirs, found.allowed(theirs, RELATIVE))) != explained


def test_other_shapes_differ():
    a = torch.zeros(2, 3)
    assert worst(a, torch.zeros(2, 1, 3), a).difference == math.inf
