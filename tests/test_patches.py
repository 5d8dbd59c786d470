"""Windows are the whole node, only smaller: every rule on `Patches` against the derived dense transpose."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from math import inf, prod
from typing import Any

import pytest
import torch
from nets import Builder, region, spec_of
from torch import Tensor

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.graph.ir import Graph, Site
from surebound.linear import patches
from surebound.linear.maps import Dense, LinearMap, Rows
from surebound.linear.patches import Anchors, Patches, Windows, single, worth
from surebound.linear.pull import Pulled, pull, transpose
from surebound.linear.relaxed import relaxed
from surebound.ops import OPS
from surebound.ops.record import Lines

G, S = 2, 7
Way = Callable[..., Pulled]
Parts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Lower slope, lower intercept, upper slope, upper intercept of a node's lines."""


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def always(window: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return True


def never(window: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return False


RULES = {"the rule": worth, "windows always": always}


def equal(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    scale = 1 + float(wanted.detach().abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * scale)


def single_rows(shape: tuple[int, ...], groups: int = G, count: int = S) -> Rows:
    return Rows(torch.randint(prod(shape), (groups, count)), randn(groups, count), shape)


def clean(rows: LinearMap) -> None:
    """Nothing is stored beyond the node's edge."""
    if isinstance(rows, Patches) and rows.windows.overhang is not None:
        assert bool((rows.coefficients.masked_select(rows.windows.overhang) == 0).all())


def walked(
    graph: Graph, tensors: Mapping[str, Tensor], rows: LinearMap, lines: Mapping[str, Parts], way: Way
) -> tuple[LinearMap, Tensor]:
    """Rows over the output as rows over the input, and their constant; joins where a node is read twice."""
    pending, constant = {graph.outputs[0]: rows}, torch.zeros(rows.rows, dtype=torch.float64)
    for node in reversed(graph.nodes):
        here = pending.pop(node.name, None)
        if here is None:
            continue
        clean(here)
        if node.op == "input":
            return here, constant
        if node.op == "relu":
            below, added = relaxed(here, Lines(*(here.at(part) for part in lines[node.name])))
            maps = [below]
        else:
            values = [tensors.get(name) for name in node.inputs]
            maps, added = way(Site(node, graph.operands(node)), OPS[node.op].forward, values, here)
        constant = constant if added is None else constant + added
        for operand, part in zip(node.inputs, maps, strict=False):
            if part is not None:
                pending[operand] = part if operand not in pending else pending[operand] + part
    raise AssertionError("the input was not reached")


def lines_for(graph: Graph) -> dict[str, Parts]:
    """Any numbers will do for the lines of the relus, shared or per group or per row."""
    leads = itertools.cycle([(1, 1), (G, 1), (1, S), (G, S)])

    def parts(shape: tuple[int, ...]) -> Parts:
        a, b, c, d = (randn(*next(leads), *shape).requires_grad_() for _ in range(4))
        return a, b, c, d

    return {node.name: parts(node.shape) for node in graph.nodes if node.op == "relu"}


def same_as_dense(b: Builder, output: str) -> LinearMap:
    """Walk from single neurons of a feature map to the input, on windows and densely: all numbers are equal,
    and so are the gradients by every parameter, every line and the rows' own coefficients.
    """
    graph = b.graph(output)
    tensors = {name: value.clone().requires_grad_() for name, value in b.tensors.items()}
    lines = lines_for(graph)
    start = single_rows(graph.output.shape)
    scale = start.coefficients.requires_grad_()
    (root,) = (node for node in graph.nodes if node.op == "input")
    weight, price = randn(G, S, *root.shape), randn(G, S)
    leaves = [scale, *tensors.values(), *(part for parts in lines.values() for part in parts)]
    results = []
    windowed = walked(graph, tensors, start, lines, pull)
    for rows, constant in (windowed, walked(graph, tensors, Dense(start.dense()), lines, transpose)):
        loss = (rows.dense() * weight).sum() + (constant * price).sum()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        zero = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
        results.append([rows.dense(), constant, *zero])
    for ours, theirs in zip(*results, strict=True):
        equal(ours, theirs)
    value, radius = randn(G, 1, *root.shape), randn(1, 1, *root.shape).abs()
    equal(windowed[0].dot(value), Dense(windowed[0].dense()).dot(value))
    equal(windowed[0].absdot(radius), Dense(windowed[0].dense()).absdot(radius))
    return windowed[0]


# --- chains ------------------------------------------------------------------------------------------------------


def two(choose: random.Random, low: int, high: int) -> tuple[int, int]:
    return choose.randint(low, high), choose.randint(low, high)


def random_conv(b: Builder, x: str, choose: random.Random) -> str:
    channels = b.shape(x)[0]
    groups = choose.choice([1, 1, *(n for n in (2, channels) if channels % n == 0)])
    return b.conv(
        x,
        groups * choose.randint(1, 3 if groups == 1 else 2),
        two(choose, 1, 4),
        two(choose, 1, 3),
        two(choose, 0, 2),
        two(choose, 1, 2),
        groups,
        choose.random() < 0.6,
    )


def random_pool(b: Builder, x: str, choose: random.Random) -> str:
    kernel = two(choose, 1, 3)
    padding = (choose.randint(0, kernel[0] // 2), choose.randint(0, kernel[1] // 2))
    attrs: dict[str, Any] = {"ceil_mode": choose.random() < 0.3, "count_include_pad": choose.random() < 0.6}
    return b.op("avg_pool2d", x, kernel=kernel, stride=two(choose, 1, 3), padding=padding, **attrs)


def random_pad(b: Builder, x: str, choose: random.Random) -> str:
    pads = ((0, 0), two(choose, 0, 2), two(choose, 0, 2))
    return b.op("pad", x, pads=pads, value=choose.choice([0.0, -0.7]))


def random_arithmetic(b: Builder, x: str, choose: random.Random) -> str:
    shape = b.shape(x)
    other = b.param(b.rand(*choose.choice([shape, (shape[0], 1, 1), (1, *shape[1:]), (1, 1, 1), (1,)])) + 0.5)
    operands = choose.choice([(x, other), (other, x)])
    return b.op(choose.choice(["add", "sub", "mul"]), *operands) if choose.random() < 0.7 else b.op("div", x, other)


LAYERS: dict[str, Callable[[Builder, str, random.Random], str]] = {
    "conv": random_conv,
    "norm": lambda b, x, choose: b.norm(x),
    "relu": lambda b, x, choose: b.op("relu", x),
    "pool": random_pool,
    "pad": random_pad,
    "arithmetic": random_arithmetic,
    "reshape": lambda b, x, choose: b.op("reshape", b.op("reshape", x, shape=(1, *b.shape(x))), shape=b.shape(x)),
    "neg": lambda b, x, choose: b.op("neg", x),
}


def add_layer(b: Builder, x: str, kind: str, choose: random.Random) -> str:
    """The node with one more layer on top, or the node itself where the layer does not fit."""
    before = dict(b.nodes), dict(b.tensors), dict(b.values)
    try:
        return LAYERS[kind](b, x, choose)
    except RuntimeError:
        b.nodes, b.tensors, b.values = before
        return x


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(80))
def test_chains_of_layers(seed: int, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "worth", RULES[rule])
    choose, b = random.Random(seed), Builder(seed)
    x = b.input(choose.choice([1, 2, 4]), *two(choose, 5, 11))
    for _ in range(choose.randint(1, 4)):
        x = add_layer(b, x, choose.choice(list(LAYERS)), choose)
        x = add_layer(b, x, "conv", choose)
    same_as_dense(b, x)


KERNELS = [(1, 1), (3, 3), (2, 4), (4, 1)]
STRIDES = [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (1, 2), (2, 0)], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product(KERNELS, STRIDES)), ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_two_convolutions(
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first rule starts from single neurons, the second from windows; both hang over all four edges."""
    monkeypatch.setattr(patches, "worth", always)
    b = Builder(1)
    x = b.conv(b.input(4, 10, 11), 4, kernel, stride, padding, dilation, groups)
    x = b.conv(b.op("relu", x), 4, (2, 2), (1, 1), (1, 1), (1, 1), groups)
    assert isinstance(same_as_dense(b, x), Patches)


def test_every_neuron_of_a_chain_with_windows_over_all_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "worth", always)
    b = Builder(3)
    x = b.conv(b.input(2, 6, 5), 3, (3, 3), (1, 1), (1, 1))
    x = b.conv(x, 2, (3, 4), (2, 1), (2, 2), (1, 1))
    graph = b.graph(x)
    count = graph.output.numel
    start = Rows(torch.arange(count).unsqueeze(0), torch.ones(1, count, dtype=torch.float64), graph.output.shape)
    rows, constant = walked(graph, b.tensors, start, {}, pull)
    assert isinstance(rows, Patches)
    (top, left), (bottom, right) = rows.windows.offset, rows.windows.end
    over = rows.windows.overhang
    assert over is not None and top < 0 and left < 0 and bool(over[..., -1, :].any()) and bool(over[..., -1].any())
    assert (bottom - top, right - left) == (5, 6)
    dense, added = walked(graph, b.tensors, Dense(start.dense()), {}, transpose)
    equal(rows.dense(), dense.dense())
    equal(constant, added)


def test_windows_by_hand() -> None:
    """A 3x3 convolution with stride 2 and padding 1 behind a 2x2 one with dilation 3: 5 x 5 with offset -1."""
    anchors = Anchors(torch.tensor([[0, 5, 11]]), (3, 2))
    assert anchors.cell.tolist() == [[0, 5, 5]]
    assert anchors.channel.tolist() == [[0, 0, 1]]
    start = Windows(anchors, (2, 3, 2))
    middle = start.of_operand((4, 6, 5), (2, 2), (1, 1), (0, 0), (3, 3))
    assert (middle.size, middle.stride, middle.offset, middle.end) == ((4, 4), (1, 1), (0, 0), (4, 4))
    root = middle.of_operand((1, 11, 9), (3, 3), (2, 2), (1, 1), (1, 1))
    assert (root.size, root.stride, root.offset, root.end) == ((9, 9), (2, 2), (-1, -1), (8, 8))
    assert root.lines(0)[1].tolist() == list(range(1, 10))
    assert root.lines(1)[0].tolist() == list(range(-1, 8))


# --- residual joins ----------------------------------------------------------------------------------------------


def block(b: Builder, x: str, stride: int, skip: str) -> str:
    """Two convolutions beside a skip, joined by an addition."""
    channels = b.shape(x)[0]
    main = b.op("relu", b.norm(b.conv(x, channels, (3, 3), (stride, stride), (1, 1))))
    main = b.conv(main, channels, (3, 3), (1, 1), (1, 1))
    side = {
        "identity": lambda: x,
        "norm": lambda: b.norm(x),
        "1x1": lambda: b.conv(x, channels, (1, 1), (stride, stride)),
        "3x3": lambda: b.conv(x, channels, (3, 3), (stride, stride), (1, 1)),
        "pooled": lambda: b.op(
            "avg_pool2d", x, kernel=(stride,) * 2, stride=(stride,) * 2, padding=(0, 0), ceil_mode=False,
            count_include_pad=True,
        ),
    }[skip]()  # fmt: skip
    return b.op("add", main, side)


BLOCKS = [(1, "identity"), (1, "norm"), (1, "1x1"), (1, "3x3"), (2, "1x1"), (2, "3x3"), (2, "pooled")]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("stride", "skip"), BLOCKS, ids=str)
def test_a_residual_join_stays_on_windows(stride: int, skip: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "worth", RULES[rule])
    b = Builder(5)
    x = b.conv(b.input(2, 18, 16), 2, (1, 1))
    x = b.op("relu", block(b, x, stride, skip))
    x = b.op("relu", block(b, x, 1, "identity"))
    found = same_as_dense(b, b.conv(x, 2, (1, 1)))
    assert isinstance(found, Patches) == (rule == "windows always" or stride == 1)


def test_a_join_that_starts_at_the_sum_stays_on_windows() -> None:
    """The skip carries single neurons, the other branch windows."""
    b = Builder(6)
    assert isinstance(same_as_dense(b, block(b, b.input(2, 12, 12), 1, "identity")), Patches)
    b = Builder(6)
    assert isinstance(same_as_dense(b, block(b, b.input(2, 24, 24), 2, "1x1")), Patches)


def test_branches_of_different_strides_join_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "worth", always)
    b = Builder(7)
    x = b.input(2, 9, 9)
    near = b.conv(x, 2, (3, 3), (1, 1), (1, 1))
    far = b.conv(x, 2, (2, 2), (2, 2), (5, 5))
    assert b.shape(near) == b.shape(far)
    assert isinstance(same_as_dense(b, b.op("add", near, far)), Dense)


def hand_made(shape: tuple[int, ...], anchors: Anchors, **geometry: tuple[int, int]) -> Patches:
    windows = Windows(anchors, shape, **geometry)
    return Patches(windows.cut(randn(*windows.rows, shape[0], *windows.size)), windows)


def test_sums_of_windows_that_know_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "worth", always)
    anchors, shape = Anchors(torch.randint(24, (G, S)), (4, 3)), (2, 7, 8)
    geometries = [
        {"size": (2, 3), "stride": (2, 2), "offset": (-1, 0)},
        {"size": (2, 3), "stride": (2, 2), "offset": (4, -5)},
        {"size": (4, 5), "stride": (2, 2), "offset": (-2, -1)},
        {"size": (1, 1), "stride": (2, 2), "offset": (0, 1)},
    ]
    for one, other in itertools.product(geometries, geometries):
        a, b = hand_made(shape, anchors, **one), hand_made(shape, anchors, **other)
        total = a + b
        assert isinstance(total, Patches)
        clean(total)
        equal(total.dense(), a.dense() + b.dense())


def test_sums_of_windows_that_do_not_fit() -> None:
    index = torch.randint(24, (G, S))
    anchors, shape = Anchors(index, (4, 3)), (2, 9, 9)
    a = hand_made(shape, anchors, size=(2, 2))
    strangers = {
        "another stride": hand_made(shape, anchors, size=(2, 2), stride=(1, 2)),
        "another start": hand_made(shape, Anchors(index.clone(), (4, 3)), size=(2, 2)),
        "another grid": hand_made(shape, Anchors(index, (3, 4)), size=(2, 2)),
        "far away": hand_made(shape, anchors, size=(2, 2), offset=(6, 6)),
    }
    for b in (*strangers.values(), Dense(randn(G, S, *shape)), single_rows(shape)):
        assert a.plus(b) is None
        assert isinstance(a + b, Dense)
        equal((a + b).dense(), a.dense() + b.dense())
        equal((b + a).dense(), a.dense() + b.dense())


def test_single_neurons_join_windows_from_either_side() -> None:
    rows = single_rows((3, 9, 8))
    near = hand_made((3, 9, 8), Anchors(rows.index, (9, 8)), size=(3, 2), offset=(-1, 0))
    for total in (rows + near, near + rows):
        assert isinstance(total, Patches)
        equal(total.dense(), rows.dense() + near.dense())
    assert single(single_rows((12,))) is None
    assert isinstance(rows + rows.negated(), Rows)


# --- where windows are not worth it ------------------------------------------------------------------------------


def test_the_rule_of_what_is_worth_it() -> None:
    assert worth((2, 3, 3), (2, 5, 5))
    assert not worth((2, 3, 3), (2, 4, 4))
    assert not worth((2, 2, 2), (2, 2, 4))


def test_rows_and_windows_fall_back_where_not_worth_it() -> None:
    b = Builder(8)
    x = b.input(2, 9, 9)
    h = b.conv(x, 3, (3, 3), (1, 1), (1, 1))
    assert isinstance(same_as_dense(b, h), Patches)
    h = b.conv(h, 3, (3, 3), (1, 1), (1, 1))
    assert isinstance(same_as_dense(b, h), Patches)
    h = b.conv(h, 3, (3, 3), (1, 1), (1, 1))
    assert isinstance(same_as_dense(b, h), Dense)
    assert isinstance(same_as_dense(b, b.conv(x, 3, (8, 8), (1, 1), (1, 1))), Dense)


def test_windows_take_less_memory() -> None:
    b = Builder(9)
    x = b.conv(b.op("relu", b.conv(b.input(3, 32, 32), 4, (3, 3), (1, 1), (1, 1))), 4, (3, 3), (2, 2), (1, 1))
    found = same_as_dense(b, x)
    assert found.nbytes == G * S * 3 * 5 * 5 * 8
    assert found.nbytes * 40 < Dense(found.dense()).nbytes


def test_single_neurons_of_a_convolution_are_never_spread_over_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Rows) -> Tensor:
        raise AssertionError("rows were made dense")

    b = Builder(10)
    large = b.conv(b.input(2, 12, 12), 3, (3, 3))
    small = Builder(10)
    tight = small.conv(small.input(2, 4, 4), 3, (3, 3))
    for built, name, form in ((b, large, Patches), (small, tight, Dense)):
        graph = built.graph(name)
        start = single_rows(graph.output.shape)
        with monkeypatch.context() as patch:
            patch.setattr(Rows, "dense", refuse)
            rows, constant = walked(graph, built.tensors, start, {}, pull)
        assert isinstance(rows, form)
        wanted, added = walked(graph, built.tensors, Dense(start.dense()), {}, transpose)
        equal(rows.dense(), wanted.dense())
        equal(constant, added)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("padding", [(0, 0), (1, 0), (1, 1)], ids=str)
def test_average_pools(padding: tuple[int, int], count: bool, ceil_mode: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On windows where every window has the same divisor, otherwise densely."""
    monkeypatch.setattr(patches, "worth", always)
    for size, on_top in itertools.product([(8, 8), (9, 7)], [False, True]):
        b = Builder(11)
        x = b.input(2, *size)
        attrs: dict[str, Any] = {"kernel": (2, 3), "stride": (2, 2), "padding": padding}
        x = b.op("avg_pool2d", x, ceil_mode=ceil_mode, count_include_pad=count, **attrs)
        found = same_as_dense(b, b.conv(x, 2, (2, 2)) if on_top else x)
        last = [(b.shape(x)[1 + i] - 1) * 2 + (2, 3)[i] for i in (0, 1)]
        cut = any(last[i] > size[i] + 2 * padding[i] for i in (0, 1))
        constant = not cut and (count or padding == (0, 0))
        assert isinstance(found, Patches) == constant


@pytest.mark.parametrize("value", [0.0, -0.7])
@pytest.mark.parametrize(
    "pads", [((0, 0), (1, 2), (0, 3)), ((0, 0), (-1, 2), (2, -2)), ((1, 0), (1, 1), (0, 0))], ids=str
)
def test_pads(pads: tuple[tuple[int, int], ...], value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a pad removes rows and columns; pads of channels go the general way."""
    monkeypatch.setattr(patches, "worth", always)
    b = Builder(12)
    x = b.op("pad", b.op("relu", b.input(2, 6, 7)), pads=pads, value=value)
    found = same_as_dense(b, b.conv(x, 2, (3, 2), (2, 1), (1, 0)))
    assert isinstance(found, Patches) == (pads[0] == (0, 0))


def test_pulling_leaves_the_windows_alone() -> None:
    b = Builder(14)
    x = b.input(2, 6, 6)
    b.op("pad", x, pads=((0, 0), (1, 1), (1, 1)), value=0.5, name="pad")
    b.conv(x, 2, (3, 3), (1, 1), (2, 2))
    b.op("avg_pool2d", x, kernel=(2, 2), stride=(1, 1), padding=(1, 1), ceil_mode=False, count_include_pad=True)
    graph = b.graph(next(reversed(b.nodes)))
    for node in graph.nodes:
        if node.op in ("pad", "conv2d", "avg_pool2d"):
            rows = hand_made(node.shape, Anchors(torch.randint(18, (G, S)), (3, 3)), size=(2, 2), stride=(3, 3))
            kept = rows.coefficients.clone()
            values = [b.tensors.get(name) for name in node.inputs]
            pull(Site(node, graph.operands(node)), OPS[node.op].forward, values, rows)
            assert torch.equal(rows.coefficients, kept)


# --- reading -----------------------------------------------------------------------------------------------------


def entry_by_entry(rows: Patches, value: Tensor) -> Tensor:
    """The definition of `at`, for full-sized values."""
    w = rows.windows
    value = value.expand(*w.rows, *value.shape[2:])
    found = torch.zeros(rows.coefficients.shape, dtype=value.dtype)
    for g, s in itertools.product(*map(range, w.rows)):
        place = int(w.anchors.index[g, s]) % prod(w.anchors.grid)
        corner = [divmod(place, w.anchors.grid[1])[i] * w.stride[i] + w.offset[i] for i in (0, 1)]
        for i, j in itertools.product(*map(range, w.size)):
            y, x = corner[0] + i, corner[1] + j
            if 0 <= y < w.shape[1] and 0 <= x < w.shape[2]:
                found[g, s, :, i, j] = value[g, s, :, y, x]
    return found


GEOMETRIES = [
    {"size": (2, 3), "stride": (2, 1), "offset": (-1, 2)},
    {"size": (6, 9), "stride": (1, 3), "offset": (-2, -3)},
    {"size": (1, 1), "stride": (1, 1), "offset": (0, 0)},
    {"size": (2, 2), "stride": (2, 2), "offset": (9, -9)},
]


@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: str(list(g.values())))
def test_values_on_windows(geometry: dict[str, tuple[int, int]], count: int) -> None:
    """With few rows and with more rows than windows; numbers and booleans; the gradient is the transpose."""
    rows = hand_made((3, 5, 7), Anchors(torch.randint(24, (G, count)), (4, 3)), **geometry)
    for lead in ((1, 1), (G, 1), (1, count), (G, count)):
        value = randn(*lead, 3, 5, 7).requires_grad_()
        found, wanted = rows.at(value), entry_by_entry(rows, value)
        assert torch.equal(found, wanted)
        weight = randn(*found.shape)
        ours, theirs = (torch.autograd.grad((a * weight).sum() + value.sum(), value)[0] for a in (found, wanted))
        equal(ours, theirs)
        flags = value.detach() > 0
        assert torch.equal(rows.at(flags), entry_by_entry(rows, flags))


def test_values_that_repeat_along_axes_of_the_node() -> None:
    rows = hand_made((3, 5, 7), Anchors(torch.randint(24, (G, S)), (4, 3)), **GEOMETRIES[1])
    full = rows.dense()
    for axes in ((3, 1, 1), (1, 5, 7), (3, 5, 1), (1, 1, 7), (1, 1, 1)):
        for lead in ((1, 1), (G, 1), (1, S), (G, S)):
            value = randn(*lead, *axes)
            equal(rows.dot(value), (full * value).flatten(2).sum(-1))
            equal(rows.absdot(value.abs()), (full.abs() * value.abs()).flatten(2).sum(-1))
            scaled = rows.scaled(value)
            clean(scaled)
            equal(scaled.dense(), full * value)


def test_infinite_values_outside_a_window_do_no_harm() -> None:
    rows = hand_made((1, 3, 3), Anchors(torch.tensor([[0, 0]]), (1, 1)), size=(3, 3), offset=(-2, -2))
    value = torch.full((1, 1, 1, 3, 3), inf, dtype=torch.float64)
    value[..., 0, 0] = 2.0
    equal(rows.dot(value), 2.0 * rows.coefficients[..., 2, 2].squeeze(-1))


def test_values_per_channel_are_not_spread() -> None:
    rows = hand_made((3, 5, 7), Anchors(torch.randint(24, (G, S)), (4, 3)), **GEOMETRIES[1])
    assert rows.at(randn(1, 1, 3, 1, 1)).shape == (1, 1, 3, 1, 1)


@pytest.mark.parametrize(
    ("size", "offset", "hangs"),
    [
        ((4, 3), (0, 0), False),
        ((3, 2), (1, 1), False),
        ((5, 3), (0, 0), True),
        ((4, 4), (0, 0), True),
        ((3, 2), (2, 0), True),
        ((3, 2), (1, 2), True),
        ((1, 1), (-1, 0), True),
        ((1, 1), (0, -1), True),
    ],
    ids=str,
)
def test_which_windows_hang_over_an_edge(size: tuple[int, int], offset: tuple[int, int], hangs: bool) -> None:
    """Of a grid of 3 x 2 with strides 2 and 3 over 8 x 6 values."""
    windows = Windows(Anchors(torch.arange(6).unsqueeze(0), (3, 2)), (1, 8, 6), size, (2, 3), offset)
    assert (windows.outside is not None) == hangs
    rows = Patches(windows.cut(torch.ones(1, 6, 1, *size, dtype=torch.float64)), windows)
    ones = torch.ones(1, 1, 1, 8, 6, dtype=torch.float64)
    assert torch.equal(rows.coefficients, entry_by_entry(rows, ones))
    assert torch.equal(rows.at(ones), rows.coefficients)


def test_windows_of_a_node_with_leading_ones() -> None:
    rows = hand_made((2, 5, 5), Anchors(torch.randint(9, (G, S)), (3, 3)), size=(2, 3), offset=(-1, 0))
    moved = rows.reshaped((1, 1, 2, 5, 5))
    assert isinstance(moved, Patches) and moved.shape == (1, 1, 2, 5, 5)
    value = randn(G, 1, 1, 1, 2, 5, 5)
    equal(moved.dense(), rows.dense().unsqueeze(2).unsqueeze(2))
    equal(moved.dot(value), rows.dot(value[:, :, 0, 0]))
    equal(moved.pick(torch.tensor([[1]]), torch.tensor([[0, 3]])).dense(), moved.dense()[1:, [0, 3]])
    assert isinstance(moved.reshaped((2, 5, 5)), Patches)
    assert isinstance(moved.reshaped((5, 2, 5)), Dense)
    equal((moved + moved).dense(), 2 * moved.dense())
    equal((moved.reshaped((2, 5, 5)) + rows).dense(), 2 * rows.dense())


def test_picked_rows_keep_their_windows() -> None:
    rows = hand_made((2, 6, 6), Anchors(torch.randint(32, (3, S)), (4, 4)), size=(3, 2), offset=(-1, 1))
    groups, chosen = torch.tensor([[2], [0]]), torch.tensor([[4, 4, 1], [6, 0, 2]])
    picked = rows.pick(groups, chosen)
    equal(picked.dense(), rows.dense()[groups, chosen])
    value = randn(2, 1, 2, 6, 6)
    equal(picked.dot(value), (picked.dense() * value).flatten(2).sum(-1))
    assert isinstance(picked + picked.negated(), Patches)


def test_other_ops_see_the_whole_node() -> None:
    rows = hand_made((2, 4, 5), Anchors(torch.randint(6, (G, S)), (2, 3)), size=(2, 2), offset=(-1, 1))
    b = Builder(13)
    b.op("transpose", b.input(4, 5, 2), perm=(2, 0, 1), name="moved")
    graph = b.graph("moved")
    site = Site(graph.output, graph.operands(graph.output))
    (found, *_), added = pull(site, OPS["transpose"].forward, [None], rows)
    assert found is not None and added is None
    equal(found.dense(), rows.dense().permute(0, 1, 3, 4, 2))


# --- whole networks ----------------------------------------------------------------------------------------------


def plain_net(act: str) -> Graph:
    b = Builder(20)
    x = b.op(act, b.norm(b.conv(b.input(1, 12, 12), 3, (3, 3), (1, 1), (1, 1))))
    x = b.op(act, b.conv(x, 3, (4, 4), (2, 2), (1, 1)))
    x = b.op(act, b.conv(x, 2, (2, 3), (1, 2), (1, 0), (2, 1)))
    return b.graph(b.linear(b.flat(x), 3))


def residual_net(act: str) -> Graph:
    b = Builder(21)
    x = b.op(act, b.conv(b.input(2, 14, 14), 2, (3, 3), (1, 1), (1, 1), bias=False))
    x = b.op(act, block(b, x, 2, "1x1"))
    x = b.op(act, block(b, x, 1, "identity"))
    x = b.op("avg_pool2d", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0), ceil_mode=False, count_include_pad=True)
    return b.graph(b.linear(b.flat(b.op(act, x)), 3))


def padded_net(act: str) -> Graph:
    b = Builder(22)
    x = b.op("sub", b.input(2, 11, 13), b.param(b.randn(2, 1, 1)))
    x = b.op("pad", b.op("div", x, b.param(b.rand(2, 1, 1) + 0.5)), pads=((0, 0), (0, 1), (1, 2)), value=0.4)
    x = b.op(act, b.conv(x, 4, (3, 3), (2, 2)))
    x = b.op("max_merge", *merged_maximum(b, b.conv(x, 2, (2, 2), groups=2), b.conv(x, 2, (2, 2))))
    return b.graph(b.linear(b.flat(b.op(act, b.conv(x, 2, (2, 2)))), 3))


def merged_maximum(b: Builder, left: str, right: str) -> tuple[str, str, str]:
    return right, b.op("relu", b.op("sub", left, right)), left


WHOLE = {"plain": plain_net, "residual": residual_net, "padded": padded_net}


@pytest.mark.parametrize("act", ["relu", "sigmoid"])
@pytest.mark.parametrize("kind", ["box", "l2"])
@pytest.mark.parametrize("net", WHOLE)
def test_bounds_of_whole_networks_do_not_depend_on_the_form(
    net: str, kind: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = bounds_by_rule(WHOLE[net](act), kind, Crown(), monkeypatch, at_least=3)
    for found in bounds[1:]:
        equal(found.lower, bounds[0].lower)
        for name, box in found.boxes.items():
            equal(box.lower, bounds[0].boxes[name].lower)
            equal(box.upper, bounds[0].boxes[name].upper)


@pytest.mark.parametrize("act", ["relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("net", WHOLE)
def test_optimised_bounds_do_not_depend_on_the_form(net: str, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps on free values amplify rounding, so the agreement is coarser."""
    method = AlphaCrown(steps=3, intermediates="optimised")
    bounds = bounds_by_rule(WHOLE[net](act), "box", method, monkeypatch, at_least=3)
    assert bool(torch.isfinite(bounds[0].lower).all())
    for found in bounds[1:]:
        torch.testing.assert_close(found.lower, bounds[0].lower, rtol=1e-6, atol=1e-6)


def bounds_by_rule(graph: Graph, kind: str, method: Any, monkeypatch: pytest.MonkeyPatch, at_least: int) -> list[Any]:
    """Bounds with the whole node everywhere, by the rule, and with windows everywhere; windows did occur."""
    (root,) = (node for node in graph.nodes if node.op == "input")
    query = Query(graph, graph.parameters(), {root.name: region(kind, root.shape, 2, size=0.5)}, spec_of(graph, 2))
    found = []
    for rule in (never, worth, always):
        stored: list[Patches] = []
        kept = Patches.kept

        def watched(rows: Patches, keep: Any = kept, seen: list[Patches] = stored) -> LinearMap:
            result = keep(rows)
            if isinstance(result, Patches):
                seen.append(result)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(patches, "worth", rule)
            patch.setattr(Patches, "kept", watched)
            found.append(method.bound(query))
        assert (len(stored) >= at_least) == (rule is not never)
    return found
