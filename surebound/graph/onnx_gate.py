"""The gate of the ONNX front end: a graph that does not compute what onnxruntime computes is refused.

Every value on the way is compared, each computed from onnxruntime's values of its operands: rounding does not add
up, and an op that was misread cannot hide behind a later one that makes its result small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import onnx
import onnxruntime
import torch
from torch import Tensor

from surebound.errors import ModelError, TraceMismatch
from surebound.graph.ir import Graph, evaluate
from surebound.graph.original import TOLERANCE, OnnxOriginal, largest_difference, open_session, run_batch, run_each
from surebound.graph.rounding import Gap, scattered, worst

Form = Callable[[onnxruntime.InferenceSession, Sequence[Tensor], str], list[Tensor]]

log = logging.getLogger(__name__)

RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Error of one op relative to its result, by the dtype in which onnxruntime computes it."""

APPROXIMATED = {"sigmoid": 1e-6, "tanh": 1e-6}
"""Absolute error of onnxruntime's float32 approximations."""

SMALL = 1_000_000
"""Values of a network per sample up to which all samples are compared in one pass."""

SAMPLES = ("random", "random", "random", "0", "1", "10", "-10", "100 times random", "10000 times random")
"""What the inputs of the comparison are."""

MODERATE = 7
"""How many of the samples are small enough that the rounding of outputs is small beside max(1, |output|)."""


def probes(graph: Graph, dtype: torch.dtype) -> list[Tensor]:
    """For each input [9, *shape]: what `SAMPLES` says."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([0.0, 1.0, 10.0, -10.0])

    def probe(shape: Sequence[int]) -> Tensor:
        noise = torch.randn(5, *shape, generator=generator)
        constant = corners.reshape(-1, *[1] * len(shape)).expand(-1, *shape)
        return torch.cat([noise[:3], constant, 100 * noise[3:4], 10000 * noise[4:]]).to(dtype)

    return [probe(graph[name].shape) for name in graph.inputs]


def compared(graph: Graph, path: str, data: bytes, model: onnx.ModelProto) -> Graph:
    """The graph with its original attached, after both computed the same; TraceMismatch otherwise.

    data: the file; model: the same with functions inlined.
    """
    produced = {name for node in model.graph.node for name in node.output}
    inner = [node.name for node in graph.nodes if node.batched and node.name in produced]
    public = [value.name for value in model.graph.output]
    plain = open_session(exposing(model, inner), path, optimised=False)
    kind = torch.float64 if "tensor(double)" in {value.type for value in plain.get_inputs()} else torch.float32
    inputs = probes(graph, kind)
    outputs: list[list[Tensor]] = []
    together = len(SAMPLES) if sum(node.numel for node in graph.nodes if node.batched) < SMALL else 1
    for start in range(0, len(SAMPLES), together):
        fed = [tensor[start : start + together] for tensor in inputs]
        values = dict(zip([value.name for value in plain.get_outputs()], run_each(plain, fed, path), strict=True))
        outputs.append([values[name] for name in public])
        wanted = [*((name, values[name]) for name in inner), *zip(graph.outputs, outputs[-1], strict=True)]
        check_nodes(graph, path, dict(zip(graph.inputs, fed, strict=True)), wanted, start)
    theirs = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    check_outputs(graph, path, [tensor[:MODERATE] for tensor in inputs], [tensor[:MODERATE] for tensor in theirs])
    return replace(graph, original=original_of(graph, path, data, inputs, theirs))


def exposing(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The model with the named values as further outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    public = {value.name for value in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in public)
    return shown.SerializeToString()


def check_nodes(
    graph: Graph, path: str, inputs: Mapping[str, Tensor], theirs: Sequence[tuple[str, Tensor]], start: int
) -> None:
    """Each value [B, ...] of the samples from number `start` on, from onnxruntime's values of its operands.

    Raises TraceMismatch, naming the first that differs.
    """
    found = scattered(graph, inputs, {name for name, _ in theirs}, dict(theirs))
    for name, value in theirs:
        node = graph[name]
        absolute = APPROXIMATED.get(node.op, 0.0) * (value.dtype == torch.float32)
        gap = worst(found[name].exact, value, found[name].allowed(value, RELATIVE[value.dtype], absolute))
        if gap:
            raise mismatch(path, f"value '{name}' ({node.origin})", gap, start)


def check_outputs(graph: Graph, path: str, inputs: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """The outputs of the whole graph on a batch; TraceMismatch when one differs."""
    with torch.no_grad():
        kind = inputs[0].dtype
        ours = evaluate(graph, graph.values(kind), dict(zip(graph.inputs, inputs, strict=True)))
    for name, wanted in zip(graph.outputs, theirs, strict=True):
        difference, sample = largest_difference(ours[name], wanted)
        if difference > TOLERANCE:
            raise mismatch(path, f"output '{name}'", Gap(difference, TOLERANCE, sample))


def mismatch(path: str, what: str, gap: Gap, start: int = 0) -> TraceMismatch:
    """The error of the gate."""
    return TraceMismatch(
        f"{path}: {what} differs from onnxruntime by {gap.difference:.3g}, where rounding explains {gap.allowed:.3g}, "
        f"on inputs that are {SAMPLES[start + gap.sample]}; please report the file, do not use its results"
    )


def original_of(
    graph: Graph, path: str, data: bytes, inputs: Sequence[Tensor], theirs: Sequence[Tensor]
) -> OnnxOriginal:
    """The file as it will be run: with onnxruntime's rewrites, and in batches, where these change nothing."""
    found = scattered(graph, dict(zip(graph.inputs, inputs, strict=True)), set(graph.outputs))
    scatter = [found[name] for name in graph.outputs]

    def same(session: onnxruntime.InferenceSession, form: Form) -> bool:
        """Does the session give these outputs, up to rounding?"""
        try:
            values = form(session, inputs, path)
        except ModelError:  # whatever onnxruntime dislikes about it, the plain form works
            return False
        return not any(
            worst(ours, wanted, spread.allowed(wanted, TOLERANCE))
            for ours, wanted, spread in zip(values, theirs, scatter, strict=True)
        )

    session = open_session(data, path)
    optimised = same(session, run_each)
    if not optimised:
        log.warning("%s: onnxruntime's own optimisations change its outputs; it is run without them", path)
        session = open_session(data, path, optimised)
    symbolic = all(value.shape and not isinstance(value.shape[0], int) for value in session.get_inputs())
    return OnnxOriginal(path, data, symbolic and same(session, run_batch), optimised)
