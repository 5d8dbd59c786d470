"""ONNX file -> Graph, compared with onnxruntime before anybody gets it.

The per-sample shape of a value is its complete ONNX shape with the symbolic leading sizes set to 1, so every
ONNX op is its own per-sample meaning and no axis has to be guessed to be the batch. An input [1, 3, 32, 32]
or ['batch', 3, 32, 32] is a node of shape (1, 3, 32, 32), and B samples are a tensor [B, 1, 3, 32, 32].
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.reference import ReferenceEvaluator

from surebound.errors import ModelError, SureboundError, UnsupportedOp
from surebound.graph.check import check
from surebound.graph.ir import FixedParameters, Graph, Node
from surebound.graph.onnx_builder import Array, Builder, Call, Step
from surebound.graph.onnx_gate import compared
from surebound.graph.onnx_ops import DEFINED, RULES
from surebound.ops.record import Op

OLDEST_OPSET = 7
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Ops that draw random numbers."""
SHAPE_OPS = frozenset({"Shape", "Size"})
"""Ops that need the shape of their operand only, which is always known."""


@dataclass(frozen=True)
class ModelFile:
    """A file's name for messages, its content, and what it says."""

    name: str
    path: str
    data: bytes
    model: onnx.ModelProto


def load_onnx(path: str | Path, ops: Mapping[str, Op] | None = None) -> Graph:
    """The network of an ONNX file (also gzipped; also by a name whose `.gz` sibling exists).

    The graph's `original` is the file run by onnxruntime; the two have been compared node by node on random and
    corner inputs. Raises ModelError (missing, unreadable or damaged file, NaN weights, shapes that do not fit),
    UnsupportedOp (an op without a rule), TraceMismatch (the graph and onnxruntime disagree).
    """
    if ops is None:
        from surebound.ops import OPS

        ops = OPS
    with sensible(str(path)):
        file = read_model(Path(path))
        return compared(translate(file, ops), file.path, file.data, file.model)


@contextlib.contextmanager
def sensible(place: str) -> Iterator[None]:
    """Turn what a broken file makes the code within raise into a ModelError that names the place."""
    try:
        yield
    except (SureboundError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{place}: it makes no sense to the importer ({type(error).__name__}: {error}); check the file with "
            "onnx.checker, and report it if that finds nothing"
        ) from error


def read_model(path: Path) -> ModelFile:
    """Read and parse; ModelError with the reason when that fails."""
    sibling = path.with_name(path.name + ".gz")
    source = sibling if not path.exists() and sibling.exists() else path
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, with or without .gz") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ModelError(f"{source}: damaged gzip file ({error}); copy or download it again") from error
    try:
        model = onnx.load_from_string(data)
    except DecodeError as error:
        raise ModelError(f"{source}: not an ONNX file, or a truncated one; export or copy it again") from error
    if not model.graph.output or not model.opset_import:
        raise ModelError(f"{source}: not an ONNX model: it has no outputs or no operator set")
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        data = with_external_data(model, source)
    if model.functions:
        model = inliner.inline_local_functions(model)
    return ModelFile(source.name, str(source), data, without_defined(model))


def without_defined(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the standard's definitions in the place of `DEFINED` ops; the inliner asks for the types of values."""
    if not any(node.op_type in DEFINED for node in model.graph.node):
        return model
    typed = shape_inference.infer_shapes(model)
    weights = (helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in typed.graph.initializer)
    typed.graph.value_info.extend(weights)
    return inliner.inline_selected_functions(typed, [("", op) for op in DEFINED], inline_schema_functions=True)


def with_external_data(model: onnx.ModelProto, source: Path) -> bytes:
    """Load the tensors that lie in other files into the model; the bytes of the complete model."""
    try:
        load_external_data_for_model(model, str(source.parent))
        return model.SerializeToString()
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{source}: its weights lie in another file that cannot be read ({error}); keep both files in one folder"
        ) from error


# ---------------------------------------------------------------- translation


def translate(file: ModelFile, ops: Mapping[str, Op]) -> Graph:
    """The graph of the file, not yet compared with onnxruntime."""
    proto = file.model.graph
    opset = max((item.version for item in file.model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise UnsupportedOp(
            f"opset {opset}", proto.name, file.name, f"convert the file to operator set {OLDEST_OPSET} or newer"
        )
    if proto.sparse_initializer:
        raise UnsupportedOp("sparse_initializer", proto.sparse_initializer[0].values.name, file.name, "sparse weights")
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.initializer}
    inputs = [value for value in proto.input if value.name not in numbers]
    produced = [name for node in proto.node for name in node.output]
    reserved = frozenset([*numbers, *produced, *(value.name for value in inputs)])
    kinds = {value.type.tensor_type.elem_type for value in inputs}
    kind = TensorProto.DOUBLE if TensorProto.DOUBLE in kinds else TensorProto.FLOAT
    builder = Builder(file.name, opset, kind, ops, reserved, values=dict(numbers))
    for value in inputs:
        name = builder.unique(value.name, owner=True)
        origin = f"{file.name}: input '{name}'"
        builder.values[name] = builder.add(Node(name, "input", shape=input_shape(value, origin), origin=origin))
    for node in live(proto):
        take(builder, node)
    outputs = tuple(output_node(builder, value.name).name for value in proto.output)
    names = tuple(value.name for value in inputs)
    return check(Graph(tuple(builder.nodes), names, outputs, ops, FixedParameters(builder.tensors)))


def input_shape(value: onnx.ValueInfoProto, origin: str) -> tuple[int, ...]:
    """The complete shape with unknown leading sizes set to 1."""
    tensor = value.type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise UnsupportedOp("input", value.name, origin, f"element type {kind}; only FLOAT and DOUBLE inputs")
    if not tensor.HasField("shape"):
        raise ModelError(f"{origin} has no shape; export the model with the input's shape")
    sizes = [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in tensor.shape.dim]
    known = next((axis for axis, size in enumerate(sizes) if size is not None), len(sizes))
    if None in sizes[known:] or (known == len(sizes) and known > 1):
        axis = len(sizes) - 1 - sizes[::-1].index(None)
        raise ModelError(f"{origin}: the size of axis {axis} is unknown; export the model with that size fixed")
    return tuple(1 if size is None else int(size) for size in sizes)


def live(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, in order."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def take(builder: Builder, proto: onnx.NodeProto) -> None:
    """Translate one node: evaluate it when its operands are known numbers, else apply the rule of its op."""
    call = Call.of(proto, builder.file)
    step = Step(builder, call)
    standard = proto.domain in ("", "ai.onnx")
    if standard:
        require_inference(step)
    values = [step.value(index) if step.has(index) else None for index in range(len(call.inputs))]
    numeric = call.op in SHAPE_OPS or not any(isinstance(value, Node) for value in values)
    branches = any(item.HasField("g") or item.graphs for item in proto.attribute)
    if standard and numeric and not branches:
        arrays = [np.broadcast_to(np.float32(0), v.shape) if isinstance(v, Node) else v for v in values]
        builder.values.update(folded(step, proto, arrays))
        return
    if not standard or call.op not in RULES:
        domain = "" if standard else f"{proto.domain}."
        raise UnsupportedOp(domain + call.op, call.name, call.origin, "the ONNX importer has no rule for it")
    fresh = len(builder.nodes)
    with sensible(call.origin):
        result = RULES[call.op](step)
    for name, node in zip(call.outputs, [result] if isinstance(result, Node) else result, strict=False):
        if name:
            builder.bind(name, node, fresh)


def require_inference(step: Step) -> None:
    """Refuse what is another network at every call, also on constants: random numbers, and forms for training."""
    call = step.call
    if call.op in RANDOM:
        raise step.refuse("it draws random numbers, so the file isn't one network; export the model for inference")
    dropping = call.op == "Dropout" and step.has(2) and bool(np.any(step.constant(2)))
    learning = call.op == "BatchNormalization" and (
        step.attr("training_mode", 0) or (step.opset < 14 and any(call.outputs[1:]))
    )
    if dropping or learning:
        raise step.refuse("training mode; export the model for inference")


def folded(step: Step, proto: onnx.NodeProto, arrays: Sequence[Array | None]) -> dict[str, Array]:
    """The values of a node whose operands are known, computed by ONNX's reference implementation."""
    feeds = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    outputs = [name for name in proto.output if name]
    graph = helper.make_graph([proto], "constants", infos, [helper.make_empty_tensor_value_info(n) for n in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", step.opset)])
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:  # the evaluator raises what its NumPy code happens to raise
        raise step.refuse(f"its value cannot be computed ahead: {error}") from error
    assert isinstance(results, list)
    return {name: np.asarray(value) for name, value in zip(outputs, results, strict=True)}


def output_node(builder: Builder, name: str) -> Node:
    """The node of a graph output."""
    value = builder.values.get(name)
    if not isinstance(value, Node) or not value.batched:
        raise ModelError(f"{builder.file}: output '{name}' does not depend on the network's input")
    return value
