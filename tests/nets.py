"""Small random networks, written down node by node, and regions for their inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from surebound.graph.ir import FixedParameters, Graph, Node, Site
from surebound.graph.prepare import prepare
from surebound.ops import OPS
from surebound.regions import Box, LpBall, Region

ARITHMETIC = ("add", "sub", "mul", "div", "where", "max_merge", "maximum", "minimum", "at_least")


def result_shape(op: str, operands: Sequence[Node], values: Sequence[Tensor], attrs: dict[str, Any]) -> tuple[int, ...]:
    """Per-sample shape of an op's value, found by running it."""
    guess = operands[0].shape
    if op in ARITHMETIC:
        guess = tuple(torch.broadcast_shapes(*(node.shape for node in operands)))
    batched = any(node.batched for node in operands)
    site = Site(Node("result", op, tuple(n.name for n in operands), attrs, guess, batched), tuple(operands))
    return tuple(OPS[op].forward(site, *values).shape[int(batched) :])


class Builder:
    """Collects nodes; every method returns the name of the node it adds."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes: dict[str, Node] = {}
        self.tensors: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self.generator)

    def put(self, node: Node, value: Tensor) -> str:
        self.nodes[node.name] = node
        self.values[node.name] = value
        return node.name

    def input(self, *shape: int, name: str = "x") -> str:
        return self.put(Node(name, "input", shape=shape), self.randn(2, *shape))

    def param(self, tensor: Tensor) -> str:
        name = f"p{len(self.nodes)}"
        self.tensors[name] = tensor
        return self.put(Node(name, "parameter", shape=tuple(tensor.shape), batched=False), tensor)

    def op(self, op: str, *inputs: str, name: str = "", **attrs: Any) -> str:
        operands = [self.nodes[i] for i in inputs]
        values = [self.values[i] for i in inputs]
        shape = result_shape(op, operands, values, attrs)
        batched = any(node.batched for node in operands)
        node = Node(name or f"{op}{len(self.nodes)}", op, inputs, attrs, shape, batched, f"line {len(self.nodes)}")
        return self.put(node, OPS[op].forward(Site(node, tuple(operands)), *values))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.nodes[name].shape

    def linear(self, x: str, out: int, bias: bool = True, name: str = "") -> str:
        fan = self.shape(x)[-1]
        extra = (self.param(self.randn(out) * 0.3),) if bias else ()
        return self.op("linear", x, self.param(self.randn(out, fan) * (1.5 / fan**0.5)), *extra, name=name)

    def conv(
        self,
        x: str,
        out: int,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
    ) -> str:
        channels = self.shape(x)[0] // groups
        fan = channels * kernel[0] * kernel[1]
        weight = self.param(self.randn(out, channels, *kernel) * (1.5 / fan**0.5))
        extra = (self.param(self.randn(out) * 0.3),) if bias else ()
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return self.op("conv2d", x, weight, *extra, **attrs)

    def norm(self, x: str) -> str:
        count = self.shape(x)[0]
        statistics = (self.randn(count), self.randn(count) * 0.3, self.randn(count) * 0.3, self.rand(count) + 0.3)
        return self.op("batch_norm", x, *(self.param(value) for value in statistics), eps=1e-3)

    def flat(self, x: str) -> str:
        return self.op("reshape", x, shape=(self.nodes[x].numel,))

    def graph(self, *outputs: str) -> Graph:
        nodes = tuple(self.nodes.values())
        inputs = tuple(node.name for node in nodes if node.op == "input")
        return Graph(nodes, inputs, outputs, OPS, FixedParameters(self.tensors))


def mlp(seed: int = 0, sizes: Sequence[int] = (4, 6, 5, 3), act: str = "relu", **attrs: Any) -> Graph:
    """Linear layers with an activation between; the second has no bias."""
    b = Builder(seed)
    x = b.input(sizes[0])
    for i, size in enumerate(sizes[1:]):
        x = b.linear(x, size, bias=i != 1, name=f"z{i + 1}")
        if i < len(sizes) - 2:
            x = b.op(act, x, name=f"a{i + 1}", **attrs)
    return b.graph(x)


def conv(seed: int = 0) -> Graph:
    """Strides, paddings, dilation and groups."""
    b = Builder(seed)
    x = b.input(2, 5, 6)
    x = b.op("relu", b.conv(x, 4, (3, 2), (2, 1), (1, 0)))
    x = b.op("relu", b.conv(x, 4, (2, 3), (1, 2), (0, 2), (1, 2), groups=2, bias=False))
    return b.graph(b.linear(b.flat(x), 3))


def batch_norm(seed: int = 0) -> Graph:
    """Batch norm of feature maps and of vectors."""
    b = Builder(seed)
    x = b.input(2, 4, 4)
    x = b.op("relu", b.norm(b.conv(x, 3, stride=(2, 2), padding=(1, 1))))
    x = b.op("relu", b.norm(b.linear(b.flat(x), 4)))
    return b.graph(b.linear(x, 3))


def residual(seed: int = 0) -> Graph:
    """Skips by add and sub, a node read twice by one op, a negation."""
    b = Builder(seed)
    x = b.input(4)
    h = b.op("relu", b.linear(x, 4))
    s = b.op("add", b.linear(h, 4), x)
    t = b.op("relu", s)
    u = b.op("sub", b.linear(t, 4), b.op("neg", h))
    v = b.op("add", b.op("relu", u), b.op("add", t, t))
    return b.graph(b.linear(v, 3))


def leaky(seed: int = 0) -> Graph:
    """Slopes below 0, between 0 and 1, and above 1."""
    b = Builder(seed)
    x = b.input(4)
    for slope in (0.1, -0.3, 1.6):
        x = b.op("leaky_relu", b.linear(x, 4), slope=slope)
    return b.graph(b.linear(x, 3))


def clip(seed: int = 0) -> Graph:
    """Two-sided and one-sided clips."""
    b = Builder(seed)
    x = b.input(4)
    for low, high in ((-0.3, 0.4), (0.1, float("inf")), (float("-inf"), 0.5)):
        x = b.op("clip", b.linear(x, 5), min=low, max=high)
    return b.graph(b.linear(x, 3))


def average(seed: int = 0) -> Graph:
    """Average pooling with and without padding in the count, and a global average."""
    b = Builder(seed)
    x = b.input(2, 5, 5)
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 1), "ceil_mode": False}
    x = b.op("relu", b.conv(x, 3, padding=(1, 1)))
    x = b.op("avg_pool2d", x, count_include_pad=False, **pool)
    x = b.op("relu", b.conv(x, 3, (2, 2)))
    x = b.op("avg_pool2d", x, count_include_pad=True, **pool)
    x = b.op("mean", x, axes=(1, 2), keepdim=False)
    return b.graph(b.linear(x, 3))


def shapes(seed: int = 0) -> Graph:
    """Padding with a value, concatenation with a constant, slices, gathers, sums, means, where, expand."""
    b = Builder(seed)
    x = b.input(2, 3)
    p = b.op("pad", x, pads=((0, 1), (1, 0)), value=0.3)
    h = b.op("relu", b.linear(p, 4))
    t = b.op("transpose", h, perm=(1, 0))
    c = b.op("concat", t, b.param(b.randn(4, 2)), axis=1)
    s = b.op("slice", c, axis=1, start=0, stop=5, step=2)
    g = b.op("gather", s, axis=0, indices=(3, 0, 0, 1))
    w = b.op("where", b.param(b.rand(4, 1) > 0.5), g, b.param(b.randn(3)))
    r = b.op("relu", b.linear(w, 3))
    m = b.op("mean", r, axes=(0,), keepdim=True)
    e = b.op("expand", m, shape=(4, 3))
    total = b.op("sum", b.op("relu", b.op("sub", r, e)), axes=(1,), keepdim=False)
    return b.graph(b.linear(total, 3))


def scaled(seed: int = 0) -> Graph:
    """Products and quotients with constants that broadcast, on both sides; a constant minus a value."""
    b = Builder(seed)
    x = b.input(2, 3)
    m = b.op("mul", b.param(b.randn(3)), x)
    d = b.op("div", m, b.param(b.rand(2, 1) + 0.5))
    k = b.op("sub", b.param(b.randn(2, 3)), d)
    h = b.op("relu", b.linear(k, 3))
    e = b.op("mul", b.op("reshape", h, shape=(2, 1, 3)), b.param(b.randn(2, 2, 1)))
    return b.graph(b.linear(b.flat(b.op("relu", e)), 3))


def matmul(seed: int = 0) -> Graph:
    """Products with a constant matrix from either side."""
    b = Builder(seed)
    x = b.input(3, 2)
    h = b.op("relu", b.op("matmul", b.param(b.randn(4, 3)), x))
    k = b.op("relu", b.op("matmul", h, b.param(b.randn(2, 3))))
    return b.graph(b.linear(b.flat(k), 3))


def graft(seed: int = 0) -> Graph:
    """Some neurons replaced by lines."""
    b = Builder(seed)
    x = b.input(4)
    for _ in range(2):
        line = (b.param(b.rand(5) > 0.5), b.param(b.randn(5) * 0.6), b.param(b.randn(5) * 0.3))
        x = b.op("graft", b.linear(x, 5), *line)
    return b.graph(b.linear(x, 3))


def gate(seed: int = 0) -> Graph:
    """Neurons between ReLU and line."""
    b = Builder(seed)
    x = b.input(4)
    for _ in range(2):
        line = (b.param(b.rand(5)), b.param(b.randn(5) * 0.6), b.param(b.randn(5) * 0.3))
        x = b.op("gate", b.linear(x, 5), *line)
    return b.graph(b.linear(x, 3))


def merged(seed: int = 0) -> Graph:
    """A maximum in its expanded form: b + relu(a - b)."""
    b = Builder(seed)
    x = b.input(4)
    left, right = b.linear(x, 4), b.linear(x, 4)
    rest = b.op("relu", b.op("sub", left, right))
    h = b.op("max_merge", right, rest, left)
    return b.graph(b.linear(b.op("relu", b.linear(h, 4)), 3))


def floors(seed: int = 0) -> Graph:
    """Maxima with constants of their own for every neuron, for every column, for all."""
    b = Builder(seed)
    x = b.input(2, 3)
    for shape in ((2, 4), (4,), ()):
        x = b.op("at_least", b.linear(x, 4), b.param(b.randn(1, *shape)[0] * 0.3))
    return b.graph(b.linear(b.flat(x), 3))


def scalar(seed: int = 0) -> Graph:
    """A node with one value per sample and an empty shape."""
    b = Builder(seed)
    x = b.input(4)
    total = b.op("sum", b.op("relu", b.linear(x, 3)), axes=(0,), keepdim=False)
    bent = b.op("relu", b.op("sub", total, b.param(torch.tensor(1.0, dtype=torch.float64))))
    return b.graph(b.linear(b.op("reshape", bent, shape=(1,)), 3))


def curved(seed: int = 0) -> Graph:
    """One neuron, or two, of each smooth function and of two that jump; a transposed convolution."""
    b = Builder(seed)
    x = b.linear(b.input(4), 6)
    above = b.op("add", b.op("square", b.linear(x, 3)), b.param(torch.tensor(0.3, dtype=torch.float64)))
    parts = [b.op(op, b.linear(x, 2, bias=False)) for op in ("erf", "exp", "softplus", "elu", "sin", "cos")]
    parts += [b.op(op, b.linear(x, 2, bias=False)) for op in ("atan", "sign", "floor", "ceil", "round")]
    parts += [b.op(op, above) for op in ("log", "sqrt", "reciprocal")]
    wide = b.op("reshape", b.linear(b.op("concat", *parts, axis=0), 4), shape=(1, 2, 2))
    attrs = {"stride": (1, 1), "padding": (0, 0), "output_padding": (0, 0), "dilation": (1, 1), "groups": 1}
    image = b.op("conv_transpose2d", wide, b.param(b.randn(1, 1, 2, 2)), **attrs)
    return b.graph(b.linear(b.flat(b.op("relu", image)), 3))


def products(seed: int = 0) -> Graph:
    """Attention over two tokens and a gate, in the form that is bounded."""
    b = Builder(seed)
    tokens = b.op("reshape", b.linear(b.input(4), 4), shape=(2, 2))
    query, key, value = (b.linear(tokens, 2) for _ in range(3))
    scores = b.op("matmul", query, b.op("transpose", key, perm=(1, 0)))
    mixed = b.flat(b.op("matmul", b.op("softmax", scores, axis=1), value))
    return prepare(b.graph(b.linear(b.op("mul", mixed, b.op("sigmoid", b.linear(mixed, 4))), 3)))


def affine(seed: int = 0) -> Graph:
    """No activation at all."""
    b = Builder(seed)
    return b.graph(b.linear(b.linear(b.input(4), 5), 3))


NETS: dict[str, Callable[[int], Graph]] = {
    "mlp": mlp,
    "conv": conv,
    "batch_norm": batch_norm,
    "residual": residual,
    "leaky": leaky,
    "clip": clip,
    "sigmoid": lambda seed=0: mlp(seed, act="sigmoid"),
    "tanh": lambda seed=0: mlp(seed, act="tanh"),
    "average": average,
    "shapes": shapes,
    "scaled": scaled,
    "matmul": matmul,
    "graft": graft,
    "gate": gate,
    "merged": merged,
    "floors": floors,
    "scalar": scalar,
    "affine": affine,
}
"""Networks of one input and one output vector of three values, by name; the argument is a seed."""


BENT: dict[str, Callable[[int], Graph]] = {"curved": curved, "products": products}
"""The same of smooth functions and products."""


def tiny(seed: int, sizes: Sequence[int] = (2, 4, 4, 2), skip: bool = False) -> Graph:
    """A ReLU network of linear, relu and add for the exact oracles; `skip` adds the first hidden layer back."""
    b = Builder(seed)
    x = b.linear(b.input(sizes[0]), sizes[1], name="z1")
    first = x = b.op("relu", x, name="a1")
    for i, size in enumerate(sizes[2:-1]):
        x = b.linear(x, size, name=f"z{i + 2}")
        x = b.op("relu", x, name=f"a{i + 2}")
    if skip:
        x = b.op("add", x, first, name="joined")
    return b.graph(b.linear(x, sizes[-1], name="y"))


def region(kind: str, shape: tuple[int, ...], groups: int = 3, seed: int = 0, size: float = 1.5) -> Region:
    """Inputs around random centres, each group with a size of its own: "box", "l2" or "l1"."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(groups, *shape, dtype=torch.float64, generator=generator)
    spread = size * (0.3 + torch.arange(groups, dtype=torch.float64)) / groups
    if kind == "box":
        noise = torch.rand(2, groups, *shape, dtype=torch.float64, generator=generator)
        reach = spread.reshape(-1, *([1] * len(shape)))
        return Box(centre - reach * noise[0], centre + reach * noise[1])
    p = {"l1": 1, "l2": 2}[kind]
    limits = centre - spread.max() * 0.8, centre + spread.max() * 0.5
    return LpBall(centre, spread * 2, p, *limits)


def spec_of(graph: Graph, rows: int = 4, groups: int = 1, seed: int = 0) -> Tensor:
    """Random rows over the output and their negatives, [groups, 2 rows, *output shape]."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(groups, rows, *graph.output.shape, dtype=torch.float64, generator=generator)
    return torch.cat([half, -half], 1)
