"""An ONNX file as its owner runs it: onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from surebound.errors import ModelError, UsageError

FLOATS = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}
"""onnxruntime's names of the element types that a network may compute in."""

TOLERANCE = 1e-4
"""Largest difference between a graph and onnxruntime, relative to max(1, |output|)."""


def open_session(
    data: bytes,
    path: str,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU with at most two threads; `path` is for the message of ModelError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = level
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error classes share no public base
        raise ModelError(f"{path}: onnxruntime cannot load the model: {error}") from error


def run_each(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One call per sample: inputs [B, *shape] in the file's order, outputs [B, *output shape]."""
    names = [value.name for value in session.get_inputs()]
    arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in inputs]
    calls: list[Any] = [
        session.run(None, {name: array[sample] for name, array in zip(names, arrays, strict=True)})
        for sample in range(len(arrays[0]))
    ]
    return [torch.from_numpy(np.stack(values)) for values in zip(*calls, strict=True)]


def run_batch(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> list[Tensor]:
    """One call for all samples of a file with a symbolic batch axis: inputs [B, 1, ...], outputs [B, 1, ...]."""
    names = [value.name for value in session.get_inputs()]
    feeds = {
        name: tensor.detach().cpu().reshape(len(tensor), *tensor.shape[2:]).numpy()
        for name, tensor in zip(names, inputs, strict=True)
    }
    values: list[Any] = list(session.run(None, feeds))
    return [torch.from_numpy(value[:, None]) for value in values]


def largest_difference(ours: Tensor, theirs: Tensor) -> tuple[float, int]:
    """Largest |ours - theirs| / max(1, |theirs|) with |theirs| per sample, and the sample where it occurs."""
    if ours.shape != theirs.shape:
        return float("inf"), 0
    a, b = (value.double().reshape(len(value), -1) for value in (ours, theirs))
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"))
    size = torch.where(b.isfinite(), b.abs(), 0.0).amax(1, keepdim=True).clamp(min=1) if b.numel() else 1.0
    worst = (gap / size).amax(1) if b.numel() else torch.zeros(len(a), dtype=torch.float64)
    return float(worst.max()), int(worst.argmax())


@dataclass(frozen=True)
class OnnxOriginal:
    """The network of an ONNX file, computed by onnxruntime with its default optimisations.

    path: where it was read, for messages. data: the file's bytes (external tensors included).
    batchable: the batch axis is symbolic and one call for several samples gave what separate calls give.
    """

    path: str
    data: bytes = field(repr=False)
    batchable: bool = False

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The onnxruntime session, opened at the first use."""
        return open_session(self.data, self.path)

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the first input."""
        return FLOATS[self.session.get_inputs()[0].type]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All outputs [B, *output shape] for all inputs [B, *input shape], in the file's order."""
        kinds = [FLOATS[value.type] for value in self.session.get_inputs()]
        cast = [tensor.to(kind) for tensor, kind in zip(inputs, kinds, strict=True)]
        run = run_batch if self.batchable and len(cast[0]) else run_each
        return run(self.session, cast)

    def __call__(self, x: Tensor) -> Tensor:
        """The output [B, *output shape] for x [B, *input shape]; UsageError for several inputs or outputs."""
        counts = len(self.session.get_inputs()), len(self.session.get_outputs())
        if counts != (1, 1):
            raise UsageError(f"{self.path} has {counts[0]} inputs and {counts[1]} outputs: use `run` with all inputs")
        (y,) = self.run([x])
        return y.to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the session, which another process opens anew."""
        return {"path": self.path, "data": self.data, "batchable": self.batchable}
