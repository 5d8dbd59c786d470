"""Random networks and specifications against dense sampling; damaged files against the readers.

A hundredth of it runs always, all of it (2,000 networks) with --slow.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import Builder
from torch import Tensor

from surebound.errors import SureboundError
from surebound.graph.ir import Graph, evaluate
from surebound.graph.onnx_import import load_onnx
from surebound.proofs.replay import replay
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Verified
from surebound.search.verify import verify
from surebound.vnnlib import parse_vnnlib

F64 = torch.float64
NETWORKS, EVERY = 2000, 100
PIECE = 20
"""Networks per test."""

ACTIVATIONS: tuple[Callable[[Builder, str], str], ...] = (
    lambda b, x: b.op("relu", x),
    lambda b, x: b.op("relu", x),
    lambda b, x: b.op("leaky_relu", x, slope=0.1),
    lambda b, x: b.op("sigmoid", x),
    lambda b, x: b.op("tanh", x),
    lambda b, x: b.op("clip", x, min=-0.5, max=0.8),
)


def network(seed: int) -> Graph:
    """Two inputs; linear layers, convolutions, pooling and sums in some order; two or three outputs."""
    rng, b = random.Random(seed), Builder(seed)
    smooth = rng.random() < 0.4
    kinds = ACTIVATIONS if smooth else ACTIVATIONS[:3]

    def act(x: str) -> str:
        return rng.choice(kinds)(b, x)

    x = act(b.linear(b.input(2), rng.choice([4, 6, 8])))
    for _ in range(rng.randint(1, 2)):
        kind = rng.choice(["linear", "residual", "conv", "max", "average", "doubled"])
        if kind == "linear":
            x = act(b.linear(x, rng.choice([4, 6])))
        elif kind == "residual":
            inner = act(b.linear(x, b.shape(x)[0]))
            x = b.op("add", x, b.linear(inner, b.shape(x)[0]))
        elif kind == "doubled":  # a neuron and its mirror image
            weight = b.randn(3, b.shape(x)[0])
            weight = torch.cat([weight, -weight[:2]]).float().double()
            bias = torch.cat([b.randn(3)] * 2)[:5].float().double() * torch.tensor([1.0, 1, 1, -1, -1], dtype=F64)
            x = b.op("relu", b.op("linear", x, b.param(weight), b.param(bias)))
        else:
            size = b.shape(x)[0]
            image = b.op("reshape", x if size == 9 else b.linear(x, 9), shape=(1, 3, 3))
            if kind == "conv":
                image = act(b.conv(image, 2, (2, 2), padding=(rng.choice([0, 1]),) * 2))
            elif kind == "max":
                image = b.op(
                    "max_pool2d", image, kernel=(2, 2), stride=(1, 1), padding=(0, 0), dilation=(1, 1), ceil_mode=False
                )
            else:
                pool = {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0), "ceil_mode": False}
                image = act(b.op("avg_pool2d", image, count_include_pad=True, **pool))
            x = b.flat(image)
    return b.graph(b.linear(x, rng.choice([2, 3]), name="y"))


def moving_products(seed: int) -> Graph:
    """Two inputs; attention, gates, quotients and softmax between linear layers; two outputs."""
    rng, b = random.Random(seed), Builder(seed)
    x = b.op("tanh", b.linear(b.input(2), 6))
    for _ in range(rng.randint(1, 2)):
        kind = rng.choice(["attention", "gate", "quotient", "softmax", "square", "norm"])
        if kind == "attention":
            tokens = b.op("reshape", x, shape=(3, 2))
            query, key, value = (b.linear(tokens, 2) for _ in range(3))
            scores = b.op("matmul", query, b.op("transpose", key, perm=(1, 0)))
            x = b.flat(b.op("matmul", b.op("softmax", scores, axis=1), value))
        elif kind == "gate":
            x = b.op("mul", b.linear(x, 6), b.op("sigmoid", b.linear(x, 6)))
        elif kind == "quotient":
            below = b.op("add", b.op("exp", b.linear(x, 6)), b.param(torch.tensor(0.5, dtype=F64)))
            x = b.op("div", b.linear(x, 6), below)
        elif kind == "softmax":
            x = b.op("softmax", b.linear(x, 6), axis=0)
        elif kind == "square":
            y = b.linear(x, 6)
            x = b.op("log", b.op("add", b.op("mul", y, y), b.param(torch.tensor(0.3, dtype=F64))))
        else:
            gap = b.op("sub", x, b.op("mean", x, axes=(0,), keepdim=True))
            spread = b.op("mean", b.op("mul", gap, gap), axes=(0,), keepdim=True)
            root = b.op("sqrt", b.op("add", spread, b.param(torch.tensor(0.1, dtype=F64))))
            x = b.op("div", gap, root)
        x = b.op("erf", b.linear(x, 6)) if rng.random() < 0.3 else x
    return b.graph(b.linear(x, 2, name="y"))


def specification(seed: int, graph: Graph) -> tuple[Disjunct, ...]:
    """One or two disjuncts of one or two random rows, with thresholds still to be moved."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 3, (int(torch.randint(1, 3, (1,), generator=generator)),), generator=generator).tolist()
    made = []
    for size in sizes:
        rows = torch.randn(size, graph.output.numel, dtype=F64, generator=generator)
        made.append(Disjunct(rows, torch.randn(size, dtype=F64, generator=generator) * 0.3, ("row",) * size))
    return tuple(made)


def slack(graph: Graph, disjuncts: tuple[Disjunct, ...], x: Tensor) -> Tensor:
    """How far points [N, 2] are from a counterexample: the least over disjuncts of the largest row."""
    y = evaluate(graph, graph.values(F64), x)[graph.output.name].flatten(1)
    return torch.stack([(y @ d.C.T - d.t).amax(1) for d in disjuncts]).amin(0)


def least_slack(graph: Graph, disjuncts: tuple[Disjunct, ...], low: Tensor, high: Tensor) -> tuple[float, float]:
    """The least found on a grid and on finer grids around its best points; and the largest step of the last."""
    axis = torch.linspace(0, 1, 81, dtype=F64)
    unit = torch.cartesian_prod(axis, axis)
    found = slack(graph, disjuncts, low + unit * (high - low))
    best = float(found.min())
    width = (high - low) / 80
    for at in found.argsort()[:12].tolist():
        centre = low + unit[at] * (high - low)
        near = torch.maximum(torch.minimum(centre + (unit - 0.5) * 2 * width, high), low)
        best = min(best, float(slack(graph, disjuncts, near).min()))
    return best, float(found.max() - found.min())


def check(seed: int, made: Callable[[int], Graph] = network, timeout: float = 20.0) -> int:
    """Both sides of the least slack of one network; how many of the two were decided."""
    graph = made(seed)
    disjuncts = specification(seed, graph)
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(2, dtype=F64, generator=generator)
    high = low + 0.2 + torch.rand(2, dtype=F64, generator=generator)
    least, spread = least_slack(graph, disjuncts, low, high)
    gap = 0.02 * spread + 1e-4
    decided = 0
    for shift in (least - gap, least + gap):  # above it: no counterexample; below: some
        moved = tuple(replace(d, t=d.t + shift) for d in disjuncts)
        prop = Property((Case(Box(low[None], high[None]), moved),))
        attack = "none" if seed % 4 == 0 and shift > least else "pgd"
        few = seed % 3  # by input splits, by neuron splits, by these with clipped inputs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("surebound.search.stages.FEW_DIMENSIONS", 10 if few == 0 else 0)
            patch.setattr("surebound.search.stages.CLIPPED", 64 if few == 1 else 0)
            if seed % 2:  # from forward bounds, where inputs are split without walks
                patch.setattr("surebound.search.crown_boxes.LARGE", 0)
                patch.setattr("surebound.search.root_bounds.DEAR", -1 if few == 0 else 1 << 60)
                patch.setattr("surebound.search.inputs.WORTH", -1)
            config = VerifyConfig(timeout=0.5 if attack == "none" else timeout, attack=attack)
            (outcome,) = verify(graph, [prop], config)
            if isinstance(outcome.verdict, Falsified):
                assert shift > least, (seed, "a witness where there is none", outcome)
                assert float(slack(graph, moved, outcome.verdict.witness.fed.double().reshape(1, 2))) <= 1e-9
            if isinstance(outcome.verdict, Verified):
                assert shift < least, (seed, "a proof of what is false", outcome)
                if seed % 5 == 0:
                    assert replay(graph, prop, outcome.verdict.trees).holds, seed
        decided += isinstance(outcome.verdict, Falsified | Verified) or attack == "none"
    return decided


def check_piece(first: int) -> None:
    assert sum(check(seed) for seed in range(first, first + PIECE)) >= 0.9 * 2 * PIECE


@pytest.mark.parametrize("first", range(0, NETWORKS // EVERY, PIECE))
def test_verdicts_are_those_of_dense_sampling(first: int) -> None:
    check_piece(first)


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(PIECE, 200, PIECE))])
def test_verdicts_on_products_are_those_of_dense_sampling(first: int) -> None:
    size = PIECE if first else PIECE // 4
    assert sum(check(seed, moving_products, 5.0) for seed in range(first, first + size)) >= size


def test_a_split_that_the_output_no_longer_depends_on() -> None:
    """Once an exception: what lies behind the neuron was stable, so the collapsed instance has no use for it."""
    check(29)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(NETWORKS // EVERY, NETWORKS, PIECE))
def test_verdicts_are_those_of_dense_sampling_for_many(first: int) -> None:
    check_piece(first)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with some bytes lost, changed, repeated or moved."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(found)), rng.randint(1, 12)
        kind = rng.choice(["lose", "flip", "repeat", "cut", "move"])
        if kind == "lose":
            del found[at : at + size]
        elif kind == "flip":
            found[at] ^= 1 << rng.randrange(8)
        elif kind == "repeat":
            found[at:at] = found[at : at + size]
        elif kind == "cut":
            del found[max(1, at) :]
        else:
            part = bytes(found[at : at + size])
            del found[at : at + size]
            found[rng.randrange(len(found) + 1) : 0] = part
        if not found:
            return b"\x00"
    return bytes(found)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_networks_are_errors_or_networks(seed: int, tmp_path: Path) -> None:
    """What is still a network is decided like one; all else is an error of ours."""
    graph = network(seed)
    graph.to_onnx(str(tmp_path / "whole.onnx"))
    data = (tmp_path / "whole.onnx").read_bytes()
    free = Disjunct(torch.ones(1, graph.output.numel, dtype=F64), torch.zeros(1, dtype=F64), ("row",))
    prop = Property((Case(Box(torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)), (free,)),))
    rng, errors = random.Random(seed), 0
    for number in range(60):
        part = damaged(data, rng)
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(gzip.compress(part) if number % 10 == 0 else part)
        try:
            (outcome,) = verify(load_onnx(path), [prop], VerifyConfig(timeout=0.2))
            assert outcome.verdict.name in ("sat", "unsat", "unknown", "timeout", "memory")
        except SureboundError as error:
            assert str(error)
            errors += 1
    assert errors > 20


@pytest.mark.parametrize("seed", range(3))
def test_damaged_properties_are_errors_or_properties(seed: int) -> None:
    declared = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    box = "".join(f"(assert (>= X_{i} -1.5e-1))\n(assert (<= X_{i} 2))\n" for i in range(2))
    data = (declared + box + "(assert (or (and (<= Y_0 Y_1) (>= Y_1 0.5)) (<= (+ Y_0 Y_1) -3)))\n").encode()
    rng = random.Random(seed)
    for _ in range(300):
        try:
            prop = parse_vnnlib(damaged(data, rng).decode("latin-1"), "f")
        except SureboundError as error:
            assert str(error).startswith("f")
        else:
            assert all(torch.isfinite(case.region.lower).all() for case in prop.cases)
