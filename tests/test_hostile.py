"""Networks made to break the arithmetic: ends that overflow, scales that drown each other, boxes far from zero.

Every one of them was once bounded wrongly, or could have been.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nets import Builder
from torch import Tensor, nn

from surebound import trace
from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Query
from surebound.errors import SpecError
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box, LpBall, Region
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Verdict, Verified
from surebound.search.verify import verify

F64 = torch.float64
METHODS = {"ibp": Ibp(), "crown-ibp": Crown("ibp"), "crown": Crown(), "alpha": AlphaCrown()}
each_method = pytest.mark.parametrize("method", METHODS)


def point(*values: float) -> Tensor:
    return torch.tensor([values], dtype=F64)


def layer(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), dtype=F64)
    made.weight.data[:], made.bias.data[:] = torch.tensor(weight, dtype=F64), torch.tensor(bias, dtype=F64)
    return made


def graph_of(net: nn.Module, example: Tensor) -> Graph:
    return prepare(trace(net.eval(), example))


def lower(graph: Graph, region: Region, method: str, *rows: list[float]) -> Tensor:
    """Lower bounds of rows over the output of a prepared graph."""
    spec = torch.tensor([rows], dtype=F64).reshape(1, len(rows), *graph.output.shape)
    return METHODS[method].bound(Query(graph, graph.values(F64), {graph.input.name: region}, spec)).lower[0].detach()


def below(graph: Graph, region: Region, limit: list[float], row: list[float]) -> Verdict:
    """The verdict on 'row y <= limit nowhere'."""
    disjunct = Disjunct(torch.tensor([row], dtype=F64), torch.tensor(limit, dtype=F64), ("row",))
    config = VerifyConfig(attack="none", timeout=1)
    return verify(graph, [Property((Case(region, (disjunct,)),))], config)[0].verdict


@each_method
@pytest.mark.parametrize("ends", [(0, 1e300), (-1e300, 1e299)], ids=str)
def test_an_end_that_overflows_proves_nothing(method: str, ends: tuple[float, float]) -> None:
    """1 - relu(1e10 x): interval arithmetic gives inf - inf at one of the ends, which once made a dead neuron."""
    graph = graph_of(nn.Sequential(layer([[1e10]], [0]), nn.ReLU(), layer([[-1]], [1])), point(0))
    found = float(lower(graph, Box(point(ends[0]), point(ends[1])), method, [1]))
    assert not found > -1e300  # NaN included


@each_method
def test_an_end_that_overflows_below_does_not_turn_a_neuron_on(method: str) -> None:
    """x - 1e-10 relu(1e10 x) is x below zero; where interval arithmetic gives inf - inf, always on it would be 0."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = layer([[1e10]], [0]), layer([[-1e-10]], [0])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.relu(self.up(x)))

    found = float(lower(graph_of(Skip(), point(0)), Box(point(-1e299), point(1e300)), method, [1]))
    assert not found > -1e298  # NaN included


def test_an_overflowing_network_is_not_proven() -> None:
    graph = graph_of(nn.Sequential(layer([[1e10]], [0]), nn.ReLU(), layer([[-1]], [1])), point(0))
    assert not isinstance(below(graph, Box(point(0), point(1e300)), [0], [1]), Verified)


@each_method
@pytest.mark.parametrize("far", [1e9, 1e17, 1e30])
def test_a_box_with_one_far_end_keeps_its_near_one(method: str, far: float) -> None:
    """-relu(-x) on [-1, far] reaches -1, which the centre and the radius rounded away."""
    graph = graph_of(nn.Sequential(layer([[-1]], [0]), nn.ReLU(), layer([[-1]], [0])), point(0))
    assert float(lower(graph, Box(point(-1), point(far)), method, [1])) <= -1 + 1e-12


class Maximum(nn.Module):
    """max or min with constants on a scale of their own, plus 5."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], limits: list[float]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("limits", torch.tensor(limits, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.get_buffer("limits")) + 5


@each_method
@pytest.mark.parametrize(
    ("function", "limits"), [(torch.maximum, [-1e20, -1e30]), (torch.minimum, [1e20, 1e30])], ids=["max", "min"]
)
def test_a_huge_constant_in_a_maximum_does_not_drown_the_rest(
    method: str, function: Callable[[Tensor, Tensor], Tensor], limits: list[float]
) -> None:
    """x + 5 on [1, 2]; max(x, c) as c + relu(x - c) would lose both x and 5."""
    graph = graph_of(Maximum(function, limits), point(0, 0))
    box = Box(point(1, 1), point(2, 2))
    torch.testing.assert_close(lower(graph, box, method, [1, 0], [0, 1], [-1, 0], [0, -1]), point(6, 6, -7, -7)[0])


def test_constants_alone_keep_their_maximum() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(point(1.5, 2)[0])
            self.b = nn.Parameter(point(-1e20, 1e20)[0])

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.maximum(self.a, self.b)

    graph = graph_of(Both(), point(0, 0))
    assert lower(graph, Box(point(0, 0), point(0, 0)), "crown", [1, 0], [0, 1]).tolist() == [1.5, 1e20]


@each_method
def test_a_maximum_of_operands_that_broadcast(method: str) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(x * torch.tensor([-1.0, 0.5, 2.0], dtype=F64), x)

    graph = graph_of(Wide(), point(0.5))
    found = lower(graph, Box(point(0.5), point(1)), method, [0, 0, 1], [0, 0, -1])
    assert float(found[0]) <= 1 and float(found[1]) <= -2


@each_method
@pytest.mark.parametrize("centre", [-38.0, -36.0, -30.0, -20.0, 20.0, 36.0])
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_tails_of_s_shapes_keep_their_digits(method: str, centre: float, activation: type[nn.Module]) -> None:
    """Times 1e20 the tail of a sigmoid matters; once it was computed as 1 minus its mirror image."""
    net = nn.Sequential(activation(), layer([[1e20]], [0]))
    graph = graph_of(net, point(0))
    low, high = centre - 0.5, centre + 0.5
    y = net(torch.linspace(low, high, 4001, dtype=F64).unsqueeze(1)).detach()
    found = lower(graph, Box(point(low), point(high)), method, [1], [-1])
    attained = torch.stack([y.min(), -y.max()])
    assert (found - attained <= 1e-9 * attained.abs()).all()


REGIONS = {
    "box": lambda centre: Box(centre - 0.4, centre + 0.4),
    "ball": lambda centre: LpBall(centre, torch.ones(1, dtype=F64), 2, centre - 9, centre + 9),
}


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("first", [nn.ReLU, lambda: nn.Hardtanh(-0.2, 0.3)], ids=["relu", "clip"])
def test_an_activation_right_on_the_input_can_be_split_or_not(kind: str, first: Callable[[], nn.Module]) -> None:
    """Of a box its dimensions are split, of a ball they cannot be."""
    torch.manual_seed(1)
    net = nn.Sequential(first(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 1)).double().eval()
    region = REGIONS[kind](torch.randn(1, 12, dtype=F64) * 0.3)
    attained = float(net(region.sample(3000)[0]).detach().min())
    graph = trace(net, torch.zeros(1, 12, dtype=F64))
    assert not isinstance(below(graph, region, [attained + 1e-9], [1]), Verified)
    assert isinstance(below(graph, region, [attained - (0.5 if kind == "box" else 50)], [1]), Verified)


def test_a_region_for_what_has_one_value_for_all_samples_is_refused() -> None:
    """With two groups its boxes would line up with the wrong axis."""
    b = Builder(0)
    x = b.input(2, 3)
    moved = b.op("neg", b.param(torch.zeros(3, dtype=F64)))
    graph = b.graph(b.op("relu", b.op("add", x, moved)))
    zero, c = torch.zeros(2, 2, 3, dtype=F64), torch.tensor([[5.0] * 3, [-5.0] * 3], dtype=F64)
    regions = {x: Box(zero, zero), moved: Box(c, c + 0.1)}
    query = Query(graph, graph.values(F64), regions, torch.eye(6, dtype=F64).reshape(1, 6, 2, 3))
    with pytest.raises(SpecError, match=f"a region is given for '{moved}', which no input reaches"):
        Crown().bound(query)
