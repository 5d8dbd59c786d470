"""The ONNX frontend: every op and form against onnxruntime, round trips, passes, and what errors say."""

from __future__ import annotations

import csv
import gzip
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Builder
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.errors import InvalidGraph, ModelError, TraceMismatch, UnsupportedOp, UsageError
from surebound.graph import onnx_gate, onnx_import, passes
from surebound.graph.check import check
from surebound.graph.ir import FixedParameters, Graph, Node, evaluate
from surebound.graph.onnx_builder import infer_shape
from surebound.graph.onnx_export import export
from surebound.graph.onnx_import import load_onnx
from surebound.graph.original import OnnxOriginal
from surebound.graph.prepare import prepare
from surebound.graph.products import expand_products
from surebound.ops import OPS
from surebound.regions import Box

Arrays = Mapping[str, np.ndarray[Any, Any]]
FLOAT = TensorProto.FLOAT
REWRITES = (
    passes.fold_reshapes,
    passes.sink_reshapes,
    passes.recognise_grafts,
    passes.expand_max,
    expand_products,
    passes.fuse_biases,
)


def f32(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.asarray(values, np.int64)


def model(
    nodes: Sequence[onnx.NodeProto],
    shapes: Mapping[str, Sequence[int | str | None]],
    numbers: Arrays,
    opset: int = 13,
    outputs: Sequence[str] = ("y",),
    kind: int = FLOAT,
) -> onnx.ModelProto:
    """An ONNX model from nodes, input shapes and constants."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def stored(folder: Path, proto: onnx.ModelProto, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def run(graph: Graph, x: Tensor) -> Tensor:
    """The only output for the only input."""
    return evaluate(graph, graph.values(x.dtype), x)[graph.outputs[0]]


def run_file(path: Path, x: Tensor) -> Tensor:
    """onnxruntime, one call per sample."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.from_numpy(np.stack([np.asarray(session.run(None, {name: sample.numpy()})[0]) for sample in x]))


def agrees(path: Path, rewrites: bool = True) -> Graph:
    """Load; the graph, each of its rewrites and its ONNX export give what onnxruntime gives."""
    graph = load_onnx(path)
    x = torch.randn(3, *graph.input.shape)
    wanted = run_file(path, x)
    assert run(graph, x).shape == wanted.shape
    for node in graph.nodes:
        value = evaluate(graph, graph.values(torch.float32), x, [node.name])[node.name]
        assert value.shape == ((3,) * node.batched + node.shape), node
    for rewritten in (graph, *(rewrite(graph) for rewrite in (REWRITES if rewrites else ()))):
        torch.testing.assert_close(run(rewritten, x), wanted, rtol=1e-5, atol=1e-5)
        for node in rewritten.nodes:
            value = evaluate(rewritten, rewritten.values(torch.float32), x, [node.name])[node.name]
            assert value.shape == ((3,) * node.batched + node.shape), node
    copy = path.with_name("copy.onnx")
    export(graph, copy)
    again = load_onnx(copy)
    torch.testing.assert_close(
        run(again, x.reshape(3, *again.input.shape)).reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-5
    )
    return graph


def bounded(graph: Graph, lower: float, upper: float) -> tuple[float, float]:
    """CROWN's least lower and largest upper bound of the output over inputs in [lower, upper]."""
    count, shape = graph.output.numel, graph.input.shape
    rows = torch.cat([torch.eye(count), -torch.eye(count)]).double().reshape(1, -1, *graph.output.shape)
    box = Box(torch.full((1, *shape), lower).double(), torch.full((1, *shape), upper).double())
    found = Crown().bound(Query(graph, graph.values(torch.float64), {graph.input.name: box}, rows)).lower[0]
    return float(found[:count].min()), float(-found[count:].min())


# Each case: ONNX op, operator sets, input shape, further constant inputs, attributes, the ops it must become.
Case = tuple[str, Sequence[int], Sequence[int], Sequence[Any], Mapping[str, Any], Sequence[str] | None]
IMAGE, LINE = (1, 2, 5, 6), (1, 3, 7)
POOL = {"kernel_shape": [3, 2], "strides": [2, 1]}
CASES: list[Case] = [
    ("Abs", (7, 13), (1, 4), (), {}, ("neg", "maximum")),
    ("Add", (7, 13), (1, 3, 2), (f32(1, 3, 1),), {}, ("add",)),
    ("Add", (13,), (2,), (f32(3, 2),), {}, ("add",)),
    ("Sub", (7, 14), (1, 3), (f32(3),), {}, ("sub",)),
    ("Mul", (7, 14), (1, 3), (np.float32(2.5),), {}, ("mul",)),
    ("Div", (7, 14), (1, 3), (f32(1, 3) + 3,), {}, ("div",)),
    ("Neg", (7, 13), (1, 3), (), {}, ("neg",)),
    ("Relu", (7, 14), (1, 3), (), {}, ("relu",)),
    ("LeakyRelu", (7, 16), (1, 3), (), {"alpha": 0.3}, ("leaky_relu",)),
    ("LeakyRelu", (7,), (1, 3), (), {}, ("leaky_relu",)),
    ("PRelu", (7, 16), (1, 3), (np.asarray([0.2], np.float32),), {}, ("leaky_relu",)),
    ("PRelu", (9,), (1, 3, 2), (f32(3, 1),), {}, ("neg", "relu", "mul", "relu", "sub")),
    ("Sigmoid", (7, 13), (1, 3), (), {}, ("sigmoid",)),
    ("Tanh", (7, 13), (1, 3), (), {}, ("tanh",)),
    ("Exp", (7, 13), (1, 3), (), {}, ("exp",)),
    ("Sin", (7,), (1, 3), (), {}, ("sin",)),
    ("Cos", (7,), (1, 3), (), {}, ("cos",)),
    ("Softplus", (7,), (1, 3), (), {}, ("softplus",)),
    ("Elu", (7,), (1, 3), (), {}, ("elu",)),
    ("Elu", (7,), (1, 3), (), {"alpha": 0.6}, ("elu", "relu", "mul", "mul", "add")),
    ("Selu", (7, 13), (1, 3), (), {}, ("elu", "relu", "mul", "mul", "add", "mul")),
    ("Selu", (13,), (1, 3), (), {"alpha": 1.0, "gamma": 2.0}, ("elu", "mul")),
    ("Celu", (12,), (1, 3), (), {"alpha": 0.7}, ("mul", "elu", "mul")),
    ("Atan", (7,), (1, 3), (), {}, ("atan",)),
    ("Sign", (9, 13), (1, 3), (), {}, ("sign",)),
    ("Floor", (7, 13), (1, 3), (), {}, ("floor",)),
    ("Ceil", (7, 13), (1, 3), (), {}, ("ceil",)),
    ("Round", (11,), (1, 3), (), {}, ("round",)),
    ("Gelu", (20,), (1, 3), (), {}, None),
    ("Gelu", (20,), (1, 3), (), {"approximate": "tanh"}, None),
    ("HardSwish", (14,), (1, 3), (), {}, ("mul", "add", "clip", "mul")),
    ("Mish", (18,), (1, 3), (), {}, ("softplus", "tanh", "mul")),
    ("Softsign", (18,), (1, 3), (), {}, None),
    ("LogSoftmax", (13,), (1, 3), (), {}, None),
    ("ReduceL1", (18,), (1, 3, 4), (i64(2),), {}, ("neg", "maximum", "sum")),
    ("ReduceL2", (18,), (1, 3, 4), (i64(1),), {}, ("mul", "sum", "sqrt")),
    ("ReduceSumSquare", (18,), (1, 3, 4), (i64(1),), {}, ("mul", "sum")),
    ("ReduceLogSumExp", (18,), (1, 3, 4), (i64(2),), {"keepdims": 0}, ("exp", "sum", "log")),
    ("MeanVarianceNormalization", (13,), (1, 3, 4), (), {"axes": [2]}, None),
    ("GroupNormalization", (21,), IMAGE, (f32(2), f32(2)), {"num_groups": 2}, None),
    ("RMSNormalization", (23,), (1, 3, 4), (f32(4),), {}, None),
    ("Swish", (24,), (1, 3), (), {"alpha": 1.5}, ("mul", "sigmoid", "mul")),
    ("Tile", (7, 13), (1, 2, 3), (i64(1, 2, 3),), {}, ("concat", "concat")),
    ("ConvTranspose", (7, 11), IMAGE, (f32(2, 3, 3, 2), f32(3)), {"strides": [2, 1], "output_padding": [1, 0]}, None),
    ("ConvTranspose", (11,), IMAGE, (f32(2, 2, 3, 3),), {"pads": [0, 1, 1, 2], "group": 2, "strides": [2, 2]}, None),
    ("ConvTranspose", (11,), LINE, (f32(3, 2, 4), f32(2)), {"pads": [1, 1], "strides": [2]}, None),
    ("Upsample", (7,), IMAGE, (), {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, ("gather", "gather")),
    ("Upsample", (9,), IMAGE, (np.asarray([1, 1, 2, 2], np.float32),), {}, ("gather", "gather")),
    ("Resize", (10,), IMAGE, (np.asarray([1, 1, 2, 2], np.float32),), {}, ("gather", "gather")),
    (
        "Resize",
        (11, 13),
        IMAGE,
        (np.zeros(0, np.float32), np.asarray([1, 1, 2, 1.5], np.float32)),
        {},
        ("gather", "gather"),
    ),
    (
        "Resize",
        (13,),
        IMAGE,
        (None, None, i64(1, 2, 10, 12)),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        ("gather", "gather"),
    ),
    ("ReduceMax", (7, 13), (1, 3, 4), (), {"axes": [2], "keepdims": 0}, None),
    ("ReduceMax", (18,), (1, 3, 4), (i64(1),), {}, None),
    ("ReduceMin", (13,), (1, 3, 4), (), {"axes": [1, 2]}, None),
    ("Erf", (9, 13), (1, 3), (), {}, ("erf",)),
    ("Pow", (7, 13), (1, 3), (np.float32(2),), {}, ("mul",)),
    ("Pow", (13,), (1, 3), (np.float32(3),), {}, ("mul", "mul")),
    ("Pow", (13,), (1, 3), (np.asarray([4, 4, 4], np.float32),), {}, ("mul", "mul")),
    ("Softmax", (13,), (2, 3, 4), (), {"axis": -2}, ("softmax",)),
    ("Softmax", (7, 11), (2, 3), (), {"axis": 1}, ("softmax",)),
    ("Softmax", (11,), (1, 3, 1), (), {}, ("softmax",)),
    ("LayerNormalization", (17,), (1, 2, 4), (f32(4), f32(4)), {"epsilon": 0.01}, None),
    ("LayerNormalization", (17,), (2, 3), (f32(2, 3),), {"axis": 0}, None),
    ("HardSigmoid", (7,), (1, 3), (), {"alpha": 0.25, "beta": 0.4}, ("mul", "add", "clip")),
    ("Clip", (7,), (1, 3), (), {"min": -0.5, "max": 0.25}, ("clip",)),
    ("Clip", (7,), (1, 3), (), {"min": 0.0}, ("relu",)),
    ("Clip", (7,), (1, 3), (), {"min": -1.5}, ("clip",)),
    ("Clip", (11, 13), (1, 3), (np.float32(-0.5), np.float32(np.inf)), {}, ("clip",)),
    ("Clip", (11,), (1, 3), (None, np.float32(0.5)), {}, ("clip",)),
    ("Clip", (12,), (1, 3), (), {}, ()),
    ("Max", (8, 13), (1, 3), (np.asarray([0.0], np.float32),), {}, ("relu",)),
    ("Max", (8,), (1, 3), (f32(2, 3), f32(1, seed=1)), {}, ("maximum", "maximum")),
    ("Min", (8, 13), (1, 3), (np.asarray([[0.1]], np.float32),), {}, ("clip",)),
    ("Min", (13,), (1, 3), (f32(3),), {}, ("minimum",)),
    ("Sum", (8, 13), (1, 3), (f32(3), f32(1, 3, seed=1)), {}, ("add", "add")),
    ("Mean", (8, 13), (1, 3), (f32(3), f32(1, 3, seed=1)), {}, ("add", "add", "mul")),
    ("Identity", (7, 13), (1, 3), (), {}, ()),
    ("Dropout", (7,), (1, 3), (), {"ratio": 0.5}, ()),
    ("Dropout", (13,), (1, 3), (np.float32(0.5), np.bool_(False)), {}, ()),
    ("Cast", (9, 13), (1, 3), (), {"to": FLOAT}, ()),
    ("Gemm", (7, 11, 13), (1, 3), (f32(3, 4), f32(4)), {}, ("linear",)),
    ("Gemm", (7, 13), (2, 3), (f32(4, 3), f32(1, 4)), {"transB": 1, "alpha": 0.5, "beta": 2.0}, ("linear",)),
    ("Gemm", (11,), (2, 3), (f32(4, 3),), {"transB": 1}, ("linear",)),
    ("Gemm", (9,), (2, 3), (f32(3, 4), np.float32(1.5)), {}, ("linear",)),
    ("Gemm", (9,), (2, 3), (f32(3, 4), f32(2, 1)), {"beta": 0.5}, ("linear", "mul", "add")),
    ("Gemm", (9,), (3, 1), (f32(3, 4), f32(4)), {"transA": 1}, ("transpose", "linear")),
    ("MatMul", (7, 13), (1, 3), (f32(3, 4),), {}, ("linear",)),
    ("MatMul", (9,), (3,), (f32(3, 4),), {}, ("linear",)),
    ("MatMul", (9,), (2, 5, 3), (f32(3, 4),), {}, ("linear",)),
    ("MatMul", (9,), (1, 2, 3), (f32(1, 3, 4),), {}, ("linear",)),
    ("MatMul", (9,), (2, 3), (f32(3),), {}, ("linear", "reshape")),
    ("MatMul", (9,), (2, 3), (f32(5, 3, 4),), {}, ("reshape", "matmul")),
    ("BatchNormalization", (7, 9, 15), IMAGE, (f32(2), f32(2), f32(2), f32(2) ** 2), {"epsilon": 0.1}, None),
    ("BatchNormalization", (9,), (1, 4), (f32(4), f32(4), f32(4), f32(4) ** 2), {}, None),
    ("Conv", (7, 11), IMAGE, (f32(4, 2, 3, 3), f32(4)), {"pads": [1, 0, 1, 0], "strides": [2, 1]}, None),
    ("Conv", (11,), IMAGE, (f32(4, 2, 3, 2),), {"pads": [0, 1, 2, 0], "dilations": [1, 2]}, None),
    ("Conv", (11,), IMAGE, (f32(4, 1, 2, 2), f32(4)), {"group": 2, "auto_pad": "SAME_UPPER"}, None),
    ("Conv", (11,), IMAGE, (f32(4, 2, 2, 3),), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, None),
    ("Conv", (11,), IMAGE, (f32(4, 2, 2, 3),), {"auto_pad": "VALID"}, None),
    ("Conv", (9,), LINE, (f32(4, 3, 3), f32(4)), {"pads": [1, 1], "strides": [2]}, None),
    ("Conv", (9,), LINE, (f32(4, 3, 2),), {"pads": [0, 1]}, None),
    ("MaxPool", (8, 12), IMAGE, (), POOL, ("reshape", "max_pool2d", "reshape")),
    ("MaxPool", (10, 12), IMAGE, (), {**POOL, "dilations": [2, 1], "pads": [1, 1, 1, 1]}, None),
    ("MaxPool", (12,), IMAGE, (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, None),
    ("MaxPool", (12,), IMAGE, (), {**POOL, "pads": [2, 0, 0, 1]}, None),
    ("MaxPool", (12,), IMAGE, (), {**POOL, "auto_pad": "SAME_UPPER"}, None),
    (
        "MaxPool",
        (12,),
        IMAGE,
        (),
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 1], "ceil_mode": 1},
        None,
    ),
    ("MaxPool", (12,), LINE, (), {"kernel_shape": [2], "strides": [2]}, None),
    ("AveragePool", (7, 11), IMAGE, (), {**POOL, "pads": [1, 1, 1, 1], "count_include_pad": 1}, None),
    ("AveragePool", (7, 11), IMAGE, (), {**POOL, "pads": [1, 1, 1, 1]}, None),
    ("AveragePool", (11,), IMAGE, (), {**POOL, "pads": [0, 1, 2, 0]}, None),
    ("AveragePool", (11,), IMAGE, (), {**POOL, "pads": [0, 1, 2, 0], "count_include_pad": 1}, None),
    ("AveragePool", (11,), IMAGE, (), {**POOL, "auto_pad": "SAME_LOWER"}, None),
    ("AveragePool", (11,), LINE, (), {"kernel_shape": [3]}, None),
    ("GlobalAveragePool", (7,), IMAGE, (), {}, ("mean",)),
    ("GlobalMaxPool", (7,), IMAGE, (), {}, ("reshape", "max_pool2d", "reshape")),
    ("GlobalMaxPool", (7,), LINE, (), {}, None),
    ("Pad", (7,), IMAGE, (), {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, ("pad",)),
    ("Pad", (11, 13), IMAGE, (i64(0, 0, 1, -1, 0, 0, -2, 1), np.float32(-1.5)), {}, ("slice", "slice", "pad")),
    ("Pad", (11,), IMAGE, (i64(0, 0, 0, 0, 0, 0, 0, 0),), {"mode": "reflect"}, ()),
    ("Pad", (18,), IMAGE, (i64(1, 2), np.float32(0), i64(-1)), {}, ("pad",)),
    ("Reshape", (7, 13, 14), IMAGE, (i64(0, -1, 6),), {}, ("reshape",)),
    ("Flatten", (7, 13), IMAGE, (), {}, ("reshape",)),
    ("Flatten", (11,), IMAGE, (), {"axis": 3}, ("reshape",)),
    ("Flatten", (11,), IMAGE, (), {"axis": -1}, ("reshape",)),
    ("Transpose", (7, 13), IMAGE, (), {"perm": [0, 2, 3, 1]}, ("transpose",)),
    ("Transpose", (7,), (1, 2, 3), (), {}, ("transpose",)),
    ("Squeeze", (7, 11), (1, 2, 1, 3), (), {"axes": [2]}, ("reshape",)),
    ("Squeeze", (13,), (1, 2, 1, 3), (i64(-2),), {}, ("reshape",)),
    ("Squeeze", (13,), (1, 2, 1, 3), (), {}, ("reshape",)),
    ("Unsqueeze", (7,), (1, 3), (), {"axes": [0, 3]}, ("reshape",)),
    ("Unsqueeze", (13,), (1, 3), (i64(-1, 1),), {}, ("reshape",)),
    ("Expand", (8, 13), (1, 3, 1), (i64(2, 1, 1, 4),), {}, ("expand",)),
    ("Concat", (7, 13), (1, 3), (f32(1, 2),), {"axis": 1}, ("concat",)),
    ("Concat", (13,), (2, 3), (f32(1, 3), f32(2, 3)), {"axis": -2}, ("concat",)),
    ("Slice", (7, 9), IMAGE, (), {"starts": [1, -4], "ends": [5, 9], "axes": [2, 3]}, ("slice", "slice")),
    ("Slice", (10, 13), IMAGE, (i64(0, 1), i64(2**62, -1), i64(1, 3), i64(1, 2)), {}, ("slice",)),
    ("Slice", (13,), IMAGE, (i64(-1), i64(-(2**62)), i64(3), i64(-2)), {}, ("gather",)),
    ("Slice", (13,), (1, 4), (i64(-9), i64(-9), i64(1), i64(-1)), {}, ("gather",)),
    ("Gather", (7, 13), (1, 5, 2), (i64(3, -5, 3),), {"axis": 1}, ("gather",)),
    ("Gather", (13,), (1, 5, 2), (np.asarray(-1),), {"axis": 1}, ("slice", "reshape")),
    ("Gather", (13,), (1, 5, 2), (np.asarray([[1, 2], [0, 4]]),), {"axis": -2}, ("gather", "reshape")),
    ("ReduceSum", (7, 11), IMAGE, (), {"axes": [1, -1], "keepdims": 0}, ("sum",)),
    ("ReduceSum", (13,), IMAGE, (i64(2),), {}, ("sum",)),
    ("ReduceSum", (13,), IMAGE, (), {"noop_with_empty_axes": 1}, ()),
    ("ReduceMean", (7, 13), IMAGE, (), {"axes": [2, 3]}, ("mean",)),
    ("ReduceMean", (18,), IMAGE, (i64(-1, 1),), {"keepdims": 0}, ("mean",)),
    ("ReduceMean", (13,), (2, 3), (), {}, ("mean",)),
]


@pytest.mark.parametrize(
    ("op", "opset", "shape", "constants", "attrs", "becomes"),
    [
        pytest.param(op, opset, *rest, id=f"{op}-{opset}-{number}")
        for number, (op, opsets, *rest) in enumerate(CASES)
        for opset in opsets
    ],
)
def test_op(
    tmp_path: Path,
    op: str,
    opset: int,
    shape: Sequence[int],
    constants: Sequence[Any],
    attrs: Mapping[str, Any],
    becomes: Sequence[str] | None,
):
    numbers = {f"c{i}": np.asarray(array) for i, array in enumerate(constants) if array is not None}
    inputs = ["x", *("" if array is None else f"c{i}" for i, array in enumerate(constants))]
    node = helper.make_node(op, inputs, ["y"], **attrs)
    graph = agrees(stored(tmp_path, model([node], {"x": shape}, numbers, opset)))
    if becomes is not None:
        assert tuple(n.op for n in graph.nodes if n.op not in ("input", "parameter")) == tuple(becomes)


def test_opset_22_and_constant_on_the_left(tmp_path: Path):
    nodes = [
        helper.make_node("MatMul", ["w", "x"], ["m"]),
        helper.make_node("Sub", ["c", "m"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    graph = agrees(stored(tmp_path, model(nodes, {"x": [3]}, {"w": f32(2, 3), "c": f32(2)}, 22)))
    assert [node.op for node in graph.nodes if node.op != "parameter"] == ["input", "linear", "sub", "relu"]


@pytest.mark.parametrize(
    ("left", "right"), [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,))]
)
def test_product_of_computed_values(tmp_path: Path, left: tuple[int, ...], right: tuple[int, ...]):
    sizes = math.prod(left), math.prod(right)
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=0, split=list(sizes)),
        helper.make_node("Reshape", ["a", "sa"], ["p"]),
        helper.make_node("Reshape", ["b", "sb"], ["q"]),
        helper.make_node("MatMul", ["p", "q"], ["y"]),
    ]
    path = stored(tmp_path, model(nodes, {"x": [sum(sizes)]}, {"sa": i64(*left), "sb": i64(*right)}, 11))
    assert "matmul" in {node.op for node in agrees(path).nodes}


@pytest.mark.parametrize(("opset", "outputs"), [(7, 2), (13, 2), (18, 3)])
def test_split(tmp_path: Path, opset: int, outputs: int):
    names = [f"p{i}" for i in range(outputs)]
    attrs: dict[str, Any] = {"num_outputs": outputs} if opset == 18 else {}
    split = helper.make_node("Split", ["x"], names, axis=1, **attrs)
    join = helper.make_node("Concat", names[::-1], ["y"], axis=1)
    graph = agrees(stored(tmp_path, model([split, join], {"x": [1, 8 if outputs == 3 else 6]}, {}, opset)))
    assert [node.op for node in graph.nodes] == ["input", *["slice"] * outputs, "concat"]


def test_constant_choice(tmp_path: Path):
    """A condition computed from constants, with and without computed branches."""
    nodes = [
        helper.make_node("Greater", ["m", "zero"], ["mask"]),
        helper.make_node("Where", ["mask", "x", "m"], ["y"]),
    ]
    graph = agrees(
        stored(tmp_path, model(nodes, {"x": [1, 4]}, {"m": f32(1, 4), "zero": np.asarray([0], np.float32)}, 13))
    )
    mask = graph.parameters()[graph["y"].inputs[0]]
    assert mask.dtype == torch.bool
    assert mask.tolist() == (f32(4) > 0).tolist()


def test_shape_arithmetic_is_folded(tmp_path: Path):
    """Reshape(x, [Shape(x)[0], -1]) as old exporters write it, behind a symbolic batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.asarray(0))),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n"], ["n1"], axes=[0]),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(i64(-1))),
        helper.make_node("Concat", ["n1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("Gemm", ["flat", "wt", "b"], ["y"], transB=1),
    ]
    path = stored(tmp_path, model(nodes, {"x": ["batch", 2, 3]}, {"w": f32(6, 2), "b": f32(2)}, 11))
    graph = agrees(path)
    assert [(node.name, node.op) for node in graph.nodes] == [
        ("x", "input"),
        ("flat", "reshape"),
        ("wt", "parameter"),
        ("b", "parameter"),
        ("y", "linear"),
    ]
    assert graph.input.shape == (1, 2, 3)
    assert graph["y"].origin == "net.onnx: Gemm 'y'"
    assert graph["wt"].origin == "net.onnx: tensor 'wt'"


def test_several_inputs_and_outputs(tmp_path: Path):
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["gap"]),
    ]
    path = stored(tmp_path, model(nodes, {"a": [1, 3], "b": [1, 3]}, {}, 13, ("sum", "gap")))
    graph = load_onnx(path)
    assert (graph.inputs, graph.outputs) == (("a", "b"), ("sum", "gap"))
    assert isinstance(graph.original, OnnxOriginal)
    a, b = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    total, gap = graph.original.run([a, b])
    assert torch.equal(total, a + b)
    assert torch.equal(gap, a - b)
    with pytest.raises(UsageError, match="2 inputs and 2 outputs"):
        graph.original(a)
    export(graph, tmp_path / "copy.onnx")
    again = load_onnx(tmp_path / "copy.onnx")
    assert (again.inputs, again.outputs) == (("a", "b"), ("sum", "gap"))


def test_double_precision_and_original(tmp_path: Path):
    numbers = {"w": f32(3, 2).astype(np.float64)}
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 3]}, numbers, 13, kind=TensorProto.DOUBLE
    )
    graph = load_onnx(stored(tmp_path, proto))
    original = graph.original
    assert isinstance(original, OnnxOriginal)
    assert original.dtype == torch.float64
    assert original.batchable
    x = torch.randn(4, 1, 3)
    assert original(x).dtype == torch.float64
    torch.testing.assert_close(original(x), run(graph, x.double()), rtol=1e-12, atol=1e-12)
    copied = pickle.loads(pickle.dumps(original))
    assert torch.equal(copied(x), original(x))
    assert "data" not in repr(original)


DOUBLES: list[tuple[str, Sequence[int], Sequence[Any], Mapping[str, Any]]] = [
    ("LeakyRelu", (1, 4), (), {}),
    ("LeakyRelu", (1, 4), (), {"alpha": 0.3}),
    ("BatchNormalization", (1, 2, 3), (np.ones(2), np.ones(2), np.zeros(2), np.zeros(2)), {}),
    ("Gemm", (1, 4), (f32(4, 2),), {"alpha": 0.3}),
    ("Clip", (1, 4), (-np.finfo(np.float32).max, np.finfo(np.float64).max), {}),
    ("Max", (1, 4), (-np.inf,), {}),
]


@pytest.mark.parametrize(("op", "shape", "constants", "attrs"), DOUBLES)
def test_double_precision_ops(
    tmp_path: Path, op: str, shape: Sequence[int], constants: Sequence[Any], attrs: Mapping[str, Any]
):
    """Defaults of attributes are float32 numbers (0.01f is not 0.01), other constants are not."""
    numbers = {f"c{i}": np.asarray(array, np.float64) for i, array in enumerate(constants)}
    node = helper.make_node(op, ["x", *numbers], ["y"], **attrs)
    path = stored(tmp_path, model([node], {"x": shape}, numbers, 16, kind=TensorProto.DOUBLE))
    x = torch.randn(4, *shape, dtype=torch.float64)
    x[-1] *= 1e40
    torch.testing.assert_close(run(load_onnx(path), x), run_file(path, x), rtol=1e-12, atol=0)


def test_constants_of_rules_are_not_rounded(tmp_path: Path):
    """Mean's share, AveragePool's windows and scaled weights are no float32 numbers, and bounds are in float64."""
    mean = model([helper.make_node("Mean", ["x", "x", "x"], ["y"])], {"x": [1, 3]}, {})
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[4], pads=[0, 1])
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.1, beta=0.9)
    weights = {"w": np.full((1, 1), 1 / 3, np.float32), "b": np.full(1, 1 / 7, np.float32)}
    graphs = [
        load_onnx(stored(tmp_path, proto))
        for proto in (mean, model([pool], {"x": [1, 1, 4]}, {}, 11), model([gemm], {"x": [1, 1]}, weights))
    ]
    ones = [run(graph, torch.ones(1, *graph.input.shape, dtype=torch.float64)).flatten() for graph in graphs]
    scaled = sum(float(np.float32(a)) * float(np.float32(b)) for a, b in ((0.1, 1 / 3), (0.9, 1 / 7)))
    torch.testing.assert_close(
        torch.cat(ones), torch.tensor([*[1.0] * 5, scaled], dtype=torch.float64), rtol=1e-15, atol=0
    )


def test_symbolic_batch_that_mixes_samples_is_run_one_by_one(tmp_path: Path):
    """ReduceMean over axis 0 is the identity for one sample, and an average for several in one call."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)]
    graph = load_onnx(stored(tmp_path, model(nodes, {"x": ["n", 3]}, {}, 13)))
    assert isinstance(graph.original, OnnxOriginal)
    assert not graph.original.batchable
    x = torch.randn(4, 1, 3)
    assert torch.equal(graph.original(x), x)
    assert torch.equal(run(graph, x), x)


# ---------------------------------------------------------------- files and errors


def relu_model(shape: Sequence[int | str | None] = (1, 3)) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {})


def test_gzip_and_sibling(tmp_path: Path):
    (tmp_path / "net.onnx.gz").write_bytes(gzip.compress(relu_model().SerializeToString()))
    for name in ("net.onnx", "net.onnx.gz"):
        graph = load_onnx(tmp_path / name)
        assert graph.output.op == "relu"
        assert isinstance(graph.original, OnnxOriginal)
        assert graph.original.path == str(tmp_path / "net.onnx.gz")


def test_damaged_files(tmp_path: Path):
    data = relu_model().SerializeToString()
    cases = {
        "absent.onnx": (None, "no such file, with or without .gz"),
        "text.onnx": (b"not a network at all", "not an ONNX"),
        "cut.onnx": (data[: len(data) // 2], "not an ONNX file, or a truncated one"),
        "empty.onnx": (b"", "no outputs or no operator set"),
        "cut.onnx.gz": (gzip.compress(data)[:-20], "damaged gzip file"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message) as caught:
            load_onnx(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        load_onnx(tmp_path)


def test_external_data(tmp_path: Path):
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 3]}, {"w": f32(3, 2)})
    path = tmp_path / "net.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = load_onnx(path)
    x = torch.randn(2, 1, 3)
    assert isinstance(graph.original, OnnxOriginal)
    torch.testing.assert_close(graph.original(x), x @ torch.from_numpy(f32(3, 2)))
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match="weights lie in another file that cannot be read"):
        load_onnx(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_numbers_are_named(tmp_path: Path, bad: float):
    weight = f32(3, 2)
    weight[1, 1] = bad
    path = stored(
        tmp_path, model([helper.make_node("MatMul", ["x", "layer.w"], ["y"])], {"x": [1, 3]}, {"layer.w": weight})
    )
    with pytest.raises(ModelError, match=r"tensor 'layer\.w.*contains NaN or infinity"):
        load_onnx(path)


def test_nan_limit(tmp_path: Path):
    node = helper.make_node("Clip", ["x", "low"], ["y"])
    path = stored(tmp_path, model([node], {"x": [1, 3]}, {"low": np.asarray(np.nan, np.float32)}))
    with pytest.raises(ModelError, match="a limit is NaN"):
        load_onnx(path)


@pytest.mark.parametrize("low", [1e39, -1e39, np.inf])
def test_limits_beyond_float32_are_refused(tmp_path: Path, low: float):
    """In a double model they are real limits, which were dropped; a search in float32 cannot have them."""
    node = helper.make_node("Clip", ["x", "low"], ["y"])
    path = stored(tmp_path, model([node], {"x": [1, 3]}, {"low": np.asarray(low)}, kind=TensorProto.DOUBLE))
    with pytest.raises(UnsupportedOp, match=re.escape(f"the limit {low:g} is no float32")):
        load_onnx(path)


def test_clip_with_crossed_limits_is_its_upper_limit(tmp_path: Path):
    """onnxruntime and the standard: min(max(x, low), high); the bounds of low > high must not leave [high, high]."""
    numbers = {"low": np.asarray(1, np.float32), "high": np.asarray(-1, np.float32)}
    graph = agrees(stored(tmp_path, model([helper.make_node("Clip", ["x", *numbers], ["y"])], {"x": [1, 4]}, numbers)))
    assert (graph["y"].attrs["min"], graph["y"].attrs["max"]) == (-1.0, -1.0)
    assert bounded(graph, -2.0, 3.0) == (-1.0, -1.0)


REFUSED: list[tuple[str, Sequence[int], Sequence[Any], Mapping[str, Any], str]] = [
    ("Hardmax", (1, 3), (), {}, "op 'Hardmax' at node 'y'"),
    ("Sinh", (1, 3), (), {}, "no rule for it"),
    (
        "Resize",
        (1, 1, 2, 2),
        (np.zeros(0, np.float32), np.asarray([1, 1, 2, 2], np.float32)),
        {"mode": "linear"},
        "only nearest neighbours",
    ),
    ("ConvTranspose", (1, 2, 3, 3), (f32(2, 1, 2, 2),), {"auto_pad": "SAME_UPPER"}, "export it with pads"),
    ("Pow", (1, 3), (np.float32(2.5),), {}, "op 'Pow'.*only the exponents -1, -0.5, 0.5, 1, 2, 3 and 4"),
    ("Pow", (1, 2), (f32(2),), {}, "only the exponents"),
    ("Conv", (2, 2, 5, 6), (f32(4, 2, 3, 3),), {}, "fixes the batch at 2"),
    ("Conv", (1, 1, 3, 3, 3), (f32(1, 1, 2, 2, 2),), {}, "one and two spatial dimensions"),
    ("BatchNormalization", (3, 2), (f32(2), f32(2), f32(2), f32(2) ** 2), {}, "first axis has to be a batch of 1"),
    ("Pad", (1, 4), (i64(0, 1, 0, 1),), {"mode": "edge"}, "mode 'edge'"),
    (
        "MaxPool",
        (1, 1, 5),
        (),
        {"kernel_shape": [2], "dilations": [2], "auto_pad": "SAME_UPPER"},
        "auto_pad 'SAME_UPPER' with dilations.*export it with pads",
    ),
    ("AveragePool", (1, 1, 2, 2), (), {"kernel_shape": [1, 2], "pads": [1, 0, 2, 1]}, "in the padding altogether"),
    ("Cast", (1, 4), (), {"to": TensorProto.INT64}, "is cast to INT64, which rounds it more than FLOAT"),
    ("Cast", (1, 4), (), {"to": TensorProto.BFLOAT16}, "is cast to BFLOAT16.*export the network in FLOAT throughout"),
    ("Dropout", (1, 4), (np.float32(0.5), np.bool_(True)), {}, "training mode"),
    (
        "MaxPool",
        (1, 1, 3, 2),
        (),
        {"kernel_shape": [2, 2], "dilations": [1, 3], "pads": [0, 1, 1, 1]},
        "padding altogether",
    ),
]


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attrs", "message"), REFUSED, ids=[case[0] + case[-1][:9] for case in REFUSED]
)
def test_refused(
    tmp_path: Path, op: str, shape: Sequence[int], constants: Sequence[Any], attrs: Mapping[str, Any], message: str
):
    numbers = {f"c{i}": np.asarray(array) for i, array in enumerate(constants)}
    node = helper.make_node(op, ["x", *numbers], ["y"], **attrs)
    with pytest.raises(UnsupportedOp, match=message) as caught:
        load_onnx(stored(tmp_path, model([node], {"x": shape}, numbers)))
    assert (caught.value.op, caught.value.node) == (op, "y")
    assert "net.onnx: " + op in str(caught.value)


@pytest.mark.parametrize(("kind", "to"), [(FLOAT, TensorProto.FLOAT16), (TensorProto.DOUBLE, FLOAT)])
def test_casts_that_round_are_refused(tmp_path: Path, kind: int, to: int):
    """There and back: a graph without the casts would be another function."""
    nodes = [helper.make_node("Cast", ["x"], ["half"], to=to), helper.make_node("Cast", ["half"], ["y"], to=kind)]
    with pytest.raises(UnsupportedOp, match="op 'Cast' at node 'half'.*which rounds it more than"):
        load_onnx(stored(tmp_path, model(nodes, {"x": [1, 4]}, {}, kind=kind)))


def test_casts_to_wider_floats_and_back(tmp_path: Path):
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "c"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=FLOAT),
    ]
    agrees(stored(tmp_path, model(nodes, {"x": [1, 4]}, {"c": np.asarray(0.1)})))


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Bernoulli", ("p",), {}),
        ("Multinomial", ("p",), {"dtype": FLOAT}),
        ("RandomNormal", (), {"shape": [1, 3]}),
        ("RandomNormalLike", ("p",), {}),
        ("RandomUniform", (), {"shape": [1, 3]}),
        ("RandomUniformLike", ("p",), {}),
        ("Dropout", ("p", "ratio", "training"), {}),
    ],
)
def test_random_numbers_are_refused(tmp_path: Path, op: str, inputs: Sequence[str], attrs: Mapping[str, Any]):
    """On constants too, where one draw would have become part of the graph."""
    numbers = {"p": np.full((1, 3), 0.5, np.float32), "ratio": np.float32(0.5), "training": np.bool_(True)}
    nodes = [helper.make_node(op, inputs, ["r"], **attrs), helper.make_node("Add", ["x", "r"], ["y"])]
    used = {name: np.asarray(numbers[name]) for name in inputs}
    with pytest.raises(UnsupportedOp, match=f"op '{op}' at node 'r'.*export the model for inference"):
        load_onnx(stored(tmp_path, model(nodes, {"x": [1, 3]}, used, 15)))


@pytest.mark.parametrize("opset", [9, 15])
@pytest.mark.parametrize("x", ["x", "c"])
def test_batch_norm_in_training_is_refused(tmp_path: Path, opset: int, x: str):
    """An attribute says so from opset 14 on, and more than one output before."""
    numbers = {name: f32(3) ** 2 for name in ("s", "b", "m", "v")} | ({"c": f32(1, 3)} if x == "c" else {})
    outputs, attrs = (["n", "m2", "v2", "s2", "t2"], {}) if opset == 9 else (["n", "m2", "v2"], {"training_mode": 1})
    nodes = [
        helper.make_node("BatchNormalization", [x, "s", "b", "m", "v"], outputs, **attrs),
        helper.make_node("Add", ["x", "n"], ["y"]),
    ]
    with pytest.raises(UnsupportedOp, match="op 'BatchNormalization'.*training mode; export the model for inference"):
        load_onnx(stored(tmp_path, model(nodes, {"x": [1, 3]}, numbers, opset)))


@pytest.mark.parametrize(
    ("op", "shape", "constants", "attrs", "message"),
    [
        ("Cast", (1, 3), (), {}, "Cast 'y': it makes no sense to the importer"),
        ("MaxPool", (1, 1, 3), (), {"auto_pad": "VALID"}, "MaxPool 'y': it makes no sense to the importer"),
        ("LeakyRelu", (1, 3), (), {"alpha": "x"}, "LeakyRelu 'y': it makes no sense.*onnx.checker"),
        ("Unsqueeze", (1, 3), (i64(0, -4),), {}, "Unsqueeze 'y': it makes no sense"),
        ("Transpose", (1, 3), (), {"perm": [0, 0]}, "Transpose 'y'.*do not fit"),
    ],
)
def test_nonsense_is_named(
    tmp_path: Path, op: str, shape: Sequence[int], constants: Sequence[Any], attrs: Mapping[str, Any], message: str
):
    """Whatever the code of a rule raises comes with the file and the node."""
    numbers = {f"c{i}": np.asarray(array) for i, array in enumerate(constants)}
    node = helper.make_node(op, ["x", *numbers], ["y"], **attrs)
    with pytest.raises(ModelError, match=rf"net\.onnx: {message}"):
        load_onnx(stored(tmp_path, model([node], {"x": shape}, numbers)))


def test_nonsense_outside_nodes(tmp_path: Path):
    broken = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [1, 3]}, {"w": f32(3)})
    broken.graph.initializer[0].raw_data = b"123"
    with pytest.raises(ModelError, match=r"net\.onnx: it makes no sense to the importer"):
        load_onnx(stored(tmp_path, broken))
    foreign = relu_model()
    foreign.opset_import[0].domain = "com.example"
    with pytest.raises(UnsupportedOp, match="opset 0"):
        load_onnx(stored(tmp_path, foreign))


def test_values_without_axes(tmp_path: Path):
    """A number in, a number out, and one number for a whole batch."""
    agrees(stored(tmp_path, model([helper.make_node("Neg", ["x"], ["y"])], {"x": []}, {})), rewrites=False)
    mean = model([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], {"x": ["n", 3]}, {})
    graph = agrees(stored(tmp_path, mean), rewrites=False)
    assert isinstance(graph.original, OnnxOriginal) and not graph.original.batchable


def test_batch_norm_per_position_is_refused(tmp_path: Path):
    numbers = {name: np.ones((2, 3), np.float32) for name in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", *numbers], ["y"], spatial=0)
    with pytest.raises(UnsupportedOp, match="only the form with running statistics per channel"):
        load_onnx(stored(tmp_path, model([node], {"x": [1, 2, 3]}, numbers, 7)))


def test_shapes_of_ops_without_a_sample_axis():
    ops = {**OPS, "relu": replace(OPS["relu"], forward=lambda site, x: x.sum(0))}
    x = Node("x", "input", shape=(3,))
    with pytest.raises(RuntimeError, match="has no sample axis"):
        infer_shape(Node("y", "relu", ("x",)), (x,), ops, frozenset())


def test_computed_operands_that_must_be_constant(tmp_path: Path):
    nodes = [helper.make_node("Greater", ["x", "c"], ["m"]), helper.make_node("Where", ["m", "x", "c"], ["y"])]
    with pytest.raises(UnsupportedOp, match="op 'Greater'"):
        load_onnx(stored(tmp_path, model(nodes, {"x": [1, 3]}, {"c": f32(3)})))
    nodes = [helper.make_node("PRelu", ["x", "x"], ["y"])]
    with pytest.raises(UnsupportedOp, match=r"input 1 \('x'\) depends on the network's input"):
        load_onnx(stored(tmp_path, model(nodes, {"x": [1, 3]}, {})))


def test_inputs_that_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="the size of axis 2 is unknown"):
        load_onnx(stored(tmp_path, relu_model(("n", 3, "width"))))
    with pytest.raises(ModelError, match="the size of axis 1 is unknown"):
        load_onnx(stored(tmp_path, relu_model(("n", "features"))))
    whole = relu_model()
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnsupportedOp, match="element type INT64"):
        load_onnx(stored(tmp_path, whole))
    old = relu_model()
    old.opset_import[0].version = 6
    with pytest.raises(UnsupportedOp, match="convert the file to operator set 7"):
        load_onnx(stored(tmp_path, old))
    foreign = relu_model()
    foreign.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedOp, match=r"op 'com\.example\.Relu'"):
        load_onnx(stored(tmp_path, foreign))


def test_inconsistent_models(tmp_path: Path):
    shapes = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 3]}, {"w": f32(4, 2)})
    with pytest.raises(ModelError, match=r"MatMul 'y': shapes \(1, 3\), \(2, 4\) do not fit"):
        load_onnx(stored(tmp_path, shapes))
    target = model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": [1, 3]}, {"s": i64(2, 3)})
    with pytest.raises(ModelError, match=r"cannot reshape \(1, 3\) to \[2, 3\]"):
        load_onnx(stored(tmp_path, target))
    order = model([helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])], {"x": [1, 3]}, {})
    with pytest.raises(ModelError, match="nothing before it computes 'a'"):
        load_onnx(stored(tmp_path, order))
    fixed = model([helper.make_node("Identity", ["w"], ["y"])], {"x": [1, 3]}, {"w": f32(2)})
    with pytest.raises(ModelError, match="output 'y' does not depend on the network's input"):
        load_onnx(stored(tmp_path, fixed))


def test_gate_catches_a_wrong_rule(tmp_path: Path):
    """An op table whose relu leaks is not believed."""
    wrong = {**OPS, "relu": replace(OPS["relu"], forward=lambda site, x: F.leaky_relu(x, 0.1))}
    words = r"value 'y' \(net\.onnx: Relu 'y'\) differs from onnxruntime by .*, where rounding explains .*, on inputs"
    with pytest.raises(TraceMismatch, match=words):
        load_onnx(stored(tmp_path, relu_model()), wrong)


def test_gate_catches_a_wrong_rule_behind_which_the_values_become_small(tmp_path: Path):
    """What is one millionth of the output here may be the whole margin of a proof."""
    wrong = {**OPS, "tanh": replace(OPS["tanh"], forward=lambda site, x: 1.001 * torch.tanh(x))}
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Mul", ["t", "small"], ["s"]),
        helper.make_node("Add", ["s", "large"], ["y"]),
    ]
    path = stored(tmp_path, model(nodes, {"x": [1, 3]}, {"small": np.float32(1e-6), "large": np.float32(100)}))
    load_onnx(path)
    with pytest.raises(TraceMismatch, match=r"value 't' \(net\.onnx: Tanh 't'\) differs"):
        load_onnx(path, wrong)


def test_gate_sees_behind_neurons_that_are_off_for_small_inputs(tmp_path: Path):
    wrong = {**OPS, "tanh": replace(OPS["tanh"], forward=lambda site, x: 1.001 * torch.tanh(x))}
    nodes = [
        helper.make_node("Sub", ["x", "c"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Tanh", ["r"], ["y"]),
    ]
    path = stored(tmp_path, model(nodes, {"x": [1, 3]}, {"c": np.float32(50)}))
    with pytest.raises(TraceMismatch, match=r"value 'y' .* on inputs that are 10000 times random"):
        load_onnx(path, wrong)


def test_gate_compares_outputs_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An op that is taken for an identity leaves no node of its own."""
    nodes = [helper.make_node("Mul", ["x", "c"], ["m"]), helper.make_node("Abs", ["m"], ["y"])]
    path = stored(tmp_path, model(nodes, {"x": [1, 3]}, {"c": np.float32(1e-6)}))
    monkeypatch.setattr(onnx_import, "RULES", {**onnx_import.RULES, "Abs": onnx_import.RULES["Identity"]})
    with pytest.raises(TraceMismatch, match=r"value 'm' \(net\.onnx: Mul 'm'\) differs from onnxruntime"):
        load_onnx(path)


def test_gate_lets_cancellation_pass(tmp_path: Path):
    """The output is a millionth of what it is the difference of, so rounding changes its first digits."""
    w = f32(60, 5)
    numbers = {"w": w, "v": (w * (1 + 1e-6 * f32(60, 5, seed=1))).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["y"]),
    ]
    load_onnx(stored(tmp_path, model(nodes, {"x": [1, 60]}, numbers)))


def transposed_product() -> onnx.ModelProto:
    """y = first row of x, which onnxruntime's optimiser turns into something else (seen in 1.31)."""
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["t", "c"], ["y"])]
    return model(nodes, {"x": [3, 2]}, {"c": np.asarray([1, 0, 0], np.float32)})


def test_the_original_is_the_network_of_the_file(tmp_path: Path):
    """Where onnxruntime's own optimisations change the outputs, witnesses are replayed without them."""
    path = stored(tmp_path, transposed_product())
    graph = load_onnx(path)
    x = torch.randn(4, 3, 2)
    assert isinstance(graph.original, OnnxOriginal)
    assert torch.equal(graph.original(x), x[:, 0])
    assert torch.equal(pickle.loads(pickle.dumps(graph.original))(x), x[:, 0])
    assert torch.equal(run(graph, x), x[:, 0])


def test_optimisations_that_change_the_outputs_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    opened = onnx_gate.open_session

    def spoilt(data: bytes, path: str, optimised: bool = True) -> onnxruntime.InferenceSession:
        return opened(neg.SerializeToString() if optimised else data, path, optimised)

    neg = model([helper.make_node("Neg", ["x"], ["y"])], {"x": [1, 3]}, {})
    path = stored(tmp_path, relu_model())
    graph = load_onnx(path)
    assert isinstance(graph.original, OnnxOriginal) and graph.original.optimised and not caplog.records
    monkeypatch.setattr(onnx_gate, "open_session", spoilt)
    graph = load_onnx(path)
    assert isinstance(graph.original, OnnxOriginal) and not graph.original.optimised
    assert "onnxruntime's own optimisations change its outputs; it is run without them" in caplog.text


def test_what_onnxruntime_does_not_run(tmp_path: Path):
    """Its exceptions share no base; the words of both come with the file and the node."""
    attrs: dict[str, Any] = {"kernel_shape": [1], "strides": [3], "auto_pad": "SAME_UPPER"}
    pool = helper.make_node("MaxPool", ["x"], ["y"], name="pool", **attrs)
    with pytest.raises(ModelError, match=r"net\.onnx: onnxruntime cannot run the model: .*MaxPool node.*'pool'"):
        load_onnx(stored(tmp_path, model([pool], {"x": [1, 1, 3]}, {})))
    node = helper.make_node("HardSigmoid", ["x"], ["y"], name="step")
    with pytest.raises(ModelError, match=r"net\.onnx: onnxruntime cannot load the model: .*HardSigmoid.*'step'"):
        load_onnx(stored(tmp_path, model([node], {"x": [1, 3]}, {}, kind=TensorProto.DOUBLE)))


def test_dead_nodes_are_not_translated(tmp_path: Path):
    nodes = [helper.make_node("Hardmax", ["x"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    graph = load_onnx(stored(tmp_path, model(nodes, {"x": [1, 3]}, {})))
    assert [node.name for node in graph.nodes] == ["x", "y"]


def test_local_functions_are_inlined(tmp_path: Path):
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    body = [helper.make_node("Neg", ["a"], ["n"]), helper.make_node("Relu", ["n"], ["r"])]
    function = helper.make_function("local", "Flip", ["a"], ["r"], body, opsets[:1])
    call = helper.make_node("Flip", ["x"], ["y"], domain="local")
    proto = model([call], {"x": [1, 3]}, {})
    proto.opset_import.append(opsets[1])
    proto.functions.append(function)
    assert [node.op for node in agrees(stored(tmp_path, proto)).nodes] == ["input", "neg", "relu"]


# ---------------------------------------------------------------- networks by hand, passes, export


class Hand:
    """A graph written down node by node."""

    def __init__(self, *shape: int):
        self.nodes = [Node("x", "input", shape=shape)]
        self.tensors: dict[str, Tensor] = {}

    def param(self, name: str, tensor: Tensor) -> str:
        self.tensors[name] = tensor
        self.nodes.append(Node(name, "parameter", shape=tuple(tensor.shape), batched=False))
        return name

    def add(self, name: str, op: str, inputs: Sequence[str], shape: Sequence[int], /, **attrs: Any) -> str:
        self.nodes.append(Node(name, op, tuple(inputs), attrs, tuple(shape)))
        return name

    def graph(self, *outputs: str) -> Graph:
        return check(Graph(tuple(self.nodes), ("x",), outputs, OPS, FixedParameters(self.tensors)))


def conv_attrs(padding: int = 1) -> dict[str, Any]:
    return {"stride": (1, 1), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}


def resnet_model(seed: int, grafted: bool = True) -> onnx.ModelProto:
    """Normalisation, conv, graft, conv, residual add, pooling, dense layers, as an ONNX file has them."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    numbers = {
        "mean": normal(1, 2, 1, 1),
        "w1": normal(4, 2, 3, 3),
        "b1": normal(4),
        "w2": normal(4, 4, 3, 3),
        "mask": rng.random((1, 4, 6, 6)) > 0.5,
        "slope": normal(1, 4, 6, 6),
        "intercept": normal(1, 4, 6, 6),
        "w3": normal(3, 36),
        "b3": normal(1, 3),
        "w4": normal(3, 2),
        "b4": normal(2),
    }
    pads: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    graft = [
        helper.make_node("Mul", ["slope", "c1"], ["line0"]),
        helper.make_node("Add", ["intercept", "line0"], ["line"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Where", ["mask", "line", "r1"], ["a1"]),
    ]
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Conv", ["centred", "w1", "b1"], ["c1"], **pads),
        *(graft if grafted else [helper.make_node("Relu", ["c1"], ["a1"])]),
        helper.make_node("Conv", ["a1", "w2"], ["c2"], **pads),
        helper.make_node("Add", ["c2", "a1"], ["sum"]),
        helper.make_node("Concat", ["sum", "a1"], ["both"], axis=1),
        helper.make_node("Slice", ["both", "from", "to", "axis"], ["part"]),
        helper.make_node("MaxPool", ["part"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["hr"]),
        helper.make_node("MatMul", ["hr", "w4"], ["y0"]),
        helper.make_node("Add", ["y0", "b4"], ["y"]),
    ]
    places = {"from": i64(2), "to": i64(6), "axis": i64(1)}
    return model(nodes, {"x": ["batch", 2, 6, 6]}, numbers | places, 13)


@pytest.mark.parametrize("seed", range(5))
def test_passes_keep_the_outputs(tmp_path: Path, seed: int):
    graph = load_onnx(stored(tmp_path, resnet_model(seed)))
    x = torch.randn(3, *graph.input.shape, dtype=torch.float64)
    wanted = run(graph, x)
    for rewrite in (*REWRITES, passes.drop_unused):
        rewritten = rewrite(graph)
        assert rewritten.outputs == ("y",)
        assert rewritten.original is graph.original
        torch.testing.assert_close(run(rewritten, x), wanted, rtol=1e-9, atol=1e-9)
    for rewrite in REWRITES:
        graph = rewrite(graph)
    torch.testing.assert_close(run(graph, x), wanted, rtol=1e-9, atol=1e-9)


def test_reshapes_vanish_between_layers(tmp_path: Path):
    graph = passes.sink_reshapes(passes.recognise_grafts(load_onnx(stored(tmp_path, resnet_model(0)))))
    ops = [(node.op, node.shape) for node in graph.nodes if node.op not in ("parameter", "input")]
    assert ops == [
        ("sub", (1, 2, 6, 6)),
        ("reshape", (2, 6, 6)),
        ("conv2d", (4, 6, 6)),
        ("graft", (4, 6, 6)),
        ("conv2d", (4, 6, 6)),
        ("add", (4, 6, 6)),
        ("concat", (8, 6, 6)),
        ("slice", (4, 6, 6)),
        ("max_pool2d", (4, 3, 3)),
        ("reshape", (1, 36)),
        ("linear", (1, 3)),
        ("relu", (1, 3)),
        ("linear", (1, 2)),
        ("add", (1, 2)),
    ]


def test_grafts_are_recognised_and_survive_a_round_trip(tmp_path: Path):
    graph = passes.recognise_grafts(load_onnx(stored(tmp_path, resnet_model(1))))
    (node,) = [node for node in graph.nodes if node.op == "graft"]
    assert (node.name, node.inputs) == ("a1", ("c1", "mask", "slope", "intercept"))
    assert not {"line", "line0", "r1"} & set(graph.by_name)
    export(graph, tmp_path / "copy.onnx")
    written = onnx.load(str(tmp_path / "copy.onnx"))
    onnx.checker.check_model(written)
    assert {"Mul", "Add", "Relu", "Where"} <= {item.op_type for item in written.graph.node}
    assert (written.opset_import[0].version, written.ir_version) == (17, 8)
    again = passes.recognise_grafts(load_onnx(tmp_path / "copy.onnx"))
    assert [n.op for n in again.nodes].count("graft") == 1
    x = torch.randn(3, *graph.input.shape)
    torch.testing.assert_close(run(again, x), run(graph, x), rtol=1e-6, atol=1e-6)


def test_no_graft_where_the_pattern_differs(tmp_path: Path):
    """Another value on the line than under the relu, or a mask that is too large, stays a choice."""
    net = Hand(3)
    for name in ("mask", "slope", "intercept"):
        net.param(name, torch.randn(3) if name != "mask" else torch.tensor([True, False, True]))
    net.add("other", "neg", ["x"], (3,))
    net.add("mul", "mul", ["other", "slope"], (3,))
    net.add("line", "add", ["mul", "intercept"], (3,))
    net.add("relu", "relu", ["x"], (3,))
    net.add("y", "where", ["mask", "line", "relu"], (3,))
    graph = net.graph("y")
    assert passes.recognise_grafts(graph)["y"].op == "where"


def test_flatten_moves_below_element_wise_ops():
    """Equal reshapes of one shape: constants of the full shape follow, others hold the reshape back."""
    net = Hand(2, 3)
    net.param("full", torch.randn(6))
    net.param("one", torch.randn(1))
    net.param("row", torch.randn(2, 6))
    net.add("flat", "reshape", ["x"], (6,), shape=(6,))
    net.add("a", "add", ["flat", "full"], (6,))
    net.add("b", "mul", ["a", "one"], (6,))
    net.add("c", "relu", ["b"], (6,))
    net.add("d", "add", ["c", "row"], (2, 6))
    net.add("back", "reshape", ["c"], (1, 2, 3), shape=(1, 2, 3))
    graph = net.graph("d", "back")
    moved = passes.sink_reshapes(graph)
    assert [(n.name, n.shape) for n in moved.nodes if n.batched] == [
        ("x", (2, 3)),
        ("a", (2, 3)),
        ("b", (2, 3)),
        ("c", (2, 3)),
        ("c.view", (6,)),
        ("d", (2, 6)),
        ("back", (1, 2, 3)),
    ]
    x = torch.randn(4, 2, 3)
    for name in ("d", "back"):
        first, second = (evaluate(g, g.values(torch.float32), x)[name] for g in (graph, moved))
        assert torch.equal(first, second)


def test_fold_reshapes_merges_and_drops():
    net = Hand(2, 3)
    net.add("a", "reshape", ["x"], (6,), shape=(6,))
    net.add("b", "reshape", ["a"], (3, 2), shape=(3, 2))
    net.add("c", "reshape", ["b"], (2, 3), shape=(2, 3))
    net.add("d", "relu", ["c"], (2, 3))
    net.add("e", "reshape", ["b"], (6, 1), shape=(6, 1))
    graph = passes.fold_reshapes(net.graph("d", "e"))
    assert [(n.name, n.inputs) for n in graph.nodes] == [("x", ()), ("d", ("x",)), ("e", ("x",))]


def test_fuse_biases_needs_a_single_consumer():
    net = Hand(3)
    net.param("w", torch.randn(2, 3))
    net.param("b", torch.randn(2))
    net.add("l", "linear", ["x", "w"], (2,))
    net.add("y", "add", ["b", "l"], (2,))
    alone = passes.fuse_biases(net.graph("y"))
    assert (alone["y"].op, alone["y"].inputs, len(alone.nodes)) == ("linear", ("x", "w", "b"), 4)
    assert passes.fuse_biases(net.graph("y", "l"))["y"].op == "add"
    net.add("z", "relu", ["l"], (2,))
    assert passes.fuse_biases(net.graph("y", "z"))["y"].op == "add"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_expanded_pooling_is_pooling(data: st.DataObject):
    """Any kernel, stride, padding, dilation and rounding that torch accepts."""
    draw = data.draw
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel, stride, dilation, size = pair(1, 4), pair(1, 3), pair(1, 2), pair(4, 9)
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    ceil = draw(st.booleans())
    if any(size[i] + 2 * padding[i] < (kernel[i] - 1) * dilation[i] + 1 for i in (0, 1)):
        return
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
    attrs = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil}
    net = Hand(3, *size)
    net.add("y", "max_pool2d", ["x"], wanted.shape[1:], **attrs)
    if not bool(wanted.isfinite().all()):
        with pytest.raises(UnsupportedOp, match="padding altogether"):
            passes.expand_max(net.graph("y"))
        return
    graph = passes.expand_max(net.graph("y"))
    torch.testing.assert_close(run(graph, x), wanted, rtol=1e-12, atol=1e-12)
    assert graph.outputs == ("y",)
    assert "max_pool2d" not in {node.op for node in graph.nodes}
    if ceil is False and kernel == stride == (2, 2) and padding == (0, 0) and dilation == (1, 1):
        relus = sum(node.numel for node in graph.nodes if node.op == "relu")
        assert relus == 3 * (size[0] + size[0] // 2) * (size[1] // 2)


@pytest.mark.parametrize("op", ["maximum", "minimum"])
@pytest.mark.parametrize("other", ["row", "c"], ids=["value", "constant"])
def test_expanded_maximum_with_broadcasting(op: str, other: str):
    net = Hand(2, 1, 3)
    net.param("c", torch.randn(4, 1))
    net.add("low", "slice", ["x"], (1, 1, 3), axis=0, start=0, stop=1, step=1)
    net.add("row", "reshape", ["low"], (3,), shape=(3,))
    shape = (2, 4, 3) if other == "c" else (2, 1, 3)
    net.add("a", op, ["x", other], shape)
    net.add("y", "add", ["a", "a"], shape)
    graph = net.graph("y", "a")
    expanded = passes.expand_max(graph)
    x = torch.randn(5, 2, 1, 3, dtype=torch.float64)
    for name in ("y", "a"):
        first, second = (evaluate(g, g.values(torch.float64), x)[name] for g in (graph, expanded))
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    if other == "c":
        (floor,) = (node for node in expanded.nodes if node.op == "at_least")
        x_there, c = expanded.operands(floor)
        assert x_there.shape == floor.shape and not c.batched
    else:
        (merge,) = (node for node in expanded.nodes if node.op == "max_merge")
        b, relu, a = expanded.operands(merge)
        assert relu.op == "relu"
        assert expanded[relu.inputs[0]].inputs == (a.name, b.name)
    for node in expanded.nodes:
        value = evaluate(expanded, expanded.values(torch.float64), x, [node.name])[node.name]
        assert value.shape == (5,) * node.batched + node.shape


def test_sinking_below_ops_with_axes():
    """mean, sum, pad, transpose, gather behind a view with a leading 1; axis 0 itself holds the view back."""
    net = Hand(2, 3)
    net.add("v", "reshape", ["x"], (1, 2, 3), shape=(1, 2, 3))
    net.add("t", "transpose", ["v"], (1, 3, 2), perm=(0, 2, 1))
    net.add("p", "pad", ["t"], (1, 3, 4), pads=((0, 0), (0, 0), (1, 1)), value=0.5)
    net.add("g", "gather", ["p"], (1, 2, 4), axis=1, indices=(2, 0))
    net.add("m", "mean", ["g"], (1, 2, 1), axes=(2,), keepdim=True)
    net.add("s", "sum", ["g"], (1, 2), axes=(2,), keepdim=False)
    net.add("s0", "sum", ["g"], (2, 4), axes=(0,), keepdim=False)
    net.add("y", "reshape", ["m"], (2,), shape=(2,))
    net.add("z", "neg", ["s"], (1, 2))
    graph = net.graph("y", "z", "s0")
    moved = passes.sink_reshapes(graph)
    assert [moved[name].shape for name in "tpgms"] == [(3, 2), (3, 4), (2, 4), (2, 1), (2,)]
    assert moved["s0"].shape == (2, 4)
    x = torch.randn(4, 2, 3)
    for name in graph.outputs:
        first, second = (evaluate(g, g.values(torch.float32), x)[name] for g in (graph, moved))
        torch.testing.assert_close(first, second)


def test_a_transpose_of_leading_ones_holds_the_view_back():
    net = Hand(1, 3)
    net.add("v", "reshape", ["x"], (1, 1, 3), shape=(1, 1, 3))
    net.add("t", "transpose", ["v"], (1, 1, 3), perm=(1, 0, 2))
    net.add("y", "relu", ["t"], (1, 1, 3))
    assert passes.sink_reshapes(net.graph("y"))["t"].attrs["perm"] == (1, 0, 2)


def torch_like_graph() -> Graph:
    """Per-sample (C, H, W) without a leading 1, as the torch frontend makes graphs, with computed weights."""
    net = Hand(1, 6, 6)
    net.param("w", torch.randn(3, 1, 3, 3))
    net.param("keep", (torch.rand(3, 1, 3, 3) > 0.5).float())
    net.nodes.append(Node("masked", "mul", ("w", "keep"), {}, (3, 1, 3, 3), batched=False))
    net.param("token", torch.randn(1, 2))
    net.add("conv", "conv2d", ["x", "masked"], (3, 4, 4), **conv_attrs(0))
    net.add("clip", "clip", ["conv"], (3, 4, 4), min=-0.5, max=math.inf)
    net.add(
        "pool",
        "avg_pool2d",
        ["clip"],
        (3, 2, 2),
        kernel=(2, 2),
        stride=(2, 2),
        padding=(0, 0),
        ceil_mode=False,
        count_include_pad=True,
    )
    net.add(
        "max",
        "max_pool2d",
        ["clip"],
        (3, 2, 2),
        kernel=(2, 2),
        stride=(2, 2),
        padding=(0, 0),
        dilation=(1, 1),
        ceil_mode=False,
    )
    net.add("rows", "reshape", ["pool"], (6, 2), shape=(6, 2))
    net.add("more", "reshape", ["max"], (6, 2), shape=(6, 2))
    net.add("tokens", "concat", ["token", "rows"], (7, 2), axis=0)
    net.add("turned", "transpose", ["more"], (2, 6), perm=(1, 0))
    net.add("product", "matmul", ["tokens", "turned"], (7, 6))
    net.param("v", torch.randn(4, 6))
    net.param("b", torch.randn(4))
    net.add("stack", "linear", ["product", "v", "b"], (7, 4))
    net.add("mean", "mean", ["stack"], (4,), axes=(0,), keepdim=False)
    net.add("grown", "expand", ["mean"], (2, 4), shape=(2, 4))
    net.add("total", "sum", ["grown"], (1, 4), axes=(0,), keepdim=True)
    net.add("tall", "sub", ["total", "mean"], (1, 4))
    net.add("other", "maximum", ["tall", "total"], (1, 4))
    net.add("y", "reshape", ["other"], (4,), shape=(4,))
    return net.graph("y")


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_export_prepends_the_batch_axis(tmp_path: Path):
    graph = torch_like_graph()
    for name in ("net.onnx", "net.onnx.gz"):
        export(graph, tmp_path / name)
        again = load_onnx(tmp_path / name)
        assert again.input.shape == (1, 1, 6, 6)
        x = torch.randn(3, 1, 6, 6)
        torch.testing.assert_close(run(again, x[:, None])[:, 0], run(graph, x), rtol=1e-5, atol=1e-5)
    written = onnx.load(str(tmp_path / "net.onnx"))
    onnx.checker.check_model(written)
    assert sizes(written.graph.input[0]) == ["batch", 1, 6, 6]
    assert sizes(written.graph.output[0]) == ["batch", 4]
    assert (written.graph.input[0].name, written.graph.output[0].name) == ("x", "y")
    assert all(tensor.data_type in (FLOAT, TensorProto.INT64) for tensor in written.graph.initializer)


def test_export_of_a_file_keeps_its_layout(tmp_path: Path):
    """[1, C, H, W] comes back as [batch, C, H, W] with Conv and Gemm and nothing in between."""
    graph = load_onnx(stored(tmp_path, resnet_model(2, grafted=False)))
    graph.to_onnx(str(tmp_path / "copy.onnx"))
    written = onnx.load(str(tmp_path / "copy.onnx"))
    assert sizes(written.graph.input[0]) == ["batch", 2, 6, 6]
    assert sizes(written.graph.output[0]) == ["batch", 2]
    assert [node.op_type for node in written.graph.node] == [
        *("Sub", "Conv", "Relu", "Conv", "Add", "Concat", "Slice", "MaxPool"),
        *("Flatten", "Gemm", "Relu", "Gemm", "Add"),
    ]
    session = onnxruntime.InferenceSession((tmp_path / "copy.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    x = torch.randn(5, 1, 2, 6, 6)
    (values,) = session.run(None, {"x": x[:, 0].numpy()})
    inside = evaluate(graph, graph.values(torch.float32), x, [node.name for node in graph.nodes]).values()
    largest = max(float(value.abs().max()) for value in inside)  # sums of these are rounded, whatever is left of them
    torch.testing.assert_close(torch.from_numpy(np.asarray(values)), run(graph, x)[:, 0], rtol=0, atol=2e-6 * largest)


def test_export_of_expanded_maxima_and_grafts(tmp_path: Path):
    graph = passes.expand_max(passes.recognise_grafts(load_onnx(stored(tmp_path, resnet_model(3)))))
    export(graph, tmp_path / "copy.onnx")
    again = load_onnx(tmp_path / "copy.onnx")
    x = torch.randn(3, *graph.input.shape)
    torch.testing.assert_close(run(again, x), run(graph, x), rtol=1e-5, atol=1e-5)
    assert "MaxPool" not in {node.op_type for node in onnx.load(str(tmp_path / "copy.onnx")).graph.node}


def test_export_of_what_onnxruntimes_optimiser_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Zeros around an image before a maximum, which it takes for what max pooling pads with (seen in 1.31)."""
    b = Builder(0)
    padded = b.op("pad", b.input(1, 3, 3), pads=((0, 0), (1, 0), (0, 1)), value=0.0)
    window = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "ceil_mode": False}
    graph = b.graph(b.op("max_pool2d", padded, **window))
    export(graph, tmp_path / "net.onnx")
    x = -torch.rand(4, 1, 3, 3) - 1
    again = load_onnx(tmp_path / "net.onnx")
    assert isinstance(again.original, OnnxOriginal)
    assert torch.equal(again.original(x[:, None]).flatten(1), run(graph, x).flatten(1).float())
    if not again.original.optimised:
        assert "onnxruntime's own optimisations change the outputs of this model" in caplog.text


def test_export_of_an_identity(tmp_path: Path):
    graph = Hand(3).graph("x", "x")
    export(graph, tmp_path / "copy.onnx")
    written = onnx.load(str(tmp_path / "copy.onnx"))
    assert [node.op_type for node in written.graph.node] == ["Identity", "Identity"]
    assert len({value.name for value in [*written.graph.input, *written.graph.output]}) == 3


def test_export_errors(tmp_path: Path):
    graph = torch_like_graph()
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        export(graph, tmp_path / "absent" / "net.onnx")
    ops = {**OPS, "cube": replace(OPS["relu"], forward=lambda site, x: x**3)}
    strange = Graph(
        (Node("x", "input", shape=(3,)), Node("y", "cube", ("x",), {}, (3,))), ("x",), ("y",), ops, FixedParameters({})
    )
    with pytest.raises(UnsupportedOp, match="op 'cube' at node 'y' .*no standard operator does the same"):
        export(strange, tmp_path / "net.onnx")
    ops = {**OPS, "relu": replace(OPS["relu"], forward=lambda site, x: F.leaky_relu(x, 0.5))}
    wrong = Graph(
        (Node("x", "input", shape=(3,)), Node("y", "relu", ("x",), {}, (3,))), ("x",), ("y",), ops, FixedParameters({})
    )
    with pytest.raises(InvalidGraph, match="output 'y' of the exported model differs from the graph"):
        export(wrong, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_check_names_the_node():
    x = Node("x", "input", shape=(3,))
    w = Node("w", "parameter", shape=(3,), batched=False)
    y = Node("y", "add", ("x", "w"), {}, (3,), origin="net.py:7")

    def checked(*nodes: Node, inputs: tuple[str, ...] = ("x",), outputs: tuple[str, ...] = ("y",)) -> Graph:
        return check(Graph(nodes, inputs, outputs, OPS, FixedParameters({})))

    graph = checked(x, w, y)
    assert check(graph) is graph
    broken = {
        r"node 'x', op 'input': the name is used twice": (x, x, w, y),
        r"node 'y', op 'add' \(net.py:7\): operand 'w' comes later": (x, y, w),
        r"operand 'w' does not exist": (x, y),
        r"the op is not in the op table": (x, w, replace(y, op="addd")),
        r"batched=False does not follow from its operands": (x, w, replace(y, batched=False)),
        r"batched=True, but inputs are batched and parameters are not": (x, replace(w, batched=True), y),
        r"shape \(3, -1\) is not a tuple": (x, w, replace(y, shape=(3, -1))),
        r"shape \[3\] is not a tuple": (x, w, replace(y, shape=[3])),
        r"shape \(3.0,\) is not a tuple": (x, w, replace(y, shape=(3.0,))),
        r"a source reads nothing": (x, replace(w, inputs=("x",)), y),
        r"attribute 'slope' is missing": (x, Node("y", "leaky_relu", ("x",), {}, (3,))),
        r"limits \[1, -1\] contain no number": (x, Node("y", "clip", ("x",), {"min": 1, "max": -1}, (3,))),
        r"op 'input' and the list of graph inputs \('x',\) disagree": (x, w, y, Node("z", "input", shape=(1,))),
        r"graph output 'y' is not a node": (x, w),
    }
    for message, nodes in broken.items():
        with pytest.raises(InvalidGraph, match=message):
            checked(*nodes)
    with pytest.raises(InvalidGraph, match="graph input 'z' is not a node"):
        checked(x, w, y, inputs=("x", "z"))
    with pytest.raises(InvalidGraph, match="no output"):
        checked(x, w, y, outputs=())


# ---------------------------------------------------------------- benchmark files


def families() -> list[str]:
    root = os.environ.get("SUREBOUND_BENCH")
    if not root or not Path(root).is_dir():
        return []
    return sorted(folder.name for folder in Path(root).iterdir() if (folder / "instances.csv").exists())


@pytest.mark.skipif(not families(), reason="SUREBOUND_BENCH is not set to a folder of benchmark instances")
@pytest.mark.parametrize("family", families())
def test_benchmark_family(family: str, bench: Path, tmp_path: Path):
    """The first network of the family passes the gate; its rewrites and its export compute the same."""
    with (bench / family / "instances.csv").open(newline="") as lines:
        path = bench / family / next(csv.reader(lines))[0]
    graph = load_onnx(path)
    x = torch.rand(2, *graph.input.shape)
    wanted = run(graph, x)
    assert graph.original is not None
    scale = float(wanted.abs().max().clamp(min=1))
    torch.testing.assert_close(graph.original(x), wanted, rtol=0, atol=1e-4 * scale)
    prepared = prepare(graph)
    torch.testing.assert_close(run(prepared, x), wanted, rtol=0, atol=1e-5 * scale)
    assert family == "vit" or sum(node.op == "reshape" for node in prepared.nodes) <= 2
    export(prepared, tmp_path / "copy.onnx")
    again = load_onnx(tmp_path / "copy.onnx")
    torch.testing.assert_close(
        run(again, x.reshape(2, *again.input.shape)).reshape(wanted.shape), wanted, rtol=0, atol=1e-5 * scale
    )
