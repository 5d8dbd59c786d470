"""Small ONNX and VNN-LIB files for tests of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

W1 = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.5]], np.float32)
B1 = np.array([0.0, 0.25, 0.5], np.float32)
W2 = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]], np.float32)
B2 = np.array([0.25, 0.0], np.float32)


def write_model(
    path: Path,
    w1: NDArray[np.float32] = W1,
    hidden: str = "Relu",
    inputs: Sequence[str] = ("x",),
) -> Path:
    """y = W2 hidden(W1 x + b1) + b2 with two inputs, three neurons, two outputs; more inputs are added to x."""
    nodes = [helper.make_node("Sum", list(inputs), ["s"])] if len(inputs) > 1 else []
    first = "s" if nodes else inputs[0]
    nodes += [
        helper.make_node("Gemm", [first, "w1", "b1"], ["z"], name="first", transB=1),
        helper.make_node(hidden, ["z"], ["h"], name="hidden"),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name="last", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(a, n) for n, a in (("w1", w1), ("b1", B1), ("w2", W2), ("b2", B2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def forward(x: Sequence[float]) -> NDArray[np.float64]:
    """The outputs of the model with default weights, in float64."""
    w1, b1, w2, b2 = (values.astype(np.float64) for values in (W1, B1, W2, B2))
    return w2 @ np.maximum(w1 @ np.asarray(x, np.float64) + b1, 0.0) + b2


def write_spec(
    path: Path,
    atoms: Sequence[str],
    box: Sequence[tuple[float, float]] = ((-0.5, 0.5), (-0.25, 0.75)),
    outputs: int = 2,
) -> Path:
    """Inputs in a box; each atom becomes one assertion."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(box))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    for i, (low, high) in enumerate(box):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    lines += [f"(assert {atom})" for atom in atoms]
    path.write_text("\n".join(lines) + "\n")
    return path
