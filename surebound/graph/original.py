"""An ONNX file as its owner runs it: onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.errors import ModelError, UsageError

Array = NDArray[Any]
FLOATS = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}
"""onnxruntime's names of the element types that a network may compute in."""

TOLERANCE = 1e-4
"""Largest difference between a graph and onnxruntime, relative to max(1, |output|)."""


def open_session(data: bytes, path: str, optimised: bool = True) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU with at most two threads, which sleep while they wait.

    path: for the message of ModelError. optimised: with onnxruntime's rewrites of the network, as it does by default;
    without, it computes each node as the file has it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error classes share no public base
        raise ModelError(f"{path}: onnxruntime cannot load the model: {error}") from error


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], path: str) -> list[Array]:
    """One call; raises ModelError with onnxruntime's words, which name the node."""
    try:
        values: list[Any] = list(session.run(None, dict(feeds)))
    except Exception as error:  # onnxruntime's error classes share no public base
        raise ModelError(f"{path}: onnxruntime cannot run the model: {error}") from error
    return values


def arrays(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> dict[str, Array]:
    """Inputs [B, *shape] in the file's order by name, in the types that the file wants."""
    wanted = session.get_inputs()
    return {
        value.name: tensor.detach().to("cpu", FLOATS[value.type]).contiguous().numpy()
        for value, tensor in zip(wanted, inputs, strict=True)
    }


def run_each(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor], path: str) -> list[Tensor]:
    """One call per sample: inputs [B, *shape] in the file's order, outputs [B, *output shape]."""
    feeds = arrays(session, inputs)
    calls = [
        run(session, {name: np.asarray(array[sample]) for name, array in feeds.items()}, path)
        for sample in range(len(inputs[0]))
    ]
    return [torch.from_numpy(np.stack(values)) for values in zip(*calls, strict=True)]


def run_batch(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor], path: str) -> list[Tensor]:
    """One call for all samples of a file with a symbolic batch axis: inputs [B, 1, ...], outputs [B, 1, ...].

    Outputs without a batch axis are returned as they are.
    """
    feeds = {name: array.reshape(len(array), *array.shape[2:]) for name, array in arrays(session, inputs).items()}
    return [torch.from_numpy(value[:, None] if value.ndim else value) for value in run(session, feeds, path)]


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
    optimised: onnxruntime's rewrites of the network, which it does by default, gave what the file says.
    """

    path: str
    data: bytes = field(repr=False)
    batchable: bool = False
    optimised: bool = True

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The onnxruntime session, opened at the first use."""
        return open_session(self.data, self.path, self.optimised)

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the first input."""
        return FLOATS[self.session.get_inputs()[0].type]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """All outputs [B, *output shape] for all inputs [B, *input shape], in the file's order."""
        form = run_batch if self.batchable and len(inputs[0]) else run_each
        return form(self.session, inputs, self.path)

    def __call__(self, x: Tensor) -> Tensor:
        """The output [B, *output shape] for x [B, *input shape]; UsageError for several inputs or outputs."""
        counts = len(self.session.get_inputs()), len(self.session.get_outputs())
        if counts != (1, 1):
            raise UsageError(f"{self.path} has {counts[0]} inputs and {counts[1]} outputs: use `run` with all inputs")
        (y,) = self.run([x])
        return y.to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the session, which another process opens anew."""
        return {"path": self.path, "data": self.data, "batchable": self.batchable, "optimised": self.optimised}
