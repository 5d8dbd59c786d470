"""What every op promises, checked at sample sites of each op in the table, against sampling and calculus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from nets import result_shape
from torch import Tensor

from surebound.bounds.forward import Form, affine
from surebound.bounds.plan import Step
from surebound.graph.ir import Node, Site
from surebound.linear.maps import Columns, Dense, LinearMap, Rows, merged
from surebound.linear.pull import FAST, pull, transpose
from surebound.ops import OPS
from surebound.ops.curved import CURVED
from surebound.ops.periodic import PERIODIC
from surebound.ops.record import Frame, Interval, Relaxation
from surebound.ops.steps import STEPS
from surebound.regions import Box

G = 3
TOLERANCE = 1e-9
INF = math.inf

# --- sample sites ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Operand:
    """One operand of a sample site: perturbed (value None), or fixed with or without a sample axis."""

    shape: tuple[int, ...]
    value: Tensor | None = None
    batched: bool = True

    @property
    def moves(self) -> bool:
        return self.value is None


def moving(*shape: int) -> Operand:
    return Operand(shape)


def fixed(value: Tensor) -> Operand:
    return Operand(tuple(value.shape), value, batched=False)


def given(value: Tensor) -> Operand:
    """A fixed operand with a value per group [G, *shape], or one for all [1, *shape]."""
    return Operand(tuple(value.shape[1:]), value)


@dataclass(frozen=True, eq=False)
class Sample:
    """An op at one place."""

    op: str
    operands: tuple[Operand, ...]
    attrs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = ["x" if o.moves else "g" if o.batched else "c" for o in self.operands]
        parts = [f"{k}{'.'.join(map(str, o.shape))}" for k, o in zip(kinds, self.operands, strict=True)]
        attrs = [f"{key}={value}".replace(" ", "") for key, value in self.attrs.items()]
        return "-".join([self.op, *parts, *attrs])

    @cached_property
    def site(self) -> Site:
        nodes = [
            Node(f"n{i}", "input" if o.batched else "parameter", (), {}, o.shape, o.batched)
            for i, o in enumerate(self.operands)
        ]
        dtype = next(
            (o.value.dtype for o in self.operands if o.value is not None and o.value.is_floating_point()), None
        )
        values = [torch.ones(2, *o.shape, dtype=dtype) if o.batched else o.value for o in self.operands]
        shape = result_shape(self.op, nodes, [value for value in values if value is not None], self.attrs)
        return Site(Node("y", self.op, tuple(node.name for node in nodes), self.attrs, shape), tuple(nodes))

    @property
    def perturbed(self) -> tuple[bool, ...]:
        return tuple(o.moves for o in self.operands)

    @property
    def affine(self) -> bool:
        return OPS[self.op].affine(self.perturbed)

    @property
    def relaxed(self) -> bool:
        """Would a walk use the relaxation here?"""
        return OPS[self.op].relax is not None and not self.affine

    @property
    def relaxation(self) -> Relaxation:
        found = OPS[self.op].relax
        assert found is not None
        return found

    @property
    def values(self) -> list[Tensor | None]:
        return [o.value for o in self.operands]

    def forward(self, moved: Sequence[Tensor], batch: int) -> Tensor:
        """The op at points [B, *shape] of the perturbed operands, B a multiple of G (groups outermost)."""
        iterator = iter(moved)
        full: list[Tensor] = []
        for o in self.operands:
            if o.value is None:
                full.append(next(iterator))
            elif o.batched:
                full.append(o.value.expand(G, *o.shape).repeat_interleave(batch // G, 0))
            else:
                full.append(o.value)
        return OPS[self.op].forward(self.site, *full)

    def at(self, points: Sequence[Tensor]) -> Tensor:
        """Values [G, n, *shape] at points [G, n, *shape] of the perturbed operands."""
        count = points[0].shape[1]
        return self.forward([p.flatten(0, 1) for p in points], G * count).unflatten(0, (G, count))

    def interval(self, boxes: Sequence[Interval]) -> Interval:
        iterator = iter(boxes)
        operands = [next(iterator) if o.value is None else Interval(o.value, o.value) for o in self.operands]
        return OPS[self.op].interval(self.site, *operands)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the perturbed operands."""
        return [o.shape for o in self.operands if o.moves]


GENERATOR = torch.Generator().manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


def apart(*shape: int) -> Tensor:
    """Random values of both signs, away from zero."""
    value = randn(*shape)
    return value + 0.4 * value.sign()


def coin(*shape: int) -> Tensor:
    return randn(*shape) > 0


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def conv_attrs(
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> dict[str, Any]:
    return {"stride": pair(stride), "padding": pair(padding), "dilation": pair(dilation), "groups": groups}


def pool_attrs(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], **more: bool | tuple[int, int]
) -> dict[str, Any]:
    return {"kernel": kernel, "stride": stride, "padding": padding, **more}


def norm_operands(count: int) -> tuple[Operand, ...]:
    return (*(fixed(apart(count)) for _ in range(3)), fixed(randn(count).abs() + 0.1))


X = moving(2, 3)
SAMPLES: list[Sample] = [
    Sample("linear", (moving(5), fixed(randn(3, 5)), fixed(randn(3)))),
    Sample("linear", (moving(5), fixed(randn(3, 5)))),
    Sample("linear", (moving(1, 5), fixed(randn(3, 5)), fixed(randn(3)))),
    Sample("linear", (moving(2, 5), fixed(randn(3, 5)), fixed(randn(3)))),
    Sample("linear", (moving(2, 2, 3), fixed(randn(1, 3)), fixed(randn(1)))),
    Sample("matmul", (X, fixed(randn(3, 4)))),
    Sample("matmul", (fixed(randn(4, 2)), X)),
    Sample("matmul", (moving(2, 2, 3), fixed(randn(2, 3, 2)))),
    Sample("matmul", (moving(1, 2, 3), fixed(randn(2, 3, 2)))),
    Sample("matmul", (fixed(randn(2, 2, 3)), moving(1, 3, 2))),
    Sample("matmul", (X, given(randn(G, 3, 2)))),
    Sample("matmul", (given(randn(1, 4, 2)), X)),
    Sample("conv2d", (moving(2, 4, 5), fixed(randn(3, 2, 3, 3)), fixed(randn(3))), conv_attrs(padding=1)),
    Sample("conv2d", (moving(2, 4, 5), fixed(randn(3, 2, 2, 3))), conv_attrs((2, 1), (1, 0))),
    Sample("conv2d", (moving(2, 6, 6), fixed(randn(2, 2, 3, 2)), fixed(randn(2))), conv_attrs(3, (0, 2), (1, 2))),
    Sample("conv2d", (moving(4, 4, 6), fixed(randn(6, 2, 2, 2)), fixed(randn(6))), conv_attrs(2, 1, 2, 2)),
    Sample("conv2d", (moving(3, 1, 6), fixed(randn(3, 1, 1, 3))), conv_attrs((1, 2), 0, 1, 3)),
    Sample(
        "conv_transpose2d",
        (moving(2, 3, 4), fixed(randn(2, 3, 3, 2)), fixed(randn(3))),
        conv_attrs((2, 1), (1, 0)) | {"output_padding": (1, 0)},
    ),
    Sample(
        "conv_transpose2d",
        (moving(4, 2, 3), fixed(randn(4, 1, 2, 2))),
        conv_attrs(1, 1, 2, 2) | {"output_padding": (0, 0)},
    ),
    Sample("batch_norm", (moving(3), *norm_operands(3)), {"eps": 1e-3}),
    Sample("batch_norm", (moving(3, 2, 2), *norm_operands(3)), {"eps": 1e-5}),
    *(
        Sample(op, operands)
        for op in ("add", "sub")
        for operands in (
            (X, X),
            (moving(3), X),
            (X, moving(2, 1)),
            (moving(2, 1), moving(1, 3)),
            (X, fixed(randn(3))),
            (fixed(randn(2, 1)), moving(3)),
            (fixed(randn()), X),
            (moving(), fixed(randn(2))),
            (X, given(randn(G, 3))),
            (given(randn(1, 2, 1)), moving(3)),
        )
    ),
    Sample("neg", (X,)),
    Sample("mul", (X, X)),
    Sample("mul", (X, fixed(randn(3)))),
    Sample("mul", (fixed(randn(2, 1)), moving(3))),
    Sample("mul", (moving(2, 1), fixed(randn(2, 3)))),
    Sample("mul", (X, given(randn(G, 3)))),
    Sample("mul", (given(randn(1, 2, 3)), moving(1, 3))),
    Sample("div", (X, fixed(apart(3)))),
    Sample("div", (moving(3), fixed(apart(2, 1)))),
    Sample("div", (X, given(apart(G, 2, 1)))),
    Sample("where", (fixed(coin(2, 3)), X, X)),
    Sample("where", (fixed(coin(3)), X, fixed(randn(2, 1)))),
    Sample("where", (fixed(coin(2, 1)), fixed(randn()), moving(3))),
    Sample("where", (fixed(coin(2, 3)), moving(3), given(randn(G, 2, 1)))),
    Sample("max_merge", (X, X, X)),
    Sample("max_merge", (moving(2, 1), X, moving(1, 3))),
    Sample("max_merge", (X, X, moving(2, 1))),
    Sample("max_merge", (fixed(randn(2, 3)), X, X)),
    Sample("reshape", (X,), {"shape": (3, 2)}),
    Sample("reshape", (moving(1),), {"shape": ()}),
    Sample("transpose", (moving(2, 3, 2),), {"perm": (2, 0, 1)}),
    Sample("expand", (moving(3),), {"shape": (2, 3)}),
    Sample("expand", (moving(2, 1),), {"shape": (2, 3)}),
    Sample("concat", (X, moving(2, 2)), {"axis": 1}),
    Sample("concat", (fixed(randn(1, 3)), X, fixed(randn(2, 3))), {"axis": 0}),
    Sample("concat", (X, given(randn(G, 1, 3))), {"axis": 0}),
    Sample("concat", (given(randn(1, 1, 3)), X), {"axis": 0}),
    Sample("slice", (moving(2, 7),), {"axis": 1, "start": 1, "stop": 6, "step": 2}),
    Sample("gather", (moving(4, 2),), {"axis": 0, "indices": (3, 1, 1)}),
    Sample("sum", (moving(2, 3, 2),), {"axes": (0, 2), "keepdim": False}),
    Sample("sum", (X,), {"axes": (1,), "keepdim": True}),
    Sample("sum", (moving(3),), {"axes": (0,), "keepdim": False}),
    Sample("mean", (moving(2, 3, 2),), {"axes": (1, 2), "keepdim": False}),
    Sample("mean", (X,), {"axes": (0,), "keepdim": True}),
    Sample("pad", (X,), {"pads": ((1, 0), (2, 1)), "value": -0.7}),
    Sample(
        "avg_pool2d",
        (moving(1, 4, 5),),
        pool_attrs((2, 3), (2, 2), (1, 1), ceil_mode=False, count_include_pad=True),
    ),
    Sample(
        "avg_pool2d",
        (moving(2, 4, 4),),
        pool_attrs((3, 3), (2, 2), (1, 1), ceil_mode=True, count_include_pad=False),
    ),
    Sample("relu", (X,)),
    *(Sample("leaky_relu", (X,), {"slope": slope}) for slope in (0.1, -0.4, 1.7, 1.0, 0.0)),
    *(
        Sample("clip", (X,), {"min": low, "max": high})
        for low, high in ((-0.5, 0.7), (0.0, 6.0), (0.1, INF), (-INF, -0.2), (-INF, INF))
    ),
    Sample("graft", (X, fixed(coin(2, 3)), fixed(randn(2, 3)), fixed(randn(2, 3)))),
    *(
        Sample("gate", (X, fixed(gate), fixed(randn(2, 3)), fixed(randn(2, 3))))
        for gate in (torch.tensor([[0.0, 0.3, 1.0], [0.7, 1.6, -0.4]]).double(), torch.tensor(0.5).double())
    ),
    *(
        Sample("at_least", (X, fixed(c)))
        for c in (randn(2, 3), randn(3), randn(), torch.tensor([-1e3, 0.1, 1e3]).double())
    ),
    Sample("sigmoid", (X,)),
    Sample("tanh", (X,)),
    *(
        Sample(op, (X,))
        for op in ("erf", "exp", "log", "sqrt", "square", "reciprocal", "softplus", "elu", "sin", "cos", "atan", *STEPS)
    ),
    Sample("factors", (moving(2, 2, 3),)),
    Sample("factors", (moving(2),)),
    Sample("product", (moving(2, 2, 3), X, X)),
    Sample("product", (moving(2, 3), moving(3), fixed(randn(3)))),
    Sample("softmax", (X,), {"axis": 1}),
    Sample("softmax", (moving(2, 3, 2),), {"axis": 0}),
    Sample("softmax", (moving(1),), {"axis": 0}),
    Sample(
        "max_pool2d",
        (moving(2, 4, 5),),
        pool_attrs((2, 3), (2, 1), (1, 0), dilation=(1, 1), ceil_mode=False),
    ),
    Sample("maximum", (X, X)),
    Sample("maximum", (X, fixed(randn(3)))),
    Sample("minimum", (fixed(randn(2, 3)), X)),
    Sample("minimum", (moving(2, 1), moving(1, 3))),
    Sample("maximum", (moving(3), X)),
    Sample("minimum", (moving(3), fixed(randn(2, 1)))),
]
AFFINE = [sample for sample in SAMPLES if sample.affine]
TOGETHER = [sample for sample in SAMPLES if sample.relaxed and sample.relaxation.together]
RELAXED = [sample for sample in SAMPLES if sample.relaxed and sample not in TOGETHER]
SMOOTH = [sample for sample in RELAXED if sample.op in ("sigmoid", "tanh", "erf", "atan")]
BENT = {*(sample.op for sample in SMOOTH), *CURVED, *PERIODIC}
MERGING = ("max_merge", "product")
"""Ops with an operand that is computed from the others."""


def each(samples: Sequence[Sample]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("sample", samples, ids=str)


def test_every_op_of_the_table_has_sample_sites() -> None:
    assert {sample.op for sample in SAMPLES} == set(OPS)


def test_every_relaxation_and_every_fast_transpose_is_exercised() -> None:
    assert {sample.op for sample in [*RELAXED, *TOGETHER]} == {name for name, op in OPS.items() if op.relax is not None}
    assert {sample.op for sample in AFFINE} >= set(FAST)


# --- boxes -------------------------------------------------------------------------------------------------------


def around(radius: float, shift: float = 0.0, scale: float = 1.0) -> Callable[[tuple[int, ...]], Interval]:
    """Boxes of random centre and radius, times a scale."""

    def make(shape: tuple[int, ...]) -> Interval:
        centre = torch.randn(G, *shape, dtype=torch.float64) + shift
        reach = radius * torch.rand(G, *shape, dtype=torch.float64)
        return Interval((centre - reach) * scale, (centre + reach) * scale)

    return make


def ends(low: float, high: float) -> Callable[[tuple[int, ...]], Interval]:
    """Boxes between two numbers, a little different everywhere; a zero stays a zero."""

    def make(shape: tuple[int, ...]) -> Interval:
        factor = 1 + torch.rand(G, *shape, dtype=torch.float64) * 0.1
        a, b = low * factor, high * factor
        return Interval(torch.minimum(a, b), torch.maximum(a, b))

    return make


BOXES: dict[str, Callable[[tuple[int, ...]], Interval]] = {
    "ordinary": around(1.5),
    "wide": around(20.0),
    "narrow": around(1e-3),
    "point": around(0.0),
    "hair": around(1e-13),
    "above": around(0.5, 4.0),
    "below": around(0.5, -4.0),
    "from zero": ends(0.0, 1.5),
    "to zero": ends(-1.5, 0.0),
    "zero": ends(0.0, 0.0),
    "hundredth": around(1.5, 0.0, 1e-2),
    "hundred": around(1.5, 0.0, 1e2),
    "million": around(1.5, 0.0, 1e6),
    "hundred million": around(1.5, 0.0, 1e8),
    "saturated": ends(-900.0, 900.0),
    "saturated above": ends(300.0, 900.0),
    "saturated below": ends(-900.0, -300.0),
    "lopsided": ends(-0.01, 800.0),
    "lopsided down": ends(-800.0, 0.01),
}
each_box = pytest.mark.parametrize("kind", BOXES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def positive(box: Interval) -> Interval:
    """The numbers' sizes, and a little more."""
    zero = torch.zeros_like(box.lower)
    near = torch.maximum(torch.maximum(box.lower, -box.upper), zero)
    return Interval(near + 0.05, torch.maximum(box.lower.abs(), box.upper.abs()) + 0.05)


DOMAINS: dict[str, Callable[[Interval], Interval]] = {
    "exp": lambda box: Interval(box.lower.clamp(-60, 60), box.upper.clamp(-60, 60)),
    "log": positive,
    "sqrt": positive,
    "reciprocal": positive,
}
"""Where ops that are not defined, or not finite, everywhere are tried."""


def boxes_at(sample: Sample, kind: str) -> list[Interval]:
    domain = DOMAINS.get(sample.op, lambda box: box)
    return [domain(BOXES[kind](shape)) for shape in sample.shapes]


def inside(boxes: Sequence[Interval], count: int = 24) -> list[Tensor]:
    """Points [G, n, *shape] of the boxes: both ends, random corners, random points near and far from the ends."""
    points = []
    for lower, upper in boxes:
        shape = (G, count, *lower.shape[1:])
        soft = torch.rand(shape, dtype=lower.dtype)
        share = torch.where(torch.rand(shape, dtype=lower.dtype) > 0.5, soft.round(), soft)
        share = torch.cat([share, soft, torch.zeros(shape)[:, :1], torch.ones(shape)[:, :1]], 1)
        low, high = lower.unsqueeze(1), upper.unsqueeze(1)
        points.append(torch.minimum(torch.maximum(low + share * (high - low), low), high))
    return points


def feasible(sample: Sample, boxes: Sequence[Interval], points: list[Tensor]) -> tuple[list[Interval], list[Tensor]]:
    """Boxes and points as the graph would hand them over: a merged maximum's middle operand is relu(a - b), a product's
    first one its factors'.
    """
    if sample.op == "product":
        moved = iter(points[1:])
        x, y = (next(moved) if o.value is None else o.value.expand(1, 1, *o.shape) for o in sample.operands[1:])
        terms = torch.stack(torch.broadcast_tensors(x * y, torch.zeros_like(x * y)), 2)
        return [Interval(terms.amin(1), terms.amax(1)), *boxes[1:]], [terms, *points[1:]]
    if sample.op != "max_merge":
        return list(boxes), points
    rest = len(points) - 2
    left = points[0] if rest else sample.operands[0].value
    assert left is not None
    between = (points[-1] - left).clamp(min=0)
    joined = [*points[:rest], between, points[-1]]
    return [*boxes[:rest], Interval(between.amin(1), between.amax(1)), boxes[-1]], joined


def scale_of(*tensors: Tensor) -> float:
    return max(float(t.abs().max()) for t in tensors if t.numel())


# --- intervals ---------------------------------------------------------------------------------------------------


@each(SAMPLES)
def test_interval_contains_the_values(sample: Sample) -> None:
    for kind in BOXES:
        boxes = boxes_at(sample, kind)
        boxes, points = feasible(sample, boxes, inside(boxes))
        values = sample.at(points)
        lower, upper = sample.interval(boxes)
        assert lower.shape[1:] == upper.shape[1:] == sample.site.shape == values.shape[2:]
        slack = TOLERANCE * scale_of(lower, upper, values, *(b.lower for b in boxes), *(b.upper for b in boxes))
        assert (values - lower.unsqueeze(1)).min() >= -slack, kind
        assert (upper.unsqueeze(1) - values).min() >= -slack, kind


@each(SAMPLES)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e8])
def test_interval_of_a_point_is_the_value(sample: Sample, scale: float) -> None:
    domain = DOMAINS.get(sample.op, lambda box: box)
    points = [scale * torch.randn(G, 1, *shape, dtype=torch.float64) for shape in sample.shapes]
    points = [domain(Interval(p, p.clone())).lower for p in points]
    boxes = [Interval(p[:, 0], p[:, 0].clone()) for p in points]
    boxes, points = feasible(sample, boxes, points)
    lower, upper = sample.interval(boxes)
    value = sample.at(points)[:, 0]
    slack = TOLERANCE * scale_of(value, *points)
    torch.testing.assert_close(lower, value, rtol=0, atol=slack)
    torch.testing.assert_close(upper, value, rtol=0, atol=slack)


@each([sample for sample in SAMPLES if sample.op not in MERGING])
@pytest.mark.parametrize("kind", ["ordinary", "wide", "million", "lopsided"])
def test_smaller_boxes_give_smaller_intervals(sample: Sample, kind: str) -> None:
    outer = boxes_at(sample, kind)
    inner = []
    for lower, upper in outer:
        cut = torch.rand(2, *lower.shape, dtype=torch.float64) / 2
        inner.append(Interval(lower + cut[0] * (upper - lower), upper - cut[1] * (upper - lower)))
    big, small = sample.interval(outer), sample.interval(inner)
    slack = TOLERANCE * scale_of(big.lower, big.upper, *(b.lower for b in outer))
    assert (small.lower - big.lower).min() >= -slack
    assert (big.upper - small.upper).min() >= -slack


@each([sample for sample in AFFINE if len(sample.shapes) == 1])
def test_interval_of_an_affine_op_of_one_operand_is_attained(sample: Sample) -> None:
    (box,) = boxes_at(sample, "ordinary")
    count = sample.site.node.numel
    maps, added = transpose(sample.site, OPS[sample.op].forward, sample.values, identity_rows(count, sample.site.shape))
    rows = next(m for m in maps if m is not None)
    assert added is not None
    region = Box(box.lower, box.upper)
    lower = region.minimise(rows) + added
    upper = -region.minimise(rows.negated()) + added
    found = sample.interval([box])
    torch.testing.assert_close(found.lower.expand(G, *sample.site.shape).reshape(G, -1), lower, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper.expand(G, *sample.site.shape).reshape(G, -1), upper, rtol=0, atol=1e-9)


@each(RELAXED)
@each_box
def test_interval_of_a_bent_function_is_attained(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    values = sample.at([grid(sample, box)])
    lower, upper = sample.interval([box])
    slack = TOLERANCE * scale_of(values)
    torch.testing.assert_close(lower, values.amin(1), rtol=0, atol=slack)
    torch.testing.assert_close(upper, values.amax(1), rtol=0, atol=slack)


@each([sample for sample in SAMPLES if sample.op == "softmax"])
@pytest.mark.parametrize("kind", ["ordinary", "wide", "saturated"])
def test_interval_of_softmax_is_attained(sample: Sample, kind: str) -> None:
    """Where an entry is at one end and all others are at the other."""
    (box,) = boxes_at(sample, kind)
    lower, upper = sample.interval([box])
    for place in range(sample.site.node.numel):
        own = torch.zeros(sample.site.node.numel, dtype=torch.bool)
        own[place] = True
        mask = own.reshape(sample.site.shape)
        for end, other, found in ((box.lower, box.upper, lower), (box.upper, box.lower, upper)):
            value = sample.at([torch.where(mask, end, other).unsqueeze(1)])[:, 0]
            torch.testing.assert_close(found[:, mask], value[:, mask], rtol=0, atol=1e-12)


@each(SAMPLES)
@each_dtype
def test_interval_has_finite_gradients(sample: Sample, dtype: torch.dtype) -> None:
    cast, parameters = trainable(sample, dtype)
    for kind in ("ordinary", "point", "zero", "from zero", "saturated", "hundred million"):
        boxes = [Interval(*(end.to(dtype).requires_grad_() for end in box)) for box in boxes_at(sample, kind)]
        lower, upper = cast.interval(boxes)
        loss = (lower * torch.randn_like(lower)).sum() + (upper * torch.randn_like(upper)).sum()
        leaves = [end for box in boxes for end in box] + parameters
        for gradient in torch.autograd.grad(loss, leaves, allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all(), kind


def trainable(sample: Sample, dtype: torch.dtype) -> tuple[Sample, list[Tensor]]:
    """The sample with its fixed float operands in `dtype` and requiring gradients."""
    operands, leaves = [], []
    for o in sample.operands:
        value = o.value
        if value is not None and value.is_floating_point():
            value = value.to(dtype, copy=True).requires_grad_()
            leaves.append(value)
        operands.append(Operand(o.shape, value, o.batched))
    return Sample(sample.op, tuple(operands), sample.attrs), leaves


# --- relaxations -------------------------------------------------------------------------------------------------


def relaxation(sample: Sample) -> Relaxation:
    return sample.relaxation


def grid(sample: Sample, box: Interval, count: int = 81) -> Tensor:
    """Points [G, n, *shape] across the box: evenly spread, the ends, and the kinks and zero where they lie inside."""
    share = torch.linspace(0, 1, count, dtype=torch.float64).reshape(1, -1, *([1] * (box.lower.dim() - 1)))
    low, high = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    kinks = [0.0, *(float(sample.attrs[key]) for key in ("min", "max") if key in sample.attrs)]
    kinks += [-1.0, 1.0, -5.0, 5.0]
    special = [torch.full_like(low, kink) for kink in kinks if math.isfinite(kink)]
    special += [
        value + torch.zeros_like(low) for value in sample.values if value is not None and sample.op == "at_least"
    ]
    if sample.op in PERIODIC:  # where the slope is zero
        special += [(torch.ceil(low / (math.pi / 2)) + step) * math.pi / 2 for step in range(5)]
    if sample.op in STEPS:  # both sides of jumps near either end
        near = (low, high, torch.zeros_like(low))
        jumps = [torch.floor(end * 2) / 2 + step / 2 for end in near for step in range(-2, 3)]
        special += [*jumps, *(jump.nextafter(torch.full_like(jump, side)) for jump in jumps for side in (-INF, INF))]
    points = torch.cat([low + share * (high - low), low, high, *special], 1)
    return torch.minimum(torch.maximum(points, low), high)


def frame_of(sample: Sample, lower: Tensor, upper: Tensor) -> Frame:
    return relaxation(sample).frame(sample.site, sample.values, lower.unsqueeze(1), upper.unsqueeze(1))


def lines_of(sample: Sample, lower: Tensor, upper: Tensor, free: Tensor) -> list[Tensor]:
    """The lines with zeros for intercepts that are zero."""
    lines = relaxation(sample).lines(sample.site, frame_of(sample, lower, upper), free)
    return [torch.zeros_like(lines.lower_slope) if part is None else part for part in lines]


def admissible(sample: Sample, box: Interval, free: Tensor) -> Tensor:
    return relaxation(sample).project(sample.site, frame_of(sample, *box), free)


def lines_at(sample: Sample, box: Interval, free: Tensor, x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Both lines [G, S, n, *shape] at points [G, n, *shape], and the size of the numbers in them."""
    a, b, c, d = (part.unsqueeze(2) for part in lines_of(sample, box.lower, box.upper, free))
    at = x.unsqueeze(1)
    return a * at + b, c * at + d, scale_of(a * at, b, c * at, d)


def start_free(sample: Sample, box: Interval) -> Tensor:
    return relaxation(sample).init(sample.site, frame_of(sample, *box))


def free_choices(sample: Sample, box: Interval) -> Iterator[Tensor]:
    """Free values worth trying: the start, the extremes, and anything at all after `project`."""
    start = start_free(sample, box)
    rows = start.expand(-1, -1, 4, *([-1] * (start.dim() - 3)))
    yield start
    yield admissible(sample, box, torch.zeros_like(start))
    yield admissible(sample, box, torch.ones_like(start))
    yield admissible(sample, box, torch.rand_like(rows))
    yield admissible(sample, box, 50 * torch.randn_like(rows))


@each(RELAXED)
@each_box
def test_lines_enclose_the_function(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    x = grid(sample, box)
    f = sample.at([x]).unsqueeze(1)
    for free in free_choices(sample, box):
        below, above, scale = lines_at(sample, box, free, x)
        slack = TOLERANCE * max(scale, scale_of(f))
        assert (f - below).min() >= -slack
        assert (above - f).min() >= -slack


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_lines_of_jumps_in_boxes_of_a_few_roundings_enclose_them(op: str, dtype: torch.dtype, slack: float) -> None:
    """Where a steep line would be placed by numbers whose rounding it multiplies."""
    sample = Sample(op, (moving(1),))
    for jump in (0.0, 0.5, 10.0, 10.5, 1000.0, -123456.5, 1e6):
        for ulps in (1, 3, 1000):
            at = torch.tensor(jump, dtype=dtype)
            away = ulps * max(torch.finfo(dtype).eps * abs(jump), 1e-30)
            lower, upper = (torch.full((G, 1), float(at + side), dtype=dtype) for side in (-away, away))
            for a, b in ((lower, upper), (lower, lower * 0 + at), (upper * 0 + at, upper)):
                x = torch.stack([a, b, a * 0 + at], 1)
                f = OPS[op].forward(sample.site, x.flatten(0, 1)).double().reshape(G, 1, 3, 1)
                for free in (torch.zeros(2, G, 1, 1, dtype=dtype), torch.ones(2, G, 1, 1, dtype=dtype)):
                    below, above, _ = lines_at(sample, Interval(a, b), free, x)
                    assert (f - below).min() >= -slack and (above - f).min() >= -slack, (jump, ulps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["relu", "leaky_relu"])
def test_lines_of_kinks_in_boxes_of_any_size_enclose_them(op: str, dtype: torch.dtype) -> None:
    """Where differences of the ends overflow, one end counts for nothing beside the other, or there is none."""
    (sample,) = (sample for sample in RELAXED if sample.op == op and sample.site.attrs.get("slope", 0.0) in (0.0, 0.01))
    most, far, inf = torch.finfo(dtype).max / 1.2, torch.finfo(dtype).max ** 0.75, torch.inf
    for least, largest in (
        (-most, most),
        (-most, 0.3),
        (-1e-30, far),
        (-far, 1e-10),
        (-2, inf),
        (-inf, 0.3),
        (-inf, inf),
    ):
        lower, upper = (torch.full((G, *sample.site.shape), end, dtype=dtype) for end in (least, largest))
        ends = lower.clamp(min=-most), upper.clamp(max=most)
        x = torch.stack([*ends, 0 * lower, ends[0] / 3, ends[1] / 3, ends[0].clamp(min=-1), ends[1].clamp(max=1)], 1)
        f = OPS[op].forward(sample.site, x.flatten(0, 1)).reshape(x.shape)
        for free in free_choices(sample, Interval(lower.double(), upper.double())):
            for side, part in ((-1, 0), (1, 2)):
                slope, intercept = (
                    one.unsqueeze(2) for one in lines_of(sample, lower, upper, free.to(dtype))[part:][:2]
                )
                slack = 8 * torch.finfo(dtype).eps * torch.maximum((slope * x.unsqueeze(1)).abs(), f.abs().unsqueeze(1))
                assert not (side * (slope * x.unsqueeze(1) + intercept - f.unsqueeze(1)) < -slack).any()


@pytest.mark.parametrize("op", ["relu", "leaky_relu"])
def test_chords_of_boxes_with_an_end_that_is_not_a_number_have_none(op: str) -> None:
    sample = next(sample for sample in RELAXED if sample.op == op)
    for ends in ((math.nan, 1.0), (-1.0, math.nan), (math.nan, -1.0), (1.0, math.nan), (math.nan, math.nan)):
        lower, upper = (torch.full((G, *sample.site.shape), end, dtype=torch.float64) for end in ends)
        assert all(bool(part.isnan().all()) for part in frame_of(sample, lower, upper)[:2])


@each(RELAXED)
@pytest.mark.parametrize("kind", ["ordinary", "above", "below", "from zero", "to zero", "hundredth", "wide"])
def test_lines_touch_the_function(sample: Sample, kind: str) -> None:
    """A line that keeps away from the function everywhere would be sound and needlessly loose."""
    (box,) = boxes_at(sample, kind)
    x = grid(sample, box, 801)
    f = sample.at([x]).unsqueeze(1)
    # a tangent point lies up to half a step from a grid point: the function bends away by a second difference at most
    even = f[:, :, :801]
    second = (even[:, :, 2:] - 2 * even[:, :, 1:-1] + even[:, :, :-2]).abs().max()
    slack = (float(second) if sample.op in BENT else 0.0) + TOLERANCE * scale_of(f, x)
    for free in free_choices(sample, box):
        below, above, _ = lines_at(sample, box, free, x)
        assert (f - below).amin(2).max() <= slack
        assert (above - f).amin(2).max() <= slack


@each(RELAXED)
@each_box
def test_neurons_not_called_loose_are_exact(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    loose = relaxation(sample).loose(sample.site, sample.values, box.lower.unsqueeze(1), box.upper.unsqueeze(1))
    assert loose.dtype == torch.bool
    assert loose.shape == (G, 1, *sample.site.shape)
    x = grid(sample, box)
    f = sample.at([x])
    for free in free_choices(sample, box):
        below, above, scale = lines_at(sample, box, free, x)
        slack = TOLERANCE * max(scale, scale_of(f))
        tight = ~loose.unsqueeze(2).expand_as(below)
        exact = f.unsqueeze(1).expand_as(below)
        assert not tight.any() or ((below - exact).abs() * tight).max() <= slack
        assert not tight.any() or ((above - exact).abs() * tight).max() <= slack


@each(RELAXED)
def test_neurons_called_loose_are_not_exact(sample: Sample) -> None:
    (box,) = boxes_at(sample, "ordinary")
    x = grid(sample, box)
    loose = relaxation(sample).loose(sample.site, sample.values, box.lower.unsqueeze(1), box.upper.unsqueeze(1))
    below, above, _ = lines_at(sample, box, start_free(sample, box), x)
    gap = (above - below).amax(2)
    assert bool((gap[loose.expand_as(gap)] > 1e-12).all())


@each(RELAXED)
@each_box
def test_start_values_are_admissible(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    start = start_free(sample, box)
    assert start.shape[1:] == (G, 1, *sample.site.shape)
    assert torch.equal(admissible(sample, box, start), start)


@each(RELAXED)
def test_projecting_twice_is_projecting_once(sample: Sample) -> None:
    (box,) = boxes_at(sample, "ordinary")
    wild = 10 * torch.randn(len(start_free(sample, box)), G, 2, *sample.site.shape, dtype=torch.float64)
    wild[0, 0] = torch.nan
    once = admissible(sample, box, wild)
    assert bool(torch.isfinite(once).all())
    assert torch.equal(admissible(sample, box, once), once)
    assert not torch.equal(once[:, 1:], wild[:, 1:])


@each(RELAXED)
@pytest.mark.parametrize("kind", ["ordinary", "wide", "saturated", "lopsided"])
def test_thresholds_lie_inside_and_splitting_there_helps(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    low, high = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    relax = relaxation(sample)
    loose = relax.loose(sample.site, sample.values, low, high)
    threshold = relax.threshold(sample.site, sample.values, low, high)
    assert threshold.shape == low.shape
    assert bool(((low < threshold) & (threshold < high))[loose].all())
    if not relax.exact_split:
        return
    parts = [(low, high)]
    for _ in range(2):
        halves = []
        for a, b in parts:
            t = relax.threshold(sample.site, sample.values, a, b).clamp(a, b)
            cut = relax.loose(sample.site, sample.values, a, b)
            halves += [(a, torch.where(cut, t, b)), (torch.where(cut, t, a), b)]
        parts = halves
    assert not any(bool(relax.loose(sample.site, sample.values, a, b).any()) for a, b in parts)


@each(RELAXED)
@each_box
@each_dtype
def test_lines_have_finite_gradients(sample: Sample, kind: str, dtype: torch.dtype) -> None:
    (box,) = boxes_at(sample, kind)
    cast, leaves = trainable(sample, dtype)
    lower, upper = (end.to(dtype).requires_grad_() for end in box)
    for choice in free_choices(sample, box):
        free = choice.to(dtype, copy=True).requires_grad_()
        lines = lines_of(cast, lower, upper, free)
        assert all(bool(torch.isfinite(part).all()) for part in lines)
        loss = torch.stack([(part * torch.randn_like(part)).sum() for part in lines]).sum()
        for gradient in torch.autograd.grad(loss, [lower, upper, free, *leaves], allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()


@each([sample for sample in RELAXED if sample not in SMOOTH])
def test_gradients_of_lines_are_their_derivatives(sample: Sample) -> None:
    check_derivatives(sample, step=1e-6, tolerance=1e-5)


@each(SMOOTH)
def test_gradients_of_tangents_and_chords_are_their_derivatives(sample: Sample) -> None:
    """A tangent found by bisection is known to a few digits, so the differences are taken far apart."""
    check_derivatives(sample, step=1e-3, tolerance=1e-2)


def check_derivatives(sample: Sample, step: float, tolerance: float) -> None:
    """Central differences of all four parts of the lines in the box's ends and the free values."""
    (box,) = boxes_at(sample, "ordinary")
    free = admissible(sample, box, torch.rand_like(start_free(sample, box)) * 0.8 + 0.1)
    weights = torch.randn(4, G, 1, *sample.site.shape, dtype=torch.float64)

    def loss(lower: Tensor, upper: Tensor, alpha: Tensor) -> Tensor:
        lines = lines_of(sample, lower, upper, alpha)
        return torch.stack([(w * part).sum() for w, part in zip(weights, lines, strict=True)]).sum()

    leaves = [value.clone().requires_grad_() for value in (*box, free)]
    gradients = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
    for i, gradient in enumerate(gradients):
        move = torch.randn_like(leaves[i])
        ahead, behind = ([*(leaf.detach() for leaf in leaves)] for _ in range(2))
        ahead[i], behind[i] = ahead[i] + step * move, behind[i] - step * move
        slope = float(loss(*ahead) - loss(*behind)) / (2 * step)
        found = 0.0 if gradient is None else float((gradient * move).sum())
        assert found == pytest.approx(slope, rel=tolerance, abs=tolerance / 10)


# --- lines that count together ------------------------------------------------------------------------------------


def sums(sample: Sample, box: Interval, free: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Summed over the value's first axis: the function, the lines below and above, at x [G, n, *shape]; the size."""
    below, above, scale = lines_at(sample, box, free, x)
    return sample.at([x]).unsqueeze(1).sum(3), below.sum(3), above.sum(3), scale


@each(TOGETHER)
@each_box
def test_lines_enclose_the_function_together(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    (x,) = inside([box], 200)
    for free in free_choices(sample, box):
        f, below, above, scale = sums(sample, box, free, x)
        slack = TOLERANCE * max(scale, scale_of(f))
        assert (f - below).min() >= -slack
        assert (above - f).min() >= -slack


@each(TOGETHER)
def test_lines_touch_the_function_at_corners_together(sample: Sample) -> None:
    (box,) = boxes_at(sample, "ordinary")
    share = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
    share = share.reshape(1, 4, 2, *[1] * (len(sample.site.shape) - 1))
    x = box.lower.unsqueeze(1) + share * (box.upper - box.lower).unsqueeze(1)
    for free in (torch.zeros, torch.ones):
        f, below, above, _ = sums(sample, box, free(2, G, 1, *sample.site.shape, dtype=torch.float64), x)
        assert ((f - below).abs() < 1e-12).sum(2).min() >= 3, "a plane of McCormick's meets three corners"
        assert ((f - above).abs() < 1e-12).sum(2).min() >= 3


@each(TOGETHER)
@each_box
def test_entries_not_called_loose_are_exact_together(sample: Sample, kind: str) -> None:
    (box,) = boxes_at(sample, kind)
    fixed_half = torch.rand_like(box.lower[:, :1]) < 0.5
    upper = torch.where(torch.cat([fixed_half, ~fixed_half & (torch.rand_like(box.lower[:, :1]) < 0.5)], 1), *(
        box.lower, box.upper
    ))  # fmt: skip
    box = Interval(box.lower, upper)
    loose = sample.relaxation.loose(sample.site, sample.values, box.lower.unsqueeze(1), box.upper.unsqueeze(1))
    assert torch.equal(loose[:, :, 0], loose[:, :, 1])
    assert not bool(loose[:, 0, 0][fixed_half[:, 0]].any())
    (x,) = inside([box], 50)
    for free in free_choices(sample, box):
        f, below, above, scale = sums(sample, box, free, x)
        tight = ~loose[:, :, 0].unsqueeze(2).expand_as(below)
        slack = TOLERANCE * max(scale, scale_of(f))
        assert ((below - f).abs() * tight).max() <= slack
        assert ((above - f).abs() * tight).max() <= slack


@each(TOGETHER)
def test_start_values_are_admissible_together(sample: Sample) -> None:
    (box,) = boxes_at(sample, "ordinary")
    start = start_free(sample, box)
    assert start.shape[1:] == (G, 1, *sample.site.shape)
    assert torch.equal(admissible(sample, box, start), start)


@each(TOGETHER)
def test_gradients_of_lines_are_their_derivatives_together(sample: Sample) -> None:
    check_derivatives(sample, step=1e-6, tolerance=1e-5)


@pytest.mark.parametrize("op", ["log", "sqrt", "reciprocal"])
def test_outside_their_domain_functions_have_no_finite_lines(op: str) -> None:
    sample = Sample(op, (moving(4),))
    lower = torch.tensor([[-2.0, -1.0, -1e-300, -torch.inf]], dtype=torch.float64)
    upper = torch.tensor([[-1.0, 3.0, 1.0, torch.inf]], dtype=torch.float64)
    box = Interval(lower, upper)
    slope, below, other, above = lines_of(sample, lower, upper, start_free(sample, box))
    assert not (torch.isfinite(slope + below)).any()
    assert not (torch.isfinite(other + above)).any()


def test_the_reciprocal_of_a_box_around_zero_is_anything() -> None:
    found = Sample("reciprocal", (moving(3),)).interval(
        [Interval(torch.tensor([[-1.0, 0, -4]]), torch.tensor([[1.0, 2, -2]]))]
    )
    assert found.lower.tolist() == [[-INF, -INF, -0.5]]
    assert found.upper.tolist() == [[INF, INF, -0.25]]


# --- transposes --------------------------------------------------------------------------------------------------


def identity_rows(count: int, shape: tuple[int, ...]) -> Rows:
    return Rows(torch.arange(count).expand(G, count), torch.ones(G, count, dtype=torch.float64), shape)


def dense_rows(count: int, shape: tuple[int, ...]) -> Dense:
    value = torch.randn(G, 4, *shape, dtype=torch.float64)
    return Dense(torch.where(torch.rand_like(value) < 0.2, torch.zeros_like(value), value))


def single_rows(count: int, shape: tuple[int, ...]) -> Rows:
    return Rows(torch.randint(count, (G, 5)), torch.randn(G, 5, dtype=torch.float64), shape)


def column_rows(count: int, shape: tuple[int, ...]) -> Columns:
    index = torch.rand(G, count).argsort(1)[:, :3]
    return Columns(index, torch.randn(G, 4, index.shape[1], dtype=torch.float64), shape)


FORMS: dict[str, Callable[[int, tuple[int, ...]], LinearMap]] = {
    "dense": dense_rows,
    "rows": single_rows,
    "columns": column_rows,
}
each_form = pytest.mark.parametrize("form", FORMS)


def coefficients(maps: Sequence[LinearMap | None], sample: Sample) -> list[Tensor]:
    """Dense coefficients over the perturbed operands; a missing map is zero."""
    rows = next(m for m in maps if m is not None).rows
    return [
        torch.zeros(*rows, *o.shape, dtype=torch.float64) if m is None else m.dense()
        for m, o in zip(maps, sample.operands, strict=True)
        if o.moves
    ]


@each(AFFINE)
@each_form
def test_pulled_rows_give_the_same_numbers(sample: Sample, form: str) -> None:
    rows = FORMS[form](sample.site.node.numel, sample.site.shape)
    points = [torch.randn(G, 3, *shape, dtype=torch.float64) for shape in sample.shapes]
    wanted = torch.einsum("gsm,gnm->gsn", rows.dense().reshape(*rows.rows, -1), sample.at(points).reshape(G, 3, -1))
    maps, added = pull(sample.site, OPS[sample.op].forward, sample.values, rows)
    assert [m is not None for m, o in zip(maps, sample.operands, strict=True) if not o.moves].count(True) == 0
    found = torch.zeros_like(wanted) if added is None else added.unsqueeze(2).expand_as(wanted)
    for a, x in zip(coefficients(maps, sample), points, strict=True):
        found = found + torch.einsum("gsm,gnm->gsn", a.reshape(*rows.rows, -1), x.reshape(G, 3, -1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * (1 + scale_of(wanted)))


@each(AFFINE)
def test_forms_pass_affine_ops_by_the_signs_of_their_jacobian(sample: Sample) -> None:
    """max(J, 0) L + min(J, 0) U below, max(J, 0) U + min(J, 0) L above, and the value at zero."""
    site, op = sample.site, OPS[sample.op]
    ends = [torch.randn(2, G, 4, *shape, dtype=torch.float64) for shape in sample.shapes]
    exact = [torch.randn(G, 4, *shape, dtype=torch.float64) for shape in sample.shapes]
    maps, added = transpose(site, op.forward, sample.values, identity_rows(site.node.numel, site.shape))
    jacobian = [a.reshape(G, site.node.numel, -1) for a in coefficients(maps, sample)]
    constant = torch.zeros(G, 1, site.node.numel, dtype=torch.float64) if added is None else added.unsqueeze(1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)[:, None] * constant

    def through(part: Callable[[Tensor], Tensor], columns: list[Tensor]) -> Tensor:
        flat = [c.reshape(G, 4, -1) for c in columns]
        return torch.stack([c @ part(j).transpose(1, 2) for j, c in zip(jacobian, flat, strict=True)]).sum(0)

    def rising(j: Tensor) -> Tensor:
        return j.clamp(min=0)

    def falling(j: Tensor) -> Tensor:
        return j.clamp(max=0)

    low, high = [end[0] for end in ends], [end[1] for end in ends]
    cases = [
        ([Form(a, b) for a, b in zip(low, high, strict=True)], (low, high)),
        ([Form(a, a) for a in exact], (exact, exact)),
    ]
    for forms, (below, above) in cases:
        found = affine(Step(site, op, sample.perturbed), sample.values, forms)
        lower = through(rising, below) + through(falling, above) + last
        upper = through(rising, above) + through(falling, below) + last
        slack = 1e-10 * (1 + scale_of(lower, upper))
        torch.testing.assert_close(found.lower.reshape(G, 4, -1), lower, rtol=0, atol=slack)
        torch.testing.assert_close(found.upper.reshape(G, 4, -1), upper, rtol=0, atol=slack)
        assert (found.lower is found.upper) == (below is above)


ADDED = {"linear": (2,), "conv2d": (2,), "conv_transpose2d": (2,), "batch_norm": (2, 3), "add": (0, 1), "sub": (0, 1)}
"""Operands that are only added."""


@each([sample for sample in AFFINE if sample.op in ADDED and len(sample.shapes) == 1])
def test_what_is_added_costs_forms_no_digits(sample: Sample) -> None:
    """Columns of an op that adds much are those of the op that adds nothing."""
    offsets = ADDED[sample.op]
    columns = torch.randn(2, G, 4, *sample.shapes[0], dtype=torch.float64)
    columns[:, :, -1] = 0
    found = []
    for size in (0.0, 1e12):
        values = [
            torch.full_like(v, size) if v is not None and place in offsets else v
            for place, v in enumerate(sample.values)
        ]
        form = affine(Step(sample.site, OPS[sample.op], sample.perturbed), values, [Form(*columns)])
        found.append(torch.stack(form)[:, :, :-1])
    assert torch.equal(*found)


@each([sample for sample in AFFINE if sample.op == "linear"])
@each_form
def test_entries_that_are_zero_may_be_left_out(sample: Sample, form: str) -> None:
    """Rows over the live entries of the operand have the full ones' coefficients there."""
    rows = FORMS[form](sample.site.node.numel, sample.site.shape)
    live = torch.rand(G, math.prod(sample.shapes[0])).argsort(1)[:, :2]
    (full, *_), wanted = pull(sample.site, OPS[sample.op].forward, sample.values, rows)
    (part, *_), added = pull(sample.site, OPS[sample.op].forward, sample.values, rows, live)
    assert full is not None and part is not None
    assert (wanted is None) == (added is None)
    if wanted is not None and added is not None:
        torch.testing.assert_close(added, wanted, rtol=0, atol=1e-10)
    at = live.unsqueeze(1).expand(*rows.rows, 2)
    found, known = (merged(a.dense(), 2).gather(2, at) for a in (part, full))
    torch.testing.assert_close(found, known, rtol=0, atol=1e-10)
    assert part.rows == rows.rows and part.shape == sample.shapes[0]


@each(AFFINE)
@each_form
def test_fast_transpose_equals_the_derived_one(sample: Sample, form: str) -> None:
    """Values and gradients with respect to parameters, to 1e-10."""
    torch.manual_seed(3)
    rows = FORMS[form](sample.site.node.numel, sample.site.shape)
    weights = [torch.randn(*rows.rows, *shape, dtype=torch.float64) for shape in sample.shapes]
    results = []
    for way in (pull, lambda *args: transpose(*args)):
        cast, leaves = trainable(sample, torch.float64)
        maps, added = way(cast.site, OPS[cast.op].forward, cast.values, rows)
        constant = torch.zeros(rows.rows, dtype=torch.float64) if added is None else added
        found = coefficients(maps, sample)
        loss = torch.stack([(w * a).sum() for w, a in zip(weights, found, strict=True)]).sum() + 2 * constant.sum()
        gradients: Sequence[Tensor | None] = []
        if leaves and loss.requires_grad:
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        zero = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=False)]
        results.append([*(part.detach() for part in (*found, constant)), *(zero or map(torch.zeros_like, leaves))])
    for fast, derived in zip(*results, strict=True):
        assert torch.isfinite(fast).all()
        torch.testing.assert_close(fast, derived, rtol=0, atol=1e-10 * (1 + scale_of(derived)))


def test_a_bilinear_op_is_affine_in_one_operand_only() -> None:
    assert OPS["mul"].affine((True, False)) and OPS["mul"].affine((False, True))
    for op in ("mul", "matmul", "linear", "conv2d"):
        assert not OPS[op].affine((True, True, False))
    assert not OPS["div"].affine((False, True))
    assert not OPS["where"].affine((True, False, False))
    assert not OPS["batch_norm"].affine((True, True, False, False, False))
    for op in ("relu", "leaky_relu", "clip", "sigmoid", "tanh", "max_pool2d"):
        assert not OPS[op].affine((True,)) and OPS[op].affine((False,))
