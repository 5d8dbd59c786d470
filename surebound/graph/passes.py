"""Named rewrites: each takes a graph and returns another one that computes the same outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from surebound.errors import UnsupportedOp
from surebound.graph.check import check
from surebound.graph.ir import SOURCES, Graph, Node
from surebound.graph.names import taken

Shape = tuple[int, ...]
Pair = tuple[int, int]

BENT = frozenset(
    {
        *("sigmoid", "tanh", "erf", "atan", "exp", "log", "sqrt", "square", "reciprocal", "softplus", "elu"),
        *("sin", "cos", "sign", "floor", "ceil", "round"),
    }
)
UNARY = frozenset({"relu", "leaky_relu", "clip", "neg"}) | BENT
ACTIVATED = frozenset({"graft", "gate", "max_merge", "at_least"})
ELEMENTWISE = UNARY | ACTIVATED | {"add", "sub", "mul", "div", "maximum", "minimum", "where"}
"""Ops that treat every position alike, apart from broadcasting."""


def drop_unused(graph: Graph) -> Graph:
    """Without the nodes that no output needs; inputs stay."""
    needed = graph.ancestors(graph.outputs) | set(graph.inputs)
    return check(graph.with_nodes([node for node in graph.nodes if node.name in needed]))


def settled(graph: Graph) -> tuple[Graph, tuple[str, ...]]:
    """The graph with parameters in the place of what is computed from parameters alone (masked weights), and their
    names, so that it is computed once per step.
    """
    made = {node.name for node in graph if not node.batched and node.op != "parameter"}
    read = tuple(dict.fromkeys(name for node in graph if node.batched for name in node.inputs if name in made))
    nodes = [
        replace(node, op="parameter", inputs=(), attrs={}) if node.name in read else node
        for node in graph
        if node.name not in made or node.name in read
    ]
    return drop_unused(graph.with_nodes(nodes)), read


# ---------------------------------------------------------------- grafts


def recognise_grafts(graph: Graph) -> Graph:
    """where(mask, line, relu(x)) becomes one node `graft`, which keeps the name of the where, for the lines
    x slope + intercept, x slope - intercept, x slope and a constant; line + g (relu(x) - line) with
    line = x slope + intercept becomes a node `gate` with the name of the sum.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        found = grafted(graph, node)
        nodes += [gated(graph, node)] if found is None else found
    return drop_unused(graph.with_nodes(nodes))


def grafted(graph: Graph, node: Node) -> list[Node] | None:
    """The graft that a where node computes, behind what its line needs besides; None for other nodes."""
    if node.op != "where":
        return None
    mask, line, relu = graph.operands(node)
    if relu.op != "relu" or mask.batched or graph[relu.inputs[0]].shape != node.shape:
        return None
    (x,) = relu.inputs
    made: list[Node] = []

    def helper(op: str, *inputs: str) -> str:
        made.append(Node(f"{node.name}//{op}", op, inputs, {}, graph[inputs[0]].shape, False, node.origin))
        return made[-1].name

    found = line_over(graph, line, x) if line.op == "add" else None
    if found is None and not line.batched:
        found = helper("sub", line.name, line.name), line.name
    if found is None and (slope := slope_over(graph, line, x)):
        found = slope, helper("sub", slope, slope)
    if found is None and line.op == "sub":
        product, intercept = graph.operands(line)
        slope = slope_over(graph, product, x)
        found = (slope, helper("neg", intercept.name)) if slope and not intercept.batched else None
    return None if found is None else [*made, replace(node, op="graft", inputs=(x, mask.name, *found))]


def slope_over(graph: Graph, node: Node, x: str) -> str | None:
    """The slope where a node is x slope, with a slope that is not batched."""
    if node.op == "mul":
        for factor, slope in ordered(graph.operands(node)):
            if factor.name == x and not slope.batched:
                return slope.name
    return None


def gated(graph: Graph, node: Node) -> Node:
    """The gate that a sum computes, or the node itself."""
    if node.op != "add":
        return node
    for line, product in ordered(graph.operands(node)):
        if line.op != "add" or product.op != "mul":
            continue
        for gate, gap in ordered(graph.operands(product)):
            if gate.batched or gap.op != "sub" or gap.inputs[1] != line.name or graph[gap.inputs[0]].op != "relu":
                continue
            (x,) = graph[gap.inputs[0]].inputs
            found = line_over(graph, line, x)
            if found is not None and graph[x].shape == node.shape:
                return replace(node, op="gate", inputs=(x, gate.name, *found))
    return node


def line_over(graph: Graph, node: Node, x: str) -> tuple[str, str] | None:
    """Slope and intercept where a sum is x slope + intercept, neither of them batched."""
    for product, intercept in ordered(graph.operands(node)):
        slope = slope_over(graph, product, x)
        if slope is not None and not intercept.batched:
            return slope, intercept.name
    return None


def ordered(pair: Sequence[Node]) -> tuple[tuple[Node, Node], tuple[Node, Node]]:
    """Both orders of two operands."""
    a, b = pair
    return (a, b), (b, a)


# ---------------------------------------------------------------- biases


def fuse_biases(graph: Graph) -> Graph:
    """add(linear(x, W), b) with b of shape (out,) becomes linear(x, W, b), which keeps the name of the add."""
    return drop_unused(graph.with_nodes([with_bias(graph, node) for node in graph.nodes]))


def with_bias(graph: Graph, node: Node) -> Node:
    """The linear layer that an add completes, or the node itself."""
    if node.op != "add":
        return node
    for layer, bias in ordered(graph.operands(node)):
        alone = graph.consumers[layer.name] == (node.name,) and layer.name not in graph.outputs
        open_layer = layer.op == "linear" and len(layer.inputs) == 2 and layer.shape == node.shape
        if open_layer and alone and not bias.batched and bias.shape == node.shape[-1:]:
            return replace(node, op="linear", inputs=(*layer.inputs, bias.name))
    return node


# ---------------------------------------------------------------- reshapes


@dataclass(frozen=True)
class View:
    """A value as another node's value in another shape; `label` is the reshape node that said so."""

    base: Node
    shape: Shape
    label: Node | None = None

    @property
    def plain(self) -> bool:
        """No reshape at all."""
        return self.base.shape == self.shape

    @property
    def dropped(self) -> int:
        """How many leading axes of size 1 the shape has on top of the base's; 0 when that is not the difference."""
        extra = len(self.shape) - len(self.base.shape)
        return extra if extra > 0 and self.shape == (1,) * extra + self.base.shape else 0


@dataclass
class Rewriting:
    """The nodes of the new graph so far, and what each old name has become."""

    used: set[str]
    nodes: list[Node] = field(default_factory=list)
    views: dict[str, View] = field(default_factory=dict)
    made: dict[tuple[str, Shape], Node] = field(default_factory=dict)
    emitted: set[str] = field(default_factory=set)

    def append(self, node: Node) -> Node:
        """Add a node."""
        self.nodes.append(node)
        self.emitted.add(node.name)
        return node

    def shaped(self, base: Node, shape: Shape, label: Node | None = None) -> Node:
        """The base itself or a reshape of it, made once."""
        if base.shape == shape:
            return base
        if (base.name, shape) not in self.made:
            own = label is not None and label.shape == shape and label.name not in self.emitted
            name = label.name if own and label is not None else taken(f"{base.name}.view", self.used)
            origin = base.origin if label is None else label.origin
            node = Node(name, "reshape", (base.name,), {"shape": shape}, shape, base.batched, origin)
            self.made[base.name, shape] = self.append(node)
        return self.made[base.name, shape]

    def value(self, name: str) -> Node:
        """The node that holds an old node's value in its old shape."""
        view = self.views[name]
        return self.shaped(view.base, view.shape, view.label)


Move = Callable[[Rewriting, Node, Sequence[View]], "Node | None"]
"""Puts an op on top of the bases of its operands; None when that is not possible."""


def fold_reshapes(graph: Graph) -> Graph:
    """Consecutive reshapes merged, those that change nothing dropped."""
    return viewed(graph, ())


def sink_reshapes(graph: Graph) -> Graph:
    """Reshapes moved below element-wise ops (and, for leading axes of size 1, below ops with axes), merged, dropped.

    An output keeps its name and shape unless it is itself a reshape that vanishes.
    """
    return viewed(graph, (trailing, alike, shifted))


def viewed(graph: Graph, moves: Sequence[Move]) -> Graph:
    """Walk the graph with reshapes remembered instead of emitted, and emit them where an op needs them."""
    new = Rewriting({node.name for node in graph.nodes})
    for node in graph.nodes:
        if node.op == "reshape":
            operand = new.views[node.inputs[0]]
            view = View(operand.base, node.shape, node)
            new.views[node.name] = view
            if node.name in graph.outputs:
                new.value(node.name)
            continue
        new.views[node.name] = placed(new, node, () if node.name in graph.outputs else moves)
    outputs = [new.value(name).name for name in graph.outputs]
    return drop_unused(graph.with_nodes(new.nodes, outputs))


def placed(new: Rewriting, node: Node, moves: Sequence[Move]) -> View:
    """The node on top of its operands' bases when a move allows it, else on top of their values."""
    if node.op in SOURCES:
        return View(new.append(node), node.shape)
    views = [new.views[name] for name in node.inputs]
    if any(view.base.batched and not view.plain for view in views):
        for move in moves:
            moved = move(new, node, views)
            if moved is not None:
                return View(new.append(moved), node.shape)
    return View(new.append(replace(node, inputs=tuple(new.value(name).name for name in node.inputs))), node.shape)


def core(shape: Shape) -> Shape:
    """The shape without leading axes of size 1."""
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def trailing(new: Rewriting, node: Node, views: Sequence[View]) -> Node | None:
    """Element-wise ops when bases and views differ in leading axes of size 1 only: broadcasting ignores those."""
    batched = [view for view in views if view.base.batched]
    if node.op not in ELEMENTWISE or any(core(view.base.shape) != core(view.shape) for view in batched):
        return None
    rank = len(batched[0].base.shape)
    if any(len(view.base.shape) != rank for view in batched) or len(core(node.shape)) > rank:
        return None
    inputs = [
        view.base if view.base.batched else new.shaped(view.base, view.shape[max(len(view.shape) - rank, 0) :])
        for view in views
    ]
    shape = (1,) * (rank - len(node.shape)) + node.shape[max(len(node.shape) - rank, 0) :]
    return replace(node, inputs=tuple(value.name for value in inputs), shape=shape)


def alike(new: Rewriting, node: Node, views: Sequence[View]) -> Node | None:
    """Element-wise ops on equal reshapes of values of one shape; constants of one number or of the full shape."""
    batched = [view for view in views if view.base.batched]
    shape = batched[0].base.shape
    if node.op not in ELEMENTWISE or any(view.base.shape != shape or view.shape != node.shape for view in batched):
        return None
    inputs: list[Node] = []
    for view in views:
        if view.base.batched:
            inputs.append(view.base)
        elif math.prod(view.shape) == 1:
            inputs.append(new.shaped(view.base, view.shape if len(view.shape) <= len(shape) else ()))
        elif view.shape == node.shape:
            inputs.append(new.shaped(view.base, shape))
        else:
            return None
    return replace(node, inputs=tuple(value.name for value in inputs), shape=shape)


def shifted(new: Rewriting, node: Node, views: Sequence[View]) -> Node | None:
    """Ops with axes when every operand has the same leading axes of size 1 too many: the axes count from there."""
    lead = next(view.dropped for view in views if view.base.batched)
    attrs = attributes_without(node, lead) if lead else None
    if attrs is None or any(view.dropped != lead for view in views if view.base.batched):
        return None
    if any(view.shape[:lead] != (1,) * lead for view in views) or node.shape[:lead] != (1,) * lead:
        return None
    inputs = [new.shaped(view.base, view.shape[lead:]) for view in views]
    return replace(node, inputs=tuple(value.name for value in inputs), attrs=attrs, shape=node.shape[lead:])


def attributes_without(node: Node, lead: int) -> Mapping[str, Any] | None:
    """The attributes for operands without their first `lead` axes (of size 1); None when the op uses those."""
    a = node.attrs
    if node.op in ("concat", "slice", "gather"):
        return {**a, "axis": a["axis"] - lead} if a["axis"] >= lead else None
    if node.op in ("sum", "mean"):
        usable = all(axis >= lead for axis in a["axes"])
        return {**a, "axes": tuple(axis - lead for axis in a["axes"])} if usable else None
    if node.op == "pad":
        return {**a, "pads": a["pads"][lead:]} if all(tuple(pair) == (0, 0) for pair in a["pads"][:lead]) else None
    if node.op == "transpose":
        fixed = tuple(a["perm"][:lead]) == tuple(range(lead))
        return {**a, "perm": tuple(axis - lead for axis in a["perm"][lead:])} if fixed else None
    return None


# ---------------------------------------------------------------- maximum as relu


def expand_max(graph: Graph) -> Graph:
    """maximum, minimum and max_pool2d written with relu:  max(a, b) = b + relu(a - b).

    The sum is a node `max_merge` over (b, relu(a - b), a), whose interval is the exact maximum;
    min(a, b) = -max(-a, -b). Pooling takes the maximum along W, then along H, pair by pair. With a constant c,
    which the sum could drown a in, max(a, c) is a node `at_least`.
    """
    return expanded(graph, EXPANSIONS)


def expanded(graph: Graph, table: Mapping[str, Expand]) -> Graph:
    """The graph with what the table makes of its nodes; the last node made takes the name of the one it replaces."""
    new = Rewriting({node.name for node in graph.nodes})
    for node in graph.nodes:
        rule = table.get(node.op) if node.batched else None
        result = None if rule is None else rule(Expansion(new, node), graph.operands(node))
        if result is None:
            new.append(node)
        else:
            new.nodes[-1] = replace(result, name=node.name)
    return check(graph.with_nodes(new.nodes))


Expand = Callable[["Expansion", Sequence[Node]], "Node | None"]
"""Emits what a node becomes and returns the last of it; None leaves the node as it is."""


@dataclass(frozen=True)
class Expansion:
    """Emits the nodes that replace `node`, named after it."""

    new: Rewriting
    node: Node

    def emit(self, op: str, operands: Sequence[Node], shape: Shape, attrs: Mapping[str, Any] | None = None) -> Node:
        """Append a node named `<node>.<op>`."""
        name = taken(f"{self.node.name}.{op}", self.new.used)
        inputs = tuple(operand.name for operand in operands)
        batched = any(operand.batched for operand in operands)
        return self.new.append(Node(name, op, inputs, attrs or {}, shape, batched, self.node.origin))

    def lifted(self, x: Node) -> Node:
        """x with as many axes as the node, so that sample axes line up."""
        missing = len(self.node.shape) - len(x.shape)
        return self.reshaped(x, (1,) * missing + x.shape) if x.batched else x

    def reshaped(self, x: Node, shape: Shape) -> Node:
        """x in another shape."""
        return x if x.shape == shape else self.emit("reshape", (x,), shape, {"shape": shape})

    def spread(self, x: Node, shape: Shape) -> Node:
        """x repeated along its axes of size 1."""
        return x if x.shape == shape else self.emit("expand", (x,), shape, {"shape": shape})

    def negative(self, x: Node) -> Node:
        return self.emit("neg", (x,), x.shape)

    def larger(self, a: Node, b: Node) -> Node:
        """max(a, b), with broadcasting."""
        a, b = self.lifted(a), self.lifted(b)
        shape = tuple(max(pair) if 0 not in pair else 0 for pair in aligned_sizes(a.shape, b.shape))
        if not (a.batched and b.batched):
            x, c = (a, b) if a.batched else (b, a)
            return self.emit("at_least", (self.spread(x, shape), c), shape)
        ahead = self.emit("relu", (self.emit("sub", (a, b), shape),), shape)
        return self.emit("max_merge", (b, ahead, a), shape)


def aligned_sizes(a: Shape, b: Shape) -> list[Pair]:
    """Sizes of two shapes axis by axis, aligned at the end."""
    rank = max(len(a), len(b))
    return list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))


def expand_maximum(expansion: Expansion, operands: Sequence[Node]) -> Node:
    a, b = operands
    return expansion.larger(a, b)


def expand_minimum(expansion: Expansion, operands: Sequence[Node]) -> Node:
    a, b = operands
    return expansion.negative(expansion.larger(expansion.negative(a), expansion.negative(b)))


def expand_pool(expansion: Expansion, operands: Sequence[Node]) -> Node:
    node, (x,) = expansion.node, operands
    a = node.attrs

    def gather(value: Node, axis: int, indices: tuple[int, ...]) -> Node:
        shape = (*value.shape[:axis], len(indices), *value.shape[axis + 1 :])
        return expansion.emit("gather", (value,), shape, {"axis": axis, "indices": indices})

    window = (a["kernel"], a["stride"], a["padding"], a["dilation"])
    result = separable_max(x, (node.shape[1], node.shape[2]), window, gather, expansion.larger)
    if result is None:
        reason = "a pooling window lies in the padding altogether"
        raise UnsupportedOp(node.op, node.name, node.origin, reason, "windows that touch the data")
    return expansion.emit("reshape", (x,), x.shape, {"shape": x.shape}) if result is x else result


EXPANSIONS: Mapping[str, Expand] = MappingProxyType(
    {"maximum": expand_maximum, "minimum": expand_minimum, "max_pool2d": expand_pool}
)


def window_positions(
    size: int, count: int, kernel: int, stride: int, before: int, dilation: int
) -> list[tuple[int, ...]] | None:
    """For each offset in the window the index that each of the `count` windows reads there.

    An index outside the data is replaced by the window's first one inside, which changes no maximum.
    None when a window has no index inside.
    """
    windows: list[list[int]] = []
    for place in range(count):
        indices = [place * stride - before + offset * dilation for offset in range(kernel)]
        inside = [index for index in indices if 0 <= index < size]
        if not inside:
            return None
        windows.append([index if 0 <= index < size else inside[0] for index in indices])
    return list(dict.fromkeys(zip(*windows, strict=True)))


def separable_max(
    x: Node,
    out: Pair,
    window: tuple[Pair, Pair, Pair, Pair],
    gather: Callable[[Node, int, tuple[int, ...]], Node],
    larger: Callable[[Node, Node], Node],
) -> Node | None:
    """The maximum of x (C, H, W) over windows, along W and then along H, as a balanced tree of `larger`.

    out: number of windows along H and W. window: kernel, stride, padding before, dilation, a pair each.
    None when a window lies in the padding altogether.
    """
    for axis in (1, 0):
        kernel, stride, before, dilation = (pair[axis] for pair in window)
        size = x.shape[axis + 1]
        picks = window_positions(size, out[axis], kernel, stride, before, dilation)
        if picks is None:
            return None
        parts = [x if pick == tuple(range(size)) else gather(x, axis + 1, pick) for pick in picks]
        while len(parts) > 1:
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [larger(pair[0], pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
        (x,) = parts
    return x
