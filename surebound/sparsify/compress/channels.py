"""Channels that always say the same are removed: what they add to the layers behind becomes a bias.

Values that share their channels form a group: a layer's output, what activations, norms, pools and sums make of it, and
the same flattened. A channel goes when it is constant wherever a layer reads it, over the whole input domain. Behind a
convolution that pads, what it added differs at the border; then it becomes a map that is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from surebound.bounds.ibp import sound
from surebound.graph.ir import Graph, Node, Site
from surebound.ops.record import Interval
from surebound.sparsify.compress.frozen import Frozen, Making, weight_and_bias

ALIKE = frozenset({"relu", "leaky_relu", "clip", "sigmoid", "tanh", "neg", "graft", "gate", "at_least"})
SUMS = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
POOLS = frozenset({"avg_pool2d", "max_pool2d"})
LAYERS = frozenset({"conv2d", "linear"})


@dataclass(frozen=True)
class Axis:
    """Where a value has its channels: along `axis` of its shape, `block` entries each."""

    axis: int
    block: int


@dataclass
class Groups:
    """Values by group. root: a group's layer outputs by any of its values (union-find). axes: of every value that has
    channels. pinned: groups whose channels something else looks at.
    """

    root: dict[str, str] = field(default_factory=dict)
    axes: dict[str, Axis] = field(default_factory=dict)
    pinned: set[str] = field(default_factory=set)

    def find(self, name: str) -> str:
        """The name that stands for the group of a value."""
        while self.root[name] != name:
            name = self.root[name]
        return name

    def join(self, name: str, other: str) -> None:
        """Two values share their channels."""
        a, b = self.find(name), self.find(other)
        self.root[b] = a
        if b in self.pinned:
            self.pinned.add(a)

    def pin(self, name: str) -> None:
        """Something looks at a value's channels one by one."""
        if name in self.root:
            self.pinned.add(self.find(name))

    def members(self) -> dict[str, list[str]]:
        """Values by group, in order; groups that are pinned left out."""
        found: dict[str, list[str]] = {}
        for name in self.root:
            found.setdefault(self.find(name), []).append(name)
        pinned = {self.find(name) for name in self.pinned}
        return {name: values for name, values in found.items() if name not in pinned}


def groups_of(graph: Graph) -> Groups:
    """The groups of all layers' channels."""
    groups = Groups()
    for node in graph:
        if not node.batched or node.op == "input":
            continue
        sources = [name for name in node.inputs if graph[name].batched]
        if node.op in LAYERS and not readable(graph, groups, node):
            for name in sources:
                groups.pin(name)
        if node.op in LAYERS and graph[node.inputs[1]].op == "parameter" and node.attrs.get("groups", 1) == 1:
            groups.root[node.name] = node.name
            groups.axes[node.name] = Axis(0 if node.op == "conv2d" else len(node.shape) - 1, 1)
            continue
        axis = carried(graph, groups, node, sources)
        if axis is None:
            for name in sources:
                groups.pin(name)
            continue
        groups.root[node.name], groups.axes[node.name] = node.name, axis
        for name in sources:
            groups.join(node.name, name)
    for name in graph.outputs:
        groups.pin(name)
    return groups


def readable(graph: Graph, groups: Groups, layer: Node) -> bool:
    """Does a layer read its input's channels along the axis that its weight has for them?"""
    x = layer.inputs[0]
    if x not in groups.axes or layer.attrs.get("groups", 1) != 1 or graph[layer.inputs[1]].op != "parameter":
        return False
    axis = groups.axes[x]
    if layer.op == "conv2d":
        return axis == Axis(0, 1)
    return axis.axis == len(graph[x].shape) - 1


def carried(graph: Graph, groups: Groups, node: Node, sources: list[str]) -> Axis | None:
    """Where a value has the channels of what it is made of; None where it mixes them."""
    if not sources or any(name not in groups.axes for name in sources):
        return None
    before = [groups.axes[name] for name in sources]
    x, axis = graph[sources[0]], before[0]
    if node.op in ALIKE or node.op in SUMS:
        same = all(graph[name].shape == node.shape for name in sources) and all(other == axis for other in before)
        return axis if same else None
    if node.op == "batch_norm":
        return axis if axis == Axis(0, 1) else None
    if node.op in POOLS:
        return axis if axis == Axis(0, 1) and len(x.shape) == 3 else None
    if node.op == "pad":
        return axis if tuple(node.attrs["pads"][axis.axis]) == (0, 0) else None
    if node.op == "mean" or node.op == "sum":
        axes = {place % len(x.shape) for place in node.attrs["axes"]}
        if axis.axis in axes:
            return None
        gone = 0 if node.attrs["keepdim"] else sum(place < axis.axis for place in axes)
        return Axis(axis.axis - gone, axis.block)
    if node.op == "reshape":
        return reshaped(x.shape, axis, node.shape)
    return None


def reshaped(shape: tuple[int, ...], axis: Axis, new: tuple[int, ...]) -> Axis | None:
    """Channels that come first in memory, in another shape."""
    if math.prod(shape[: axis.axis]) != 1 or shape[axis.axis] == axis.block:
        return None
    count = shape[axis.axis] // axis.block
    place = next((i for i, size in enumerate(new) if size != 1), None)
    if place is None or new[place] % count:
        return None
    return Axis(place, new[place] // count)


# ---------------------------------------------------------------- constants


def boxes_over(net: Frozen, lower: float, upper: float) -> Mapping[str, Interval]:
    """Interval bounds [1, *shape] of every value over the domain [lower, upper]."""
    graph = net.graph
    ends = (torch.full((1, *graph.input.shape), end, dtype=torch.float64) for end in (lower, upper))
    boxes = {name: Interval(value, value) for name, value in net.tensors.items()} | {graph.input.name: Interval(*ends)}
    for node in graph:
        if node.name not in boxes:
            operands = (boxes[name] for name in node.inputs)
            boxes[node.name] = sound(graph.ops[node.op].interval(Site(node, graph.operands(node)), *operands))
    return boxes


def by_channel(value: Tensor, axis: Axis) -> Tensor:
    """[*shape] as [channels, entries of one]."""
    moved = value.movedim(axis.axis, 0)
    return moved.reshape(moved.shape[0] // axis.block, -1)


def chosen(value: Tensor, axis: Axis, kept: Tensor) -> Tensor:
    """The entries [*shape] of the channels that are kept."""
    return value.index_select(axis.axis, kept.repeat_interleave(axis.block).nonzero().squeeze(1))


def remove_constant_channels(net: Frozen, lower: float, upper: float) -> Frozen:
    """Without the channels that are constant over the domain where layers read them; one of a group always stays."""
    boxes = boxes_over(net, lower, upper)
    groups = groups_of(net.graph)
    kept: dict[str, Tensor] = {}
    for values in groups.members().values():
        count = net.graph[values[0]].shape[groups.axes[values[0]].axis] // groups.axes[values[0]].block
        constant = torch.ones(count, dtype=torch.bool)
        for name in values:
            if any(net.graph[reader].op in LAYERS for reader in net.graph.consumers[name]):
                box = boxes[name]
                constant &= by_channel((box.lower == box.upper)[0], groups.axes[name]).all(1)
        if bool(constant.all()):
            constant[0] = False
        if bool(constant.any()):
            kept |= dict.fromkeys(values, ~constant)
    return without(net, groups, kept, boxes) if kept else net


def without(net: Frozen, groups: Groups, kept: Mapping[str, Tensor], boxes: Mapping[str, Interval]) -> Frozen:
    """Only the channels that are kept, by value; constant ones go into the biases of what reads them."""
    making = Making(net)
    for node in net.graph:
        if node.op == "parameter":
            making.nodes.append(node)
            continue
        made, border = node, None
        if node.op in LAYERS and node.inputs[0] in kept:
            made, border = narrowed(making, groups, node, kept[node.inputs[0]], boxes[node.inputs[0]])
        if node.name in kept:
            made = sliced(making, groups.axes[node.name], node, made, kept[node.name])
            border = None if border is None else chosen(border, groups.axes[node.name], kept[node.name])
        if border is None:
            making.nodes.append(made)
            continue
        inner = making.name(f"{node.name}.layer")
        making.nodes.append(replace(made, name=inner))
        added = making.put(f"{node.name}.border", border)
        making.nodes.append(replace(made, op="add", inputs=(inner, added), attrs={}))
    return making.done()


def narrowed(making: Making, groups: Groups, layer: Node, kept: Tensor, box: Interval) -> tuple[Node, Tensor | None]:
    """A layer that reads fewer channels, with what the others always say in its bias; or, where that differs from place
    to place, as a map [*shape] to add.
    """
    graph, axis = making.net.graph, groups.axes[layer.inputs[0]]
    weight, bias = weight_and_bias(making.net, layer)
    gone = ~kept.repeat_interleave(axis.block)
    shape = [1] * (box.lower.dim() - 1)
    shape[axis.axis] = -1
    still = torch.where(gone.reshape(shape), box.lower[0], 0.0).unsqueeze(0)
    added = graph.ops[layer.op].forward(Site(layer, graph.operands(layer)), still, weight, None)[0]
    per_channel = by_channel(added, Axis(0, 1) if layer.op == "conv2d" else Axis(len(layer.shape) - 1, 1))
    even = bool((per_channel == per_channel[:, :1]).all())
    smaller = weight.index_select(1, (~gone).nonzero().squeeze(1))
    names = (
        making.put(f"{layer.name}.weight", smaller),
        making.put(f"{layer.name}.bias", bias + per_channel[:, 0] if even else bias),
    )
    return replace(layer, inputs=(layer.inputs[0], *names)), None if even else added


def sliced(making: Making, axis: Axis, node: Node, made: Node, kept: Tensor) -> Node:
    """A value with fewer channels: its shape, and its parameters along the same axis."""
    count = int(kept.sum()) * axis.block
    shape = (*node.shape[: axis.axis], count, *node.shape[axis.axis + 1 :])
    inputs: list[str] = []
    for name in made.inputs:
        value = making.tensors.get(name)
        if value is None:  # a value, which has fewer channels itself, or is what a layer reads
            inputs.append(name)
            continue
        where = axis.axis - len(node.shape) + value.dim()  # of operands that are spread over the value
        place = 0 if node.op in LAYERS or node.op == "batch_norm" else where
        full = place >= 0 and value.shape[place] == node.shape[axis.axis] > 1
        part = chosen(value, Axis(place, axis.block), kept) if full else value
        inputs.append(making.put(f"{node.name}.part", part) if full else name)
    attrs = {**made.attrs, "shape": shape} if node.op == "reshape" else made.attrs
    return replace(made, inputs=tuple(inputs), shape=shape, attrs=attrs)
