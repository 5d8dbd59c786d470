"""Networks with products of two moving values, quotients, softmax and curved functions, through everything."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nets import Builder
from torch import Tensor, nn

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.plan import Plan, plan
from surebound.bounds.query import Query
from surebound.errors import UnsupportedOp
from surebound.graph.ir import Graph, evaluate
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.proofs.replay import replay
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.collapse import can_collapse
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Verified
from surebound.search.verify import verify

F64 = torch.float64


class Net(nn.Module):
    """Two linear layers around a function."""

    def __init__(self, wide: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, wide), nn.Linear(wide, 2)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


class Attention(Net):
    """Three tokens of four numbers, two heads."""

    def __init__(self) -> None:
        super().__init__(12)
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def heads(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 3, 2, 2).transpose(1, 2)

    def middle(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4)
        q, k, v = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(2, 3) / 2**0.5, -1) @ v
        return mixed.transpose(1, 2).reshape(-1, 12)


class Fused(Attention):
    """The same by torch's own function."""

    def middle(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 3, 4)
        q, k, v = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 12)


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        nn.init.uniform_(self.norm.weight)
        nn.init.uniform_(self.norm.bias)

    def middle(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Cell(nn.Module):
    """Two steps of an LSTM cell over the input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTMCell(1, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, :1])
        return self.last(self.cell(x[:, 1:], state)[0])


def net(function) -> type[Net]:
    return type("Function", (Net,), {"middle": lambda self, x: function(x)})


NETWORKS = {
    "attention": Attention,
    "fused attention": Fused,
    "layer norm": Normed,
    "lstm cell": Cell,
    "product": net(lambda x: x[:, [1, 2, 3, 4, 5, 0]] * x),
    "product, broadcast": net(lambda x: (x[:, :2, None] * x[:, None, 2:5]).reshape(-1, 6)),
    "square": net(lambda x: x * x),
    "cube": net(lambda x: x**3),
    "quotient": net(lambda x: x / (1 + torch.exp(x[:, [1, 2, 3, 4, 5, 0]]))),
    "one over": net(lambda x: 1 / (1 + x**2)),
    "softmax": net(lambda x: torch.softmax(x, 1)),
    "log-sum-exp": net(lambda x: torch.log(torch.exp(x).sum(1, keepdim=True)) - x),
    "root": net(lambda x: torch.sqrt(x**2 + 0.1)),
    "reciprocal root": net(lambda x: x * torch.rsqrt(x**2 + 0.1)),
    "gelu": net(F.gelu),
    "gelu by tanh": net(lambda x: F.gelu(x, approximate="tanh")),
    "silu": net(F.silu),
    "erf": net(torch.erf),
    "sine and cosine": net(lambda x: torch.cat([torch.sin(2 * x[:, :3]), torch.cos(3 * x[:, 3:])], 1)),
    "softplus": net(F.softplus),
    "elu": net(F.elu),
    "largest": net(lambda x: x - x.amax(1, keepdim=True) + x.reshape(-1, 2, 3).amin((1, 2))[:, None]),
    "transposed convolution": net(
        lambda x: (
            F.conv_transpose2d(x.reshape(-1, 1, 2, 3), torch.ones(1, 1, 2, 2).double(), stride=2, padding=1)
            .relu()
            .flatten(1)[:, :6]
        )
    ),
    "upsampled": net(lambda x: F.interpolate(x.reshape(-1, 1, 2, 3), scale_factor=2).relu().flatten(1)[:, 6:12]),
}
each = pytest.mark.parametrize("name", NETWORKS)


@cache
def module_of(name: str) -> nn.Module:
    """Made once, like its graph: to trace takes longer than what is tested."""
    torch.manual_seed(3)
    return NETWORKS[name]().double().eval()


@cache
def traced(name: str) -> Graph:
    return trace(module_of(name), torch.zeros(1, 2, dtype=F64))


def least(graph: Graph, row: Tensor, low: Tensor, high: Tensor) -> float:
    axis = torch.linspace(0, 1, 201, dtype=F64)
    points = low + torch.cartesian_prod(axis, axis) * (high - low)
    with torch.no_grad():
        return float((evaluate(graph, graph.values(F64), points)[graph.output.name] @ row).min())


@each
def test_the_form_that_is_bounded_computes_the_same(name: str, tmp_path: Path) -> None:
    module, graph = module_of(name), traced(name)
    x = torch.randn(5, 2, dtype=F64)
    for form in (graph, prepare(graph)):
        found = evaluate(form, form.values(F64), x)[form.output.name]
        torch.testing.assert_close(found, module(x), rtol=0, atol=1e-12)
        form.to_onnx(str(tmp_path / "net.onnx"))
        again = load_onnx(tmp_path / "net.onnx")
        found = evaluate(again, again.values(F64), x.reshape(5, *again.input.shape))[again.output.name]
        torch.testing.assert_close(found.reshape(5, 2), module(x), rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.3, 2.0])
def test_bounds_contain_the_samples_and_get_tighter(name: str, radius: float) -> None:
    graph = prepare(traced(name))
    centre = torch.tensor([[0.4, -0.3]], dtype=F64)
    low, high = centre - radius, centre + radius
    rows = torch.cat([torch.eye(2), -torch.eye(2)]).to(F64)
    query = Query(graph, graph.values(F64), {graph.input.name: Box(low, high)}, rows[None])
    true = torch.tensor([least(graph, row, low, high) for row in rows], dtype=F64)
    ibp, crown, alpha = (method.bound(query).lower[0] for method in (Ibp(), Crown(), AlphaCrown(10)))
    for found in (ibp, crown, alpha):
        assert bool((found <= true + 1e-9).all()), (found, true)
    assert bool((alpha >= crown - 1e-9).all())
    assert bool(torch.isfinite(crown).all())
    if radius == 0:
        torch.testing.assert_close(crown, true, rtol=0, atol=1e-9)
    if radius == 1e-3:
        torch.testing.assert_close(crown, true, rtol=0, atol=1e-4)


@each
@pytest.mark.parametrize("how", ["inputs", "neurons"])
def test_verdicts_are_right_and_proofs_replay(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surebound.search.stages.FEW_DIMENSIONS", 10 if how == "inputs" else 0)
    graph = traced(name)
    low, high = torch.tensor([0.1, -0.3], dtype=F64), torch.tensor([0.5, 0.1], dtype=F64)
    row = torch.tensor([1.0, -1.0], dtype=F64)
    at = least(graph, row, low, high)
    for limit in (at - 0.1, at + 0.01):
        prop = Property(
            (Case(Box(low[None], high[None]), (Disjunct(row[None], torch.tensor([limit], dtype=F64), ("r",)),)),)
        )
        attack = "none" if limit < at else "pgd"
        (outcome,) = verify(graph, [prop], VerifyConfig(timeout=30, attack=attack))
        if isinstance(outcome.verdict, Verified):
            assert limit < at
            assert replay(graph, prop, outcome.verdict.trees).holds
        if isinstance(outcome.verdict, Falsified):
            assert limit > at
        assert isinstance(outcome.verdict, Verified | Falsified), outcome.verdict.reason


def test_the_factors_of_a_product_are_read_by_nothing_else() -> None:
    b = Builder(0)
    pair = b.op("reshape", b.linear(b.input(2), 6), shape=(2, 3))
    graph = b.graph(b.flat(b.op("factors", pair)))
    query = Query(
        graph,
        graph.values(F64),
        {graph.input.name: Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())},
        torch.eye(6).double()[None],
    )
    with pytest.raises(UnsupportedOp, match="op 'factors'.*only a product may read it"):
        Crown().bound(query)


@pytest.mark.parametrize("name", ["attention", "product, broadcast"])
def test_values_that_are_repeated_are_bounded_where_they_come_from(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = prepare(traced(name))
    box = Box(torch.full((1, 2), -0.4, dtype=F64), torch.full((1, 2), 0.6, dtype=F64))
    query = Query(graph, graph.values(F64), {graph.input.name: box}, torch.eye(2, dtype=F64)[None])
    of = plan(graph, (graph.input.name,))
    assert sum(graph[name].numel for name in of.bounded) < sum(graph[name].numel for name in of.operands)
    found = Crown().bound(query).lower
    monkeypatch.setattr(Plan, "bounded", property(lambda of: frozenset(of.operands)))
    torch.testing.assert_close(found, Crown().bound(query).lower, rtol=0, atol=1e-12)


def test_the_differences_of_many_values_are_bounded_by_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(Net):
        def middle(self, x: Tensor) -> Tensor:
            return torch.softmax(x, 1)

    torch.manual_seed(0)
    graph = prepare(trace(Wide(12).double().eval(), torch.zeros(1, 2, dtype=F64)))
    box = Box(torch.full((1, 2), -0.4, dtype=F64), torch.full((1, 2), 0.6, dtype=F64))
    query = Query(graph, graph.values(F64), {graph.input.name: box}, torch.eye(2, dtype=F64)[None])
    tight = Crown().bound(query).lower
    monkeypatch.setattr("surebound.bounds.plan.MANY", 100)
    graph.derived.clear()
    assert {graph[name].op for name in plan(graph, (graph.input.name,)).bounded} == {"linear", "sum"}
    found = Crown().bound(query).lower
    true = torch.tensor([[least(graph, row, box.lower[0], box.upper[0]) for row in torch.eye(2, dtype=F64)]])
    assert bool((found <= tight + 1e-12).all())
    assert bool((tight <= true).all())


def test_networks_with_products_are_not_collapsed() -> None:
    for name, collapses in (("product", False), ("erf", True)):
        graph = prepare(traced(name))
        assert can_collapse(plan(graph, (graph.input.name,))) == collapses


def test_a_quotient_by_what_may_be_zero_is_not_bounded() -> None:
    b = Builder(0)
    x = b.linear(b.input(2), 3)
    graph = prepare(b.graph(b.linear(b.op("div", b.linear(x, 3), x), 2)))
    box = Box(torch.full((1, 2), -9.0).double(), torch.full((1, 2), 9.0).double())
    query = Query(graph, graph.values(F64), {graph.input.name: box}, torch.eye(2).double()[None])
    for method in (Ibp(), Crown(), AlphaCrown(5)):
        assert not bool((method.bound(query).lower > -1e30).any())


def test_masked_attention_is_refused() -> None:
    class Causal(Attention):
        def middle(self, x: Tensor) -> Tensor:
            x = self.heads(x.reshape(-1, 3, 4))
            return F.scaled_dot_product_attention(x, x, x, is_causal=True).reshape(-1, 12)

    with pytest.raises(UnsupportedOp, match="only attention of all tokens to all tokens"):
        trace(Causal().eval(), torch.zeros(1, 2))
