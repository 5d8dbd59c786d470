"""Graph -> ONNX file (operator set 17) with a symbolic batch axis.

Every batched value is written as a tensor [batch, *per-sample shape]. A graph that came from an ONNX file
has a leading axis of size 1 on its inputs and outputs; there the batch axis takes its place, so the file
has the layout that it was read with.
"""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from surebound.errors import InvalidGraph, UnsupportedOp, UsageError
from surebound.graph.ir import Graph, Node, evaluate
from surebound.graph.names import taken
from surebound.graph.original import TOLERANCE, largest_difference, open_session
from surebound.graph.passes import sink_reshapes
from surebound.graph.public import public_shape, published

log = logging.getLogger(__name__)

OPSET, IR_VERSION, BATCH = 17, 8, "batch"


def export(graph: Graph, path: str | Path) -> None:
    """Write the graph as an ONNX file (gzipped when the name ends in .gz) with float32 weights.

    The model has been run by onnxruntime on three random samples first and agreed with the graph.
    Raises UsageError (the path cannot be written), UnsupportedOp (no standard ONNX operator does the
    same), InvalidGraph (onnxruntime and the graph disagree).
    """
    target = Path(path)
    data = serialised(graph)
    verify(graph, data, target)
    try:
        target.write_bytes(gzip.compress(data, mtime=0) if target.suffix == ".gz" else data)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from error


def serialised(graph: Graph) -> bytes:
    """The bytes of the ONNX model."""
    public = sink_reshapes(published(graph))
    writer = Writer(public, unbatched_values(public))
    for name, node in zip(graph.inputs, public.inputs, strict=True):
        writer.names[node] = taken(name, writer.used)
    for name, node in zip(graph.outputs, public.outputs, strict=True):
        writer.outputs.append((taken(name, writer.used), node))
    for name, node in writer.outputs:
        writer.names.setdefault(node, name)
    for node in public.nodes:
        if node.batched and node.op != "input":
            write(writer, node)
    for name, node in writer.outputs:
        if writer.names[node] != name:
            writer.emit("Identity", [writer.names[node]], name)
    return writer.model().SerializeToString()


def unbatched_values(graph: Graph) -> dict[str, Tensor]:
    """The numbers of every node that does not depend on the input, in float32."""
    names = [node.name for node in graph.nodes if not node.batched]
    with torch.no_grad():
        return evaluate(graph, graph.values(torch.float32), {}, names)


def verify(graph: Graph, data: bytes, path: Path) -> None:
    """Run the model on three random samples; InvalidGraph when it disagrees with the graph.

    Where only onnxruntime's own optimisations disagree, the model is right, and a warning says so.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = {
        name: torch.randn(3, *graph[name].shape, generator=generator, dtype=torch.float32) for name in graph.inputs
    }
    with torch.no_grad():
        ours = evaluate(graph, graph.values(torch.float32), inputs)
    found: tuple[float, str] = (0.0, "")
    for optimised in (True, False):
        session = open_session(data, str(path), optimised)
        feeds = {
            value.name: inputs[name].reshape(3, *public_shape(graph, graph[name])).numpy()
            for value, name in zip(session.get_inputs(), graph.inputs, strict=True)
        }
        theirs: list[Any] = list(session.run(None, feeds))
        shaped = (torch.from_numpy(y).reshape(3, *graph[x].shape) for x, y in zip(graph.outputs, theirs, strict=True))
        found = max((largest_difference(y, ours[x])[0], x) for x, y in zip(graph.outputs, shaped, strict=True))
        if found[0] <= TOLERANCE:
            break
    else:
        raise InvalidGraph(
            f"{path}: output '{found[1]}' of the exported model differs from the graph by {found[0]:.3g} "
            f"({TOLERANCE:g} allowed); nothing was written, please report the network"
        )
    if not optimised:
        log.warning("%s: onnxruntime's own optimisations change the outputs of this model; run it without them", path)


# ---------------------------------------------------------------- writing nodes


@dataclass
class Writer:
    """The ONNX model so far. `numbers`: values that do not depend on the input, `names`: ONNX names by node."""

    graph: Graph
    numbers: Mapping[str, Tensor]
    names: dict[str, str] = field(default_factory=dict)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def name(self, node: str) -> str:
        """The ONNX name of a node's value; numbers become an initialiser at their first use."""
        if node not in self.names:
            self.names[node] = taken(node, self.used)
            if node in self.numbers:
                array = self.numbers[node].detach().cpu().numpy()
                self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), self.names[node]))
        return self.names[node]

    def number(self, wanted: str, array: Any) -> str:
        """A further initialiser."""
        name = taken(wanted, self.used)
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, node: Node, role: str, values: Sequence[int]) -> str:
        """Integers that belong to a node, as an initialiser."""
        return self.number(f"{node.name}.{role}", np.asarray(values, np.int64))

    def emit(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """One ONNX node."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attrs))
        return output

    def put(self, node: Node, op: str, inputs: Sequence[str], **attrs: Any) -> None:
        """The ONNX node that computes the value of `node`."""
        self.emit(op, inputs, self.name(node.name), **attrs)

    def part(self, node: Node, op: str, inputs: Sequence[str], **attrs: Any) -> str:
        """An ONNX node on the way to the value of `node`."""
        return self.emit(op, inputs, taken(f"{node.name}.{op.lower()}", self.used), **attrs)

    def lifted(self, node: Node, rank: int) -> list[str]:
        """The operands' names; batched ones get leading axes of size 1 up to that per-sample rank."""
        found: list[str] = []
        for operand in self.graph.operands(node):
            missing = rank - len(operand.shape)
            name = self.name(operand.name)
            if operand.batched and missing > 0:
                target = self.integers(node, "shape", (-1, *[1] * missing, *operand.shape))
                name = self.part(node, "Reshape", [name, target])
            found.append(name)
        return found

    def fixed(self, node: Node, first: int = 1) -> list[str]:
        """Names of all operands, of which those from `first` on must not depend on the input."""
        for operand in self.graph.operands(node)[first:]:
            if operand.batched:
                raise refused(node, f"its operand '{operand.name}' depends on the input")
        return [self.name(name) for name in node.inputs]

    def model(self) -> onnx.ModelProto:
        """The finished model."""

        def info(name: str, node: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *self.graph[node].shape])

        inputs = [info(self.names[node], node) for node in self.graph.inputs]
        outputs = [info(name, node) for name, node in self.outputs]
        graph = helper.make_graph(self.nodes, "surebound", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="surebound")


def refused(node: Node, reason: str) -> UnsupportedOp:
    """The error for a node that no standard ONNX operator computes."""
    return UnsupportedOp(node.op, node.name, node.origin, f"ONNX export: {reason}")


def write(writer: Writer, node: Node) -> None:
    """Append the ONNX nodes of one node."""
    if node.op not in WRITERS:
        raise refused(node, "no standard operator does the same")
    WRITERS[node.op](writer, node)


def elementwise(op: str) -> Callable[[Writer, Node], None]:
    """Ops that broadcast."""
    return lambda writer, node: writer.put(node, op, writer.lifted(node, len(node.shape)))


def write_linear(writer: Writer, node: Node) -> None:
    """Gemm for vectors, MatMul and Add for stacks of them."""
    x, weight, *bias = writer.fixed(node)
    if len(node.shape) == 1:
        writer.put(node, "Gemm", [x, weight, *bias], transB=1)
        return
    turned = writer.number(f"{node.inputs[1]}.T", writer.numbers[node.inputs[1]].detach().cpu().numpy().T.copy())
    if bias:
        writer.put(node, "Add", [writer.part(node, "MatMul", [x, turned]), *bias])
    else:
        writer.put(node, "MatMul", [x, turned])


def write_matmul(writer: Writer, node: Node) -> None:
    """Stacks of matrices of one rank."""
    ranks = [len(operand.shape) for operand in writer.graph.operands(node)]
    if min(ranks) < 2:
        raise refused(node, "a product with a vector; reshape it to a matrix")
    writer.put(node, "MatMul", writer.lifted(node, max(ranks)))


def convolution(op: str, *extra: str) -> Callable[[Writer, Node], None]:
    """A convolution or its transpose; `extra`: pairs of attributes beyond those that both have."""

    def rule(writer: Writer, node: Node) -> None:
        a = node.attrs
        writer.put(
            node,
            op,
            writer.fixed(node),
            kernel_shape=list(writer.numbers[node.inputs[1]].shape[2:]),
            strides=list(a["stride"]),
            pads=[*a["padding"], *a["padding"]],
            dilations=list(a["dilation"]),
            group=a["groups"],
            **{name: list(a[name]) for name in extra},
        )

    return rule


def write_batch_norm(writer: Writer, node: Node) -> None:
    writer.put(node, "BatchNormalization", writer.fixed(node), epsilon=node.attrs["eps"])


def write_leaky_relu(writer: Writer, node: Node) -> None:
    writer.put(node, "LeakyRelu", writer.fixed(node), alpha=node.attrs["slope"])


def write_clip(writer: Writer, node: Node) -> None:
    limits = [(role, node.attrs[role]) for role in ("min", "max")]
    names = [
        writer.number(f"{node.name}.{role}", np.asarray(limit, np.float32)) if math.isfinite(limit) else ""
        for role, limit in limits
    ]
    writer.put(node, "Clip", [*writer.fixed(node), *names])


def write_graft(writer: Writer, node: Node) -> None:
    """where(mask, x slope + intercept, relu(x)) in standard operators."""
    x, mask, slope, intercept = writer.fixed(node)
    line = writer.part(node, "Add", [writer.part(node, "Mul", [x, slope]), intercept])
    writer.put(node, "Where", [mask, line, writer.part(node, "Relu", [x])])


def write_gate(writer: Writer, node: Node) -> None:
    """line + gate (relu(x) - line) in standard operators."""
    x, gate, slope, intercept = writer.fixed(node)
    line = writer.part(node, "Add", [writer.part(node, "Mul", [x, slope]), intercept])
    gap = writer.part(node, "Sub", [writer.part(node, "Relu", [x]), line])
    writer.put(node, "Add", [line, writer.part(node, "Mul", [gate, gap])])


def write_softmax(writer: Writer, node: Node) -> None:
    writer.put(node, "Softmax", writer.fixed(node), axis=node.attrs["axis"] + 1)


def write_factors(writer: Writer, node: Node) -> None:
    """(x y, 0) from (x, y), the two along the first axis."""
    (stack,) = writer.fixed(node)
    numbers = {"starts": 0, "ends": 1, "axes": 1}
    parts = []
    for start in (0, 1):
        numbers |= {"starts": start, "ends": start + 1}
        at = [writer.integers(node, role, [number]) for role, number in numbers.items()]
        parts.append(writer.part(node, "Slice", [stack, *at]))
    terms = writer.part(node, "Mul", parts)
    writer.put(node, "Concat", [terms, writer.part(node, "Sub", [terms, terms])], axis=1)


def write_square(writer: Writer, node: Node) -> None:
    writer.put(node, "Mul", [*writer.fixed(node)] * 2)


def write_product(writer: Writer, node: Node) -> None:
    writer.put(node, "Mul", [writer.name(name) for name in node.inputs[1:]])


def write_max_merge(writer: Writer, node: Node) -> None:
    writer.put(node, "Add", writer.lifted(node, len(node.shape))[:2])


def pooled(op: str, *extra: str) -> Callable[[Writer, Node], None]:
    """Pooling with symmetric padding; `extra`: attributes beyond those that all pooling has."""

    def rule(writer: Writer, node: Node) -> None:
        a = node.attrs
        more = {"dilations": list(a["dilation"])} if "dilation" in a else {}
        more |= {name: int(a[name]) for name in extra}
        writer.put(
            node,
            op,
            writer.fixed(node),
            kernel_shape=list(a["kernel"]),
            strides=list(a["stride"]),
            pads=[*a["padding"], *a["padding"]],
            **more,
        )

    return rule


def write_pad(writer: Writer, node: Node) -> None:
    pads = node.attrs["pads"]
    widths = [0, *(before for before, _ in pads), 0, *(after for _, after in pads)]
    value = writer.number(f"{node.name}.value", np.asarray(node.attrs["value"], np.float32))
    writer.put(node, "Pad", [*writer.fixed(node), writer.integers(node, "pads", widths), value])


def write_reshape(writer: Writer, node: Node) -> None:
    shape = node.attrs["shape"]
    if len(shape) == 1:
        writer.put(node, "Flatten", writer.fixed(node), axis=1)
    else:
        writer.put(node, "Reshape", [*writer.fixed(node), writer.integers(node, "shape", (-1, *shape))])


def write_transpose(writer: Writer, node: Node) -> None:
    writer.put(node, "Transpose", writer.fixed(node), perm=[0, *(axis + 1 for axis in node.attrs["perm"])])


def write_expand(writer: Writer, node: Node) -> None:
    target = writer.integers(node, "shape", (1, *node.shape))
    writer.put(node, "Expand", [*writer.lifted(node, len(node.shape)), target])


def write_concat(writer: Writer, node: Node) -> None:
    """Constant parts are repeated for each sample."""
    operands = writer.graph.operands(node)
    batched = next(operand for operand in operands if operand.batched)
    names: list[str] = []
    for operand in operands:
        name = writer.name(operand.name)
        if not operand.batched:
            samples = writer.part(node, "Shape", [writer.name(batched.name)], start=0, end=1)
            target = writer.part(node, "Concat", [samples, writer.integers(node, "shape", operand.shape)], axis=0)
            name = writer.part(node, "Expand", [name, target])
        names.append(name)
    writer.put(node, "Concat", names, axis=node.attrs["axis"] + 1)


def write_slice(writer: Writer, node: Node) -> None:
    a = node.attrs
    numbers = {"starts": a["start"], "ends": a["stop"], "axes": a["axis"] + 1, "steps": a["step"]}
    writer.put(node, "Slice", [*writer.fixed(node), *(writer.integers(node, role, [n]) for role, n in numbers.items())])


def write_gather(writer: Writer, node: Node) -> None:
    indices = writer.integers(node, "indices", node.attrs["indices"])
    writer.put(node, "Gather", [*writer.fixed(node), indices], axis=node.attrs["axis"] + 1)


def write_reduction(writer: Writer, node: Node) -> None:
    """ReduceSum takes its axes as an input, ReduceMean as an attribute; without axes nothing happens."""
    axes, keep = [axis + 1 for axis in node.attrs["axes"]], int(node.attrs["keepdim"])
    if not axes:
        writer.put(node, "Identity", writer.fixed(node))
    elif node.op == "sum":
        writer.put(node, "ReduceSum", [*writer.fixed(node), writer.integers(node, "axes", axes)], keepdims=keep)
    else:
        writer.put(node, "ReduceMean", writer.fixed(node), axes=axes, keepdims=keep)


WRITERS: Mapping[str, Callable[[Writer, Node], None]] = MappingProxyType(
    {
        "add": elementwise("Add"),
        "at_least": elementwise("Max"),
        "avg_pool2d": pooled("AveragePool", "ceil_mode", "count_include_pad"),
        "atan": elementwise("Atan"),
        "batch_norm": write_batch_norm,
        "ceil": elementwise("Ceil"),
        "clip": write_clip,
        "concat": write_concat,
        "conv2d": convolution("Conv"),
        "conv_transpose2d": convolution("ConvTranspose", "output_padding"),
        "cos": elementwise("Cos"),
        "div": elementwise("Div"),
        "elu": elementwise("Elu"),
        "erf": elementwise("Erf"),
        "exp": elementwise("Exp"),
        "expand": write_expand,
        "factors": write_factors,
        "floor": elementwise("Floor"),
        "gather": write_gather,
        "graft": write_graft,
        "gate": write_gate,
        "leaky_relu": write_leaky_relu,
        "linear": write_linear,
        "log": elementwise("Log"),
        "matmul": write_matmul,
        "max_merge": write_max_merge,
        "max_pool2d": pooled("MaxPool", "ceil_mode"),
        "maximum": elementwise("Max"),
        "mean": write_reduction,
        "minimum": elementwise("Min"),
        "mul": elementwise("Mul"),
        "neg": elementwise("Neg"),
        "pad": write_pad,
        "product": write_product,
        "reciprocal": elementwise("Reciprocal"),
        "relu": elementwise("Relu"),
        "reshape": write_reshape,
        "round": elementwise("Round"),
        "sigmoid": elementwise("Sigmoid"),
        "sign": elementwise("Sign"),
        "sin": elementwise("Sin"),
        "slice": write_slice,
        "softmax": write_softmax,
        "softplus": elementwise("Softplus"),
        "sqrt": elementwise("Sqrt"),
        "square": write_square,
        "sub": elementwise("Sub"),
        "sum": write_reduction,
        "tanh": elementwise("Tanh"),
        "transpose": write_transpose,
        "where": elementwise("Where"),
    }
)
"""How each op is written."""
