"""How far two computations of one network may be apart by rounding alone.

That is measured, not assumed: the graph is evaluated in float64, and a few times in float32 with every value
shaken by a float32 rounding error. Where numbers cancel, the results scatter, and nowhere else; so outputs near
zero that are small because weights are small get no more room than large ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.graph.ir import Graph, Node, evaluate

DRAWS = 4
"""How often a network is evaluated in float32."""

ROUNDINGS = 64
"""How many times the largest measured error two computations may be apart."""

EPSILON = torch.finfo(torch.float32).eps
SHAKE = 4 * EPSILON
"""The largest relative change of a value."""


@dataclass(frozen=True)
class Scatter:
    """A value of the graph [B, ...] in float64, and its largest error in float32 (infinite where that overflows)."""

    exact: Tensor
    error: Tensor

    def allowed(self, theirs: Tensor, relative: float, absolute: float = 0.0) -> Tensor:
        """The largest difference from `theirs` that rounding explains, for each entry, in float64."""
        precision = torch.finfo(theirs.dtype).eps / EPSILON
        error = self.error if precision >= 1 else self.error.nan_to_num(posinf=0.0) * precision
        size = torch.where(theirs.isfinite(), theirs.double().abs(), 0.0)
        return relative * size + ROUNDINGS * error + absolute


@dataclass(frozen=True)
class Gap:
    """The worst entry of a comparison: its difference, what is allowed there, and its sample."""

    difference: float
    allowed: float
    sample: int

    def __bool__(self) -> bool:
        """Is it more than allowed?"""
        return not self.difference <= self.allowed


def worst(ours: Tensor, theirs: Tensor, allowed: Tensor) -> Gap:
    """The entry whose difference is the largest multiple of what is allowed; infinite for different shapes.

    Infinities and NaNs equal each other; a number equals them where its float32 would overflow (allowed infinite).
    """
    if ours.shape != theirs.shape:
        return Gap(math.inf, 0.0, 0)
    if not ours.numel():
        return Gap(0.0, 0.0, 0)
    a, b = ours.double(), theirs.double()
    strange = ~a.isfinite() & ~b.isfinite() & (a != -b)
    difference = torch.where((a == b) | strange, 0.0, (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf))
    ratio = torch.where(difference <= allowed, 0.0, difference / allowed)
    place = int(ratio.reshape(-1).argmax())
    return Gap(
        float(difference.reshape(-1)[place]), float(allowed.reshape(-1)[place]), place // (ours.numel() // len(ours))
    )


def scattered(
    graph: Graph, inputs: Mapping[str, Tensor], names: Collection[str], given: Mapping[str, Tensor] | None = None
) -> dict[str, Scatter]:
    """Values of the named nodes for inputs [B, ...], before those in `given` replace them for the nodes behind.

    Given values of another shape replace nothing.
    """
    known = given or {}
    device = next(iter(inputs.values())).device
    generator = torch.Generator(device).manual_seed(0)
    exact: dict[str, Tensor] = {}
    rough: dict[str, Tensor] = {}

    def kept(node: Node, value: Tensor) -> Tensor:
        if node.name in names:
            exact[node.name] = value
        better = known.get(node.name, value)
        return better.to(value) if better.shape == value.shape else value

    def shaken(node: Node, value: Tensor) -> Tensor:
        if node.name in names:
            rough[node.name] = value
        better = repeated(known[node.name].to(value)) if node.name in known else value
        value = better if better.shape == value.shape else value
        if not value.is_floating_point():
            return value
        noise = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return value * (1 + SHAKE * (2 * noise - 1))

    with torch.no_grad():
        for dtype, hook, share in ((torch.float64, kept, lambda x: x), (torch.float32, shaken, repeated)):
            values = {name: share(x.to(dtype)) for name, x in inputs.items()}
            evaluate(graph, graph.values(dtype, device), values, list(names), hook)
    return {name: Scatter(exact[name], error_of(exact[name], rough[name])) for name in names}


def repeated(x: Tensor) -> Tensor:
    """[B, ...] as [DRAWS * B, ...]."""
    return x.repeat(DRAWS, *[1] * (x.dim() - 1))


def error_of(exact: Tensor, rough: Tensor) -> Tensor:
    """Largest distance of the draws [DRAWS * B, ...] from the exact value [B, ...]; infinite where one overflows."""
    gaps = (rough.double().reshape(DRAWS, *exact.shape) - exact).abs()
    return torch.where(exact.isfinite(), gaps.nan_to_num(nan=math.inf).amax(0), 0.0)
