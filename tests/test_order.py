"""On tiny ReLU networks: CROWN <= alpha-CROWN <= triangle LP <= exact <= sampled, and the LP is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from nets import region, spec_of, tiny
from numpy.typing import NDArray
from oracle import (
    Ends,
    exact_minimum,
    linear_pieces,
    mixed_integer_minimum,
    outputs_at,
    row_values,
    sharp_points,
    triangle_minimum,
)
from torch import Tensor

from surebound.bounds.alpha import AlphaCrown, optimise
from surebound.bounds.beta import Splits
from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, Crown, Ibp, boxes_of, context
from surebound.bounds.memory import Memory
from surebound.bounds.query import Query
from surebound.graph.ir import Graph
from surebound.linear.maps import Dense
from surebound.ops.record import Interval
from surebound.regions import Box, Region

Array = NDArray[np.float64]
TOLERANCE = 1e-7

NETS: dict[str, Callable[[], Graph]] = {
    "2-4-4-2": lambda: tiny(1),
    "2-4-4-2 again": lambda: tiny(2),
    "3-5-3-2": lambda: tiny(3, (3, 5, 3, 2)),
    "2-8-2": lambda: tiny(4, (2, 8, 2)),
    "2-2-2-2-2": lambda: tiny(5, (2, 2, 2, 2, 2)),
    "residual 2-4-4-2": lambda: tiny(6, skip=True),
    "residual 3-3-3-2": lambda: tiny(7, (3, 3, 3, 2), skip=True),
}
each_net = pytest.mark.parametrize("net", NETS)


@dataclass(frozen=True, eq=False)
class Setting:
    """One network on one box, with everything in both worlds."""

    graph: Graph
    params: dict[str, Tensor]
    region: Region
    spec: Tensor

    @property
    def query(self) -> Query:
        return Query(self.graph, self.params, {"x": self.region}, self.spec)

    @property
    def root(self) -> Ends:
        return self.region.lower[0].numpy(), self.region.upper[0].numpy()

    @property
    def rows(self) -> Array:
        return self.spec[0].numpy()

    def ends(self, boxes: dict[str, Interval] | None = None) -> dict[str, Ends]:
        """Boxes as arrays; CROWN's by default."""
        found = Crown().bound(self.query).boxes if boxes is None else boxes
        return {name: (box.lower[0].numpy(), box.upper[0].numpy()) for name, box in found.items()}


@cache
def setting(net: str) -> Setting:
    graph = NETS[net]()
    around = region("box", graph.input.shape, groups=1, seed=3, size=4.0)
    return Setting(graph, graph.values(torch.float64), around, spec_of(graph, rows=2, seed=1))


@cache
def exact(net: str) -> Array:
    s = setting(net)
    return exact_minimum(s.graph, s.params, s.root, s.rows)


@cache
def pieces(net: str) -> int:
    s = setting(net)
    return len(linear_pieces(s.graph, s.params, s.root))


@cache
def triangle(net: str) -> Array:
    s = setting(net)
    return triangle_minimum(s.graph, s.params, s.root, s.ends(), s.rows)


@cache
def sampled(net: str) -> Array:
    s = setting(net)
    torch.manual_seed(0)
    points = sharp_points(s.graph, s.params, s.region, s.spec, 2000)
    (y,) = outputs_at(s.graph, s.params, {"x": points})
    return row_values(s.spec, y).amin(2)[0].numpy()


def slack(values: Array) -> float:
    return TOLERANCE * (1 + float(np.abs(values).max()))


def test_the_settings_are_not_trivial() -> None:
    """Several neurons are unstable, several pieces occur, and relaxing costs something."""
    for net in NETS:
        s = setting(net)
        assert int(Crown().bound(s.query).stats.unstable) >= 2, net
        assert pieces(net) >= 3, net
    assert sum(float((exact(net) - triangle(net)).max()) > 1e-3 for net in NETS) >= len(NETS) // 2


@each_net
def test_the_oracles_agree_with_samples(net: str) -> None:
    """The exact minimum is below all samples and nearly reached by the sharp ones."""
    assert (exact(net) <= sampled(net) + slack(sampled(net))).all()
    assert (exact(net) >= sampled(net) - 0.05 * (1 + np.abs(sampled(net)))).all()


@each_net
def test_the_two_exact_oracles_agree(net: str) -> None:
    """Enumerated activation patterns, and a binary variable for each neuron."""
    s = setting(net)
    assert mixed_integer_minimum(s.graph, s.params, s.root, s.rows) == pytest.approx(exact(net), rel=1e-6, abs=1e-6)


@each_net
def test_order(net: str) -> None:
    s = setting(net)
    ibp, crown = (m.bound(s.query).lower[0].numpy() for m in (Ibp(), Crown()))
    alpha = AlphaCrown(10).bound(s.query).lower[0].numpy()
    boxed = triangle_minimum(s.graph, s.params, s.root, s.ends(), s.rows, within_boxes=True)
    off = slack(exact(net))
    assert (crown <= alpha + off).all()
    assert (alpha <= triangle(net) + off).all()
    assert (triangle(net) <= boxed + off).all()
    assert (np.maximum(ibp, alpha) <= boxed + off).all()
    assert (boxed <= exact(net) + off).all()
    assert (exact(net) <= sampled(net) + off).all()


@each_net
def test_every_method_is_below_the_exact_minimum(net: str) -> None:
    s = setting(net)
    for method in (Crown("ibp"), AlphaCrown(8, "ibp"), AlphaCrown(8, "optimised")):
        assert (method.bound(s.query).lower[0].numpy() <= exact(net) + slack(exact(net))).all(), method


@each_net
def test_alpha_reaches_the_triangle(net: str) -> None:
    """For fixed boxes the best alphas give the linear program's value (strong duality)."""
    s = setting(net)
    best = AlphaCrown(150, rates=Rates(alpha=0.2, decay=0.98, settled=0.0)).bound(s.query).lower[0].numpy()
    assert (best >= triangle(net) - 3e-3 * (1 + np.abs(triangle(net)))).all()


@cache
def exact_range(net: str, name: str) -> Ends:
    """The least and the greatest value of each entry of a node."""
    s = setting(net)
    needed = s.graph.ancestors([name])
    part = s.graph.with_nodes([node for node in s.graph.nodes if node.name in needed], (name,))
    eye = np.eye(s.graph[name].numel)
    found = exact_minimum(part, s.params, s.root, np.concatenate([eye, -eye]))
    return found[: len(eye)], -found[len(eye) :]


@each_net
def test_intermediate_boxes_contain_the_exact_range(net: str) -> None:
    s = setting(net)
    for method in (Crown(), AlphaCrown(6, "optimised")):
        boxes = method.bound(s.query).boxes
        for name in (node.inputs[0] for node in s.graph.nodes if node.op == "relu"):
            low, high = exact_range(net, name)
            off = slack(np.concatenate([low, high]))
            assert (boxes[name].lower[0].numpy() <= low + off).all(), name
            assert (boxes[name].upper[0].numpy() >= high - off).all(), name


@each_net
def test_without_unstable_neurons_everything_is_equal(net: str) -> None:
    s = setting(net)
    centre = (s.region.lower + s.region.upper) / 2
    small = Box(centre - 1e-6, centre + 1e-6)
    root = small.lower[0].numpy(), small.upper[0].numpy()
    wanted = exact_minimum(s.graph, s.params, root, s.rows)
    found = Crown().bound(Query(s.graph, s.params, {"x": small}, s.spec))
    assert int(found.stats.unstable) == 0
    np.testing.assert_allclose(found.lower[0].numpy(), wanted, rtol=0, atol=1e-10)


# --- splits ------------------------------------------------------------------------------------------------------


def unstable(s: Setting) -> list[tuple[str, int]]:
    """Neurons (operand node, position) whose phase CROWN leaves open."""
    names = [node.inputs[0] for node in s.graph.nodes if node.op == "relu"]
    ends = s.ends()
    return [(n, i) for n in names for i in range(len(ends[n][0])) if ends[n][0][i] < 0 < ends[n][1][i]]


def splits_of(names: list[str], signs: dict[tuple[str, int], int]) -> Splits:
    node = torch.tensor([[names.index(name) for name, _ in signs]])
    index = torch.tensor([[i for _, i in signs]])
    sign = torch.tensor([list(signs.values())], dtype=torch.float64)
    return Splits(tuple(names), node, index, torch.zeros_like(sign), sign)


@each_net
def test_splits_lie_between_no_splits_and_the_split_linear_program(net: str) -> None:
    """Both phases of a few neurons: multipliers help, never too much, and come close to the linear program."""
    s = setting(net)
    generator = torch.Generator().manual_seed(2)
    ctx = context(s.query, Memory())
    whole = boxes_of(ctx, {}, (BY_WALK,))
    rows, start = Dense(s.spec), s.graph.output.name
    names = list(dict.fromkeys(name for name, _ in unstable(s)))
    for _ in range(3):
        order = torch.randperm(len(unstable(s)), generator=generator)[:3].tolist()
        coins = torch.randint(2, (3,), generator=generator).tolist()
        signs = {unstable(s)[i]: 2 * coin - 1 for i, coin in zip(order, coins, strict=False)}
        limit = triangle_minimum(s.graph, s.params, s.root, s.ends(whole), s.rows, signs)
        if np.isinf(limit).any():
            continue
        splits = splits_of(names, signs)
        cut = {**whole, **splits.clamp({name: whole[name] for name in names})}
        zero = torch.zeros(1, len(s.rows), splits.depth, dtype=torch.float64)
        free: dict[str, Tensor] = {}
        first = optimise(ctx, cut, start, rows, free, 0, Rates(), splits, zero)
        best = optimise(ctx, cut, start, rows, free, 150, Rates(0.2, 0.2, 0.98, settled=0.0), splits, zero)
        assert (best.lower >= first.lower).all()
        off = slack(limit)
        assert (best.lower[0].numpy() <= limit + off).all()
        assert (best.lower[0].numpy() >= limit - 5e-2 * (1 + np.abs(limit))).all()


@each_net
def test_all_phases_together_give_the_exact_minimum(net: str) -> None:
    """Branching over every unstable neuron: the least leaf (by linear program) is the exact minimum, and every
    leaf's bound with multipliers is below its linear program."""
    s = setting(net)
    open_neurons = unstable(s)
    if len(open_neurons) > 6:
        open_neurons = open_neurons[:6]
    ctx = context(s.query, Memory())
    whole = boxes_of(ctx, {}, (BY_WALK,))
    names = list(dict.fromkeys(name for name, _ in open_neurons))
    least = np.full(len(s.rows), np.inf)
    for pattern in range(2 ** len(open_neurons)):
        signs = {neuron: 1 if pattern >> k & 1 else -1 for k, neuron in enumerate(open_neurons)}
        limit = triangle_minimum(s.graph, s.params, s.root, s.ends(whole), s.rows, signs)
        least = np.minimum(least, limit)
        if np.isinf(limit).any():
            continue
        splits = splits_of(names, signs)
        cut = {**whole, **splits.clamp({name: whole[name] for name in names})}
        zero = torch.zeros(1, len(s.rows), splits.depth, dtype=torch.float64)
        free: dict[str, Tensor] = {}
        found = optimise(ctx, cut, s.graph.output.name, Dense(s.spec), free, 3, Rates(), splits, zero)
        assert (found.lower[0].numpy() <= limit + slack(limit)).all()
    off = slack(exact(net))
    assert (least <= exact(net) + off).all()
    if len(unstable(s)) == len(open_neurons):
        np.testing.assert_allclose(least, exact(net), rtol=0, atol=off)
