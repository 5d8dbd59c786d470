"""The gate of the frontend: a graph that doesn't compute what its module computes is refused."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from surebound.errors import TraceMismatch
from surebound.graph.ir import Graph, evaluate
from surebound.graph.module_original import ModuleOriginal, require_precision
from surebound.graph.rounding import scattered, worst
from surebound.graph.torch_frontend.export import run_once

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference between graph and module on random inputs; in other dtypes a module is refused."""


def compare(graph: Graph, original: ModuleOriginal, batch: Tensor) -> None:
    """Raise TraceMismatch unless graph and module agree on the example, on zeros and on noise of several scales.

    Each batch is compared relative to its largest output, and then every entry on its own scale, with room for the
    rounding measured there.
    """
    generator = torch.Generator().manual_seed(0)
    params = graph.values(original.dtype, original.device)
    inputs = [batch]
    for count in (1, 3):
        noise = torch.randn((count, *batch.shape[1:]), generator=generator, dtype=torch.float64)
        inputs += [(scale * noise).to(batch) for scale in (0.0, 0.1, 1.0, 10.0, 100.0)]
    expected = [run_once(original, x) for x in inputs]
    floor = 1e-3 * max(magnitude(y) for y in expected)
    for x, y in zip(inputs, expected, strict=True):
        with torch.no_grad():
            computed = evaluate(graph, params, x)[graph.output.name]
        gap = difference(computed, y, floor)
        if gap > TOLERANCE[original.dtype]:
            raise disagreement(
                f"on a batch of {x.shape[0]} (largest difference {gap:.3g} relative to the largest output, outputs of "
                f"shape {list(computed.shape)} and {list(y.shape)})"
            )
    compare_entries(graph, torch.cat(inputs), torch.cat(expected))


def compare_entries(graph: Graph, x: Tensor, expected: Tensor) -> None:
    """Raise TraceMismatch when an entry of an output differs by more than rounding explains there."""
    name = graph.output.name
    found = scattered(graph, {graph.input.name: x}, [name])[name]
    gap = worst(found.exact, expected, found.allowed(expected, TOLERANCE[expected.dtype]))
    if gap:
        raise disagreement(f"by {gap.difference:.3g} in one output, where rounding explains {gap.allowed:.3g}")


def disagreement(how: str) -> TraceMismatch:
    """The error of the gate."""
    return TraceMismatch(
        f"graph and module disagree {how}. Likely causes: the forward depends on the number of samples or on values of "
        "its input through Python code, draws random numbers, or keeps state between calls; or an attribute of the "
        "module that is no tensor has changed since it was traced, or a part of it was replaced (trace it again)"
    )


def compare_again(graph: Graph, original: ModuleOriginal) -> None:
    """Raise TraceMismatch when the module of a traced graph no longer computes what the graph does.

    The graph reads the module's tensors live, but not numbers, options and submodules that are attributes of it.
    """
    require_precision(original)
    compare(graph, original, torch.ones(2, *graph.input.shape).to(original.device, original.dtype))


def magnitude(y: Tensor) -> float:
    """The largest finite magnitude; 0 when there is none."""
    finite = y[torch.isfinite(y)]
    return finite.abs().max().item() if finite.numel() else 0.0


def difference(computed: Tensor, expected: Tensor, floor: float) -> float:
    """Largest difference relative to the largest expected magnitude (at least `floor`).

    Infinite when shapes differ or values are finite in one and not in the other.
    """
    if computed.shape != expected.shape or not torch.equal(torch.isfinite(computed), torch.isfinite(expected)):
        return math.inf
    return magnitude(computed - expected) / max(magnitude(expected), floor, torch.finfo(expected.dtype).tiny)
