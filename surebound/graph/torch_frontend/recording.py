"""What doesn't depend on the input and has no rule: recorded as steps that torch runs at every query."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from surebound.graph.torch_frontend.builder import Builder, Value, leaves, op_name
from surebound.graph.torch_frontend.live import LiveParameters, Ref, Step

RANDOM = "it draws random numbers, so the module isn't one network; make it follow self.training"
NUMBERS = "it computes with Python numbers taken from tensors"


def is_random(node: fx.Node) -> bool:
    """Does the operation draw random numbers?"""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def computed(b: Builder, node: fx.Node, shape: tuple[int, ...]) -> Value:
    """A parameter node whose tensor torch computes from the live parameters at every query."""
    return b.parameter(record(b, node).name, shape, node.meta["val"].is_floating_point(), b.origin(node))


def record(b: Builder, node: fx.Node) -> Ref:
    """The result of an operation as a step, added after the steps that it needs; the batch size is 1 there."""

    def reference(arg: Any) -> Any:
        if not isinstance(arg, fx.Node):
            return arg
        known = b.values.get(arg)
        if isinstance(known, Value) and (known.name in b.sources or known.name in b.constants):
            return Ref(known.name)
        if arg.op == "placeholder":
            raise b.refusal(node, "it needs the network's input")
        if isinstance(arg.meta.get("val"), (Tensor, list, tuple)):
            return record(b, arg)
        number = b.for_one_sample(arg.meta.get("val"))
        if number is None:
            raise b.refusal(node, NUMBERS)
        return number

    if node not in b.recorded:
        if is_random(node):
            raise b.refusal(node, RANDOM)
        if op_name(node) != "getitem" and not isinstance(node.target, torch._ops.OpOverload):
            raise b.refusal(node, NUMBERS)
        args: Any = map_aggregate(node.args, reference)
        kwargs: Any = map_aggregate(node.kwargs, reference)
        name = b.unique(node.name)
        b.steps[name] = Step(name, op_name(node), args, kwargs)
        b.recorded[node] = name
    return Ref(b.recorded[node])


def as_float(b: Builder, x: Value) -> Value:
    """A mask as the numbers 0 and 1."""
    name = b.unique(f"{x.name}.float")
    b.steps[name] = Step(name, "aten._to_copy.default", (Ref(x.name),), {"dtype": b.dtype})
    return b.parameter(name, x.shape, True)


def pinned(b: Builder, x: Value) -> Tensor:
    """The present values of an index tensor, which become part of the graph."""
    b.fixed[x.name] = live(b, [x.name])()[x.name].detach().cpu().clone()
    return b.fixed[x.name]


def live(b: Builder, names: Collection[str]) -> LiveParameters:
    """The source of tensors for the given parameter nodes."""
    needed = {*names, *b.fixed}
    steps: list[Step] = []
    for step in reversed(b.steps.values()):
        if step.name in needed:
            steps.insert(0, step)
            needed.update(arg.name for arg in leaves((step.args, step.kwargs)) if isinstance(arg, Ref))
    return LiveParameters(
        b.module,
        tuple(names),
        tuple(source for source in b.sources.values() if source.name in needed),
        {name: tensor for name, tensor in b.constants.items() if name in needed},
        tuple(steps),
        dict(b.fixed),
        b.dtype,
    )
