"""From a module to a graph: `trace`.

torch.export captures the module with a symbolic batch size; a table of small functions maps the exporter's
operations to the op table's, with the batch axis taken away; the result is compared with the module.
What doesn't depend on the input and has no rule (a weight norm, a computed mask) stays torch and is
evaluated on the live parameters at every query.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import operator
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, default_decompositions, export
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from surebound.errors import ModelError, SureboundError, TraceMismatch, UnsupportedOp, UsageError
from surebound.graph import module_original
from surebound.graph.check import check
from surebound.graph.ir import Graph, Node, evaluate
from surebound.graph.module_original import (
    Computed,
    LiveParameters,
    ModuleOriginal,
    Ref,
    Source,
    Step,
    require_eval,
    source_of,
)
from surebound.graph.passes import recognise_grafts
from surebound.ops import OPS, Op

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference between graph and module on random inputs; 0.05 for smaller dtypes."""


def trace(module: nn.Module, example: Tensor, ops: Mapping[str, Op] | None = None) -> Graph:
    """The module as a graph that computes the same outputs and reads the module's parameters live.

    example: a batch [B, *input shape] with any B >= 1; only its shape matters. ops: the op table
    (default `surebound.ops.OPS`). A torch op without a rule here is looked up in `ops` under its torch name
    ("aten.erf"): its tensor arguments become operands and the others attrs, named as in torch's schema.
    Raises UsageError (training mode, unusable example), UnsupportedOp (an op without a rule, or one that
    mixes samples), ModelError (the exporter gave up, NaN in a parameter), TraceMismatch.
    """
    table = OPS if ops is None else ops
    sample = _usable_example(module, example)
    original = ModuleOriginal(module, sample.dtype)
    batch = sample.to(original.device, original.dtype)
    _run_once(original, batch)
    program = _export(module, (batch,))
    graph = recognise_grafts(_mapped_program(program, module, table, original))
    check(graph)
    _compare(graph, original, batch)
    return graph


def _usable_example(module: nn.Module, example: Tensor) -> Tensor:
    """Two samples of the example, after checking both arguments."""
    if not isinstance(module, nn.Module):
        raise UsageError(f"trace needs a torch.nn.Module, not a {type(module).__name__}")
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = f"a tensor of {example.dtype}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise UsageError(f"the example must be a floating-point tensor [batch, *input shape], not {kind}")
    if example.dim() == 0 or example.shape[0] == 0:
        raise UsageError(f"the example must hold at least one sample along axis 0; its shape is {list(example.shape)}")
    require_eval(module)
    return torch.cat([example.detach()[:1]] * 2) if example.shape[0] == 1 else example.detach()[:2]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _run_once(original: ModuleOriginal, batch: Tensor) -> Tensor:
    """The module's outputs on the example; raises ModelError if it can't compute them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(batch)
    except SureboundError:
        raise
    except Exception as error:
        raise ModelError(
            f"the module fails on an example of shape {list(batch.shape)}{_raised_at(error)}: {_first_line(error)}"
        ) from error


# --- torch.export ------------------------------------------------------------------------------------------------


_INTERNAL = (str(Path(torch.__file__).parent), __file__, module_original.__file__, "<")


def _is_user_file(file: str) -> bool:
    return not file.startswith(_INTERNAL)


def _raised_at(error: BaseException) -> str:
    """' at FILE:LINE' of the user's code that raised, from the exporter's text or the traceback; '' if unknown."""
    places = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    if not places:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        entered = next((i for i, (file, _) in enumerate(frames) if not _is_user_file(file)), len(frames))
        places = [(file, line) for file, line in frames[entered:] if "site-packages" not in file]
    users = [f" at {Path(file).name}:{line}" for file, line in places if _is_user_file(file)]
    return users[-1] if users else ""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's warnings, logs and printed graphs from the user; what matters is in its exception."""
    before = logging.root.manager.disable
    sink = io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(module: nn.Module, examples: tuple[Tensor, ...]) -> ExportedProgram:
    """The captured module: functional, with convolutions, linear layers and the like kept whole."""
    batch = Dim("batch")
    try:
        with _silence(), torch.no_grad():
            program = export(module, examples, dynamic_shapes=tuple({0: batch} for _ in examples), strict=False)
            return program.run_decompositions({})
    except Exception as error:
        raise _explained(error) from error


def _lowered(program: ExportedProgram, refused: str, ops: Mapping[str, Op]) -> ExportedProgram | None:
    """The program with operations that have no rule replaced by torch's own definitions of them.

    None when the operation that was refused is not among them.
    """
    unknown = _without_rule(program, ops)
    if refused not in {str(op) for op in unknown}:
        return None
    with _silence(), torch.no_grad():
        table = {op: rule for op, rule in default_decompositions().items() if op in unknown}
        return program.run_decompositions(table) if refused in {str(op) for op in table} else None


def _without_rule(program: ExportedProgram, ops: Mapping[str, Op]) -> set[Any]:
    """Operations on the network's input that neither this frontend nor the op table knows."""
    users = set(program.graph_signature.user_inputs)
    reached = {node for node in program.graph.nodes if node.op == "placeholder" and node.name in users}
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), (Tensor, list, tuple)) and not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    targets = {node.target for node in reached if node.op == "call_function"}
    return {op for op in targets if str(op) not in RULES and _table_key(str(op), ops) is None}


def _table_key(op: str, ops: Mapping[str, Op]) -> str | None:
    """The key of a torch op in the op table: 'aten.erf.default' or 'aten.erf'."""
    return next((key for key in (op, op.rpartition(".")[0]) if key in ops), None)


def _explained(error: Exception) -> ModelError:
    """What an exporter's exception means for the user."""
    text, where = str(error), _raised_at(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return ModelError(
            f"the module's forward takes a decision on the values of its input{where}, so it isn't one network "
            f"({_first_line(error)}). Write the decision with torch.where, relu or maximum instead of if"
        )
    if "Constraints violated" in text or "specialized" in text:
        detail = next((line.strip(" -") for line in text.splitlines() if line.strip().startswith("- ")), "")
        return ModelError(
            f"the module's forward depends on the batch size{where}: {detail or _first_line(error)}. "
            "Write it so that any number of samples works (x.shape[0] or -1 instead of a fixed number)"
        )
    return ModelError(
        f"torch.export could not capture the module{where}: {_first_line(error)}. The forward must consist of torch "
        "operations on its input and work for any batch size, without NumPy and without decisions on values"
    )


# --- values and calls --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A tensor of the captured module as a graph node.

    shape: per sample. batched: depends on the input. axis: torch's tensor has the batch axis in front
    (an unbatched value has one when it was expanded over the batch). floating: False for masks and indices.
    """

    name: str
    shape: tuple[int, ...]
    batched: bool
    axis: bool
    floating: bool = True

    @property
    def rank(self) -> int:
        """The rank of torch's tensor."""
        return len(self.shape) + self.axis


class Symbolic:
    """Stands for a Python number that the capture knows only as an expression, mostly of the batch size."""


class Deferred:
    """Stands for what doesn't depend on the input and is computed, or refused, when it is used.

    Several results of one operation, or a tensor with the number of samples on another axis than axis 0.
    """


@dataclass(frozen=True)
class Call:
    """One operation of the captured module: its arguments by schema name and the layout of its (first) result.

    shape: without the batch axis. axis: does the result have one?
    """

    node: fx.Node
    op: str
    args: Mapping[str, Any]
    shape: tuple[int, ...]
    axis: bool
    origin: str

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    @property
    def name(self) -> str:
        """The name for the node that it becomes."""
        return self.node.name.replace("_native_batch_norm_legit_no_training", "batch_norm")

    def refuse(self, reason: str) -> UnsupportedOp:
        """The error that names this operation and its line."""
        made_from = self.node.meta.get("original_aten")
        source = f"it comes from {made_from}; " if made_from is not None and str(made_from) != self.op else ""
        return UnsupportedOp(self.op, self.name, self.origin, source + reason)

    def mixed(self, detail: str) -> UnsupportedOp:
        """The error for an operation across samples."""
        return self.refuse(f"it mixes the batch axis (axis 0) with other axes or samples with each other: {detail}")

    def axis_of(self, value: Value, dim: int) -> int:
        """The per-sample axis for torch's `dim` of a value; refuses the batch axis."""
        dim = dim + value.rank if dim < 0 else dim
        if value.axis and dim == 0:
            raise self.mixed("it works along axis 0")
        return dim - value.axis

    def axes_of(self, value: Value, dims: int | Sequence[int] | None) -> tuple[int, ...]:
        """Per-sample axes for torch's `dims`; none or empty means all, the batch included."""
        if isinstance(dims, int):
            return (self.axis_of(value, dims),)
        return tuple(sorted(self.axis_of(value, dim) for dim in (dims or range(value.rank))))


def _origin(node: fx.Node, root: str) -> str:
    """'layer1.conv (model.py:12)': the module path and the deepest line of the user's code, as far as known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    path = path if path and not path.startswith("_") else root
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    lines = [f"{Path(file).name}:{line}" for file, line in frames if _is_user_file(file)]
    return f"{path} ({lines[-1]})" if lines else path


# --- the graph under construction --------------------------------------------------------------------------------


@dataclass
class Builder:
    """The graph under construction, and the pieces that the rules below put together."""

    module: nn.Module
    ops: Mapping[str, Op]
    symbol: Any
    dtype: torch.dtype
    nodes: dict[str, Node] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[float, Value] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    computed: dict[str, Computed] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    stack: list[Call] = field(default_factory=list)

    @property
    def call(self) -> Call:
        """The operation that is being mapped."""
        return self.stack[-1]

    # nodes

    def unique(self, name: str) -> str:
        """`name`, or the first free `name.N`."""
        candidate, count = name, 1
        while candidate in self.nodes or candidate in self.sources:
            count += 1
            candidate = f"{name}.{count}"
        return candidate

    def emit(self, op: str, inputs: Sequence[Value], shape: Sequence[int], /, **attrs: Any) -> Value:
        """Add a node; its result is batched, and has the batch axis, when an operand is and has."""
        if op not in self.ops:
            raise self.call.refuse(f"the op table has no '{op}', which it is mapped to")
        name = self.unique(f"{self.call.name}.{op}")
        batched = any(value.batched for value in inputs)
        operands = tuple(value.name for value in inputs)
        self.nodes[name] = Node(name, op, operands, attrs, tuple(shape), batched, self.call.origin)
        return Value(name, tuple(shape), batched, any(value.axis for value in inputs))

    def named(self, value: Value, name: str) -> Value:
        """The value under the operation's own name, if the operation's newest node is what it returns."""
        if next(reversed(self.nodes), None) != value.name or not value.name.startswith(f"{name}."):
            return value
        node = self.nodes.pop(value.name)
        free = self.unique(name)
        self.nodes[free] = replace(node, name=free)
        return replace(value, name=free)

    def parameter(self, name: str, shape: Sequence[int], floating: bool, axis: bool = False) -> Value:
        """Add a parameter node."""
        origin = self.stack[-1].origin if self.stack else ""
        self.nodes[name] = Node(name, "parameter", (), {}, tuple(shape), False, origin)
        return Value(name, tuple(shape), False, axis, floating)

    def constant(self, tensor: Tensor, name: str = "constant") -> Value:
        """A parameter node for a tensor that belongs to the code."""
        name = self.unique(name)
        self.constants[name] = tensor
        return self.parameter(name, tensor.shape, tensor.is_floating_point())

    def number(self, value: Any) -> Value:
        """A value as it is; a Python number as a constant node without axes."""
        if isinstance(value, Value):
            return value
        if not isinstance(value, (bool, int, float)):
            raise self.call.refuse("an argument is a number computed from the batch size or from tensors")
        if float(value) not in self.scalars:
            self.scalars[float(value)] = self.constant(torch.tensor(float(value), dtype=torch.float64))
        return self.scalars[float(value)]

    # pieces that most rules use; shapes and axes are per sample

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """x with another shape, in row-major order."""
        if x.shape == tuple(shape):
            return x
        return replace(self.emit("reshape", [x], shape, shape=tuple(shape)), floating=x.floating)

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """x with its axes in another order; two transpositions that cancel vanish."""
        if list(perm) == list(range(len(perm))):
            return x
        node = self.nodes[x.name]
        if node.op == "transpose" and [node.attrs["perm"][axis] for axis in perm] == list(range(len(perm))):
            before = self.nodes[node.inputs[0]]
            return Value(before.name, before.shape, before.batched, x.axis)
        return self.emit("transpose", [x], [x.shape[axis] for axis in perm], perm=tuple(perm))

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """x[start:stop:step] along an axis."""
        if (start, stop, step) == (0, x.shape[axis], 1):
            return x
        shape = (*x.shape[:axis], len(range(start, stop, step)), *x.shape[axis + 1 :])
        return self.emit("slice", [x], shape, axis=axis, start=start, stop=stop, step=step)

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        """Values joined along an axis, empty ones left out."""
        parts = [self.floating(part) for part in parts if part.shape[axis] > 0] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        first = parts[0].shape
        shape = (*first[:axis], sum(part.shape[axis] for part in parts), *first[axis + 1 :])
        return self.emit("concat", parts, shape, axis=axis)

    def gather(self, x: Value, axis: int, indices: Sequence[int]) -> Value:
        """The entries `indices` along an axis; negative ones count from its end."""
        chosen = tuple(int(index) % x.shape[axis] for index in indices)
        return self.emit("gather", [x], (*x.shape[:axis], len(chosen), *x.shape[axis + 1 :]), axis=axis, indices=chosen)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """x repeated to a shape that it broadcasts to."""
        return x if x.shape == tuple(shape) else self.emit("expand", [x], shape, shape=tuple(shape))

    def aligned(self, values: Sequence[Value], rank: int | None = None) -> list[Value]:
        """Operands of a broadcasting op such that per-sample broadcasting means what torch's does.

        torch aligns axes from the right, the batch axis among them. So an operand with a batch axis needs the
        full rank, and one without it that has the full rank must have size 1 there, which is dropped.
        """
        rank = max(value.rank for value in values) if rank is None else rank
        if not any(value.axis for value in values):
            return list(values)
        return [self.beside_batch(value, rank) for value in values]

    def beside_batch(self, value: Value, rank: int) -> Value:
        """An operand of a broadcast to torch rank `rank` whose axis 0 is the batch, without that axis."""
        if value.axis and value.rank != rank:
            raise self.call.mixed(f"its batch axis meets axis {rank - value.rank} of an operand with more axes")
        if value.axis or value.rank < rank:
            return value
        if value.shape[0] != 1:
            raise self.call.mixed(f"an operand with {value.shape[0]} rows is spread over the samples")
        return self.reshape(value, value.shape[1:])

    def elementwise(self, op: str, *operands: Any) -> Value:
        """A broadcasting op on values and numbers."""
        values = self.aligned([self.floating(self.number(operand)) for operand in operands])
        return self.emit(op, values, torch.broadcast_shapes(*(value.shape for value in values)))

    def unary(self, op: str, x: Value, **attrs: Any) -> Value:
        """An op that keeps the shape."""
        return self.emit(op, [self.floating(x)], x.shape, **attrs)

    def scaled(self, x: Any, factor: Any) -> Any:
        """x * factor, left alone for factor 1."""
        if isinstance(factor, (int, float)) and (factor == 1 or isinstance(x, (int, float))):
            return x * factor if isinstance(x, (int, float)) else x
        return self.elementwise("mul", x, factor)

    # what doesn't depend on the input

    def floating(self, x: Value) -> Value:
        """x as floats: a mask used as a number."""
        if x.floating:
            return x
        step = Step(f"%{x.name}.float", "aten._to_copy.default", (self.reference(x),), {"dtype": self.dtype})
        self.steps[step.name] = step
        name = self.unique(f"{x.name}.float")
        self.computed[name] = Computed(Ref(step.name))
        return self.parameter(name, x.shape, True, x.axis)

    def reference(self, x: Value) -> Ref:
        """How a step refers to the tensor of a parameter node."""
        if x.name in self.sources or x.name in self.constants:
            return Ref(x.name)
        if x.name not in self.computed or self.computed[x.name].drop_batch:
            raise self.call.refuse("it reads a mask or index that was expanded over the batch")
        return self.computed[x.name].ref

    def compute(self) -> Value:
        """A parameter node whose tensor torch computes from the live parameters at every query."""
        call = self.call
        ref = self.step(call.node)
        name = self.unique(call.name)
        self.computed[name] = Computed(ref, drop_batch=call.axis)
        return self.parameter(name, call.shape, call.node.meta["val"].is_floating_point(), call.axis)

    def step(self, node: fx.Node) -> Ref:
        """The result of an operation as a step, added after the steps that it needs."""
        name = f"%{node.name}"
        if name not in self.steps:
            if _is_random(node):
                raise self.call.refuse(RANDOM)
            op = "getitem" if node.target is operator.getitem else str(node.target)
            if op != "getitem" and not isinstance(node.target, torch._ops.OpOverload):
                raise self.call.refuse("it computes with Python numbers taken from tensors")
            args, kwargs = self.referenced(node.args), self.referenced(node.kwargs)
            self.steps[name] = Step(name, op, args, kwargs)
        return Ref(name)

    def referenced(self, arg: Any) -> Any:
        """A step's argument: other results by reference, the batch size as 1."""
        if isinstance(arg, (list, tuple)):
            return type(arg)(self.referenced(item) for item in arg)
        if isinstance(arg, Mapping):
            return {key: self.referenced(item) for key, item in arg.items()}
        if not isinstance(arg, fx.Node):
            return arg
        known = self.values.get(arg)
        if isinstance(known, Symbolic):
            return self.for_one_sample(arg.meta["val"])
        if isinstance(known, Value) and (known.name in self.sources or known.name in self.constants):
            return Ref(known.name)
        if arg.op == "placeholder":
            raise self.call.refuse("it needs the network's input")
        return self.step(arg)

    def for_one_sample(self, size: Any) -> int:
        """The value that a number computed from the batch size has for a batch of one."""
        expression = size.node.expr.subs(self.symbol, 1) if isinstance(size, torch.SymInt) else size
        try:
            return int(expression)
        except TypeError:
            raise self.call.refuse("it computes with Python numbers taken from tensors") from None

    def concrete(self, x: Value) -> Tensor:
        """The present values of an index tensor, which become part of the graph."""
        if x.batched or self.nodes[x.name].op != "parameter":
            raise self.call.refuse("its indices depend on the network's input")
        values = self.live(frozenset([x.name]))()[x.name].detach().cpu().clone()
        self.fixed[self.reference(x).name] = values
        return values

    def live(self, names: frozenset[str]) -> LiveParameters:
        """The source of tensors for the given parameter nodes."""
        computed = {name: item for name, item in self.computed.items() if name in names}
        needed = names | set(self.fixed) | {item.ref.name for item in computed.values()}
        steps: list[Step] = []
        for step in reversed(self.steps.values()):
            if step.name in needed:
                steps.insert(0, step)
                needed |= set(_references((step.args, step.kwargs)))
        return LiveParameters(
            self.module,
            tuple(source for source in self.sources.values() if source.name in needed),
            {name: tensor for name, tensor in self.constants.items() if name in needed},
            tuple(steps),
            computed,
            dict(self.fixed),
            self.dtype,
        )

    # layouts

    def is_batch(self, size: Any) -> bool:
        """Is this size of a tensor the batch size?"""
        return isinstance(size, torch.SymInt) and size.node.expr == self.symbol

    def layout(self, tensor: Tensor) -> tuple[tuple[int, ...], bool] | None:
        """Per-sample shape and whether there is a batch axis in front; None when the batch is elsewhere."""
        sizes = list(tensor.shape)
        axis = bool(sizes) and self.is_batch(sizes[0])
        rest = sizes[axis:]
        return (tuple(int(size) for size in rest), axis) if all(_is_static(size) for size in rest) else None

    def words(self, tensor: Tensor) -> str:
        """A shape with B for the batch size."""
        return "[" + ", ".join(re.sub(rf"\b{self.symbol}\b", "B", str(size)) for size in tensor.shape) + "]"


RANDOM = "it draws random numbers, so the module isn't one network; make it follow self.training"


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _is_static(size: Any) -> bool:
    return isinstance(size, int) or getattr(size.node.expr, "is_Integer", False)


def _references(arg: Any) -> Iterator[str]:
    """Names that a step's arguments refer to."""
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, (list, tuple)):
        for item in arg:
            yield from _references(item)
    elif isinstance(arg, Mapping):
        yield from _references(list(arg.values()))


# --- from the captured program to a graph ------------------------------------------------------------------------


def _mapped_program(
    program: ExportedProgram, module: nn.Module, ops: Mapping[str, Op], original: ModuleOriginal
) -> Graph:
    """The captured module as a graph; operations without a rule are lowered as long as that brings it further."""
    tried: set[str] = set()
    while True:
        try:
            return _build(program, module, ops, original)
        except UnsupportedOp as error:
            lowered = None if error.op in tried else _lowered(program, error.op, ops)
            if lowered is None:
                raise
            tried.add(error.op)
            program = lowered


def _build(program: ExportedProgram, module: nn.Module, ops: Mapping[str, Op], original: ModuleOriginal) -> Graph:
    """Map every operation and keep what the output needs."""
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
    if changed:
        raise ModelError(
            f"the module's forward changes its own '{changed[0]}', so calling it twice gives two networks; "
            "make the forward free of side effects in evaluation mode"
        )
    kinds = {spec.arg.name: spec for spec in signature.input_specs if isinstance(spec.arg, TensorArgument)}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    users = [node for node in placeholders if node.name in kinds and kinds[node.name].kind == InputKind.USER_INPUT]
    size = users[0].meta["val"].shape[0]
    if not isinstance(size, torch.SymInt):
        raise ModelError(f"the module works for a batch of {size} samples only; write it for any number of samples")
    builder = Builder(module, ops, size.node.expr, original.dtype)
    for node in placeholders:
        if node not in users:
            _add_tensor(builder, node, program, kinds)
    inputs = [_add_input(builder, node) for node in users]
    root = type(module).__name__
    for node in program.graph.nodes:
        if node.op == "call_function":
            _convert(builder, node, _origin(node, root))
        elif node.op not in ("placeholder", "output"):
            raise UnsupportedOp(str(node.target), node.name, _origin(node, root), "it is a submodule or a nested graph")
    output = _output(builder, program)
    everything = tuple(builder.nodes.values())
    draft = Graph(everything, tuple(inputs), (output.name,), ops, builder.live(frozenset()), original)
    kept = draft.ancestors([output.name]) | set(inputs)
    nodes = tuple(node for node in draft.nodes if node.name in kept)
    live = builder.live(frozenset(node.name for node in nodes if node.op == "parameter"))
    _require_finite(live)
    return replace(draft, nodes=nodes, parameters=live)


def _add_tensor(builder: Builder, node: fx.Node, program: ExportedProgram, kinds: Mapping[str, Any]) -> None:
    """A parameter, buffer or constant of the captured module as a parameter node."""
    spec = kinds.get(node.name)
    if spec is None or spec.target is None:
        raise ModelError(f"the module needs '{node.name}', which is not a tensor; only tensors can be traced")
    name, shape = spec.target, tuple(node.meta["val"].shape)
    constant = program.constants.get(name)
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) or _holds(builder.module, name, constant):
        if name not in builder.sources:
            builder.sources[name] = source_of(builder.module, name, shape)
            builder.parameter(name, shape, node.meta["val"].is_floating_point())
        builder.values[node] = Value(name, shape, False, False, node.meta["val"].is_floating_point())
    elif isinstance(constant, Tensor):
        builder.values[node] = builder.constant(constant.detach().clone(), name)


def _holds(module: nn.Module, name: str, constant: Any) -> bool:
    """Is this constant of the captured program a tensor that the module holds as an attribute of that name?"""
    held: Any = module
    for part in name.split("."):
        held = getattr(held, part, None)
    return isinstance(held, Tensor) and isinstance(constant, Tensor) and held.shape == constant.shape


def _add_input(builder: Builder, node: fx.Node) -> str:
    """The input node; returns its name."""
    layout = builder.layout(node.meta["val"])
    assert layout is not None
    name = builder.unique(node.name)
    builder.nodes[name] = Node(name, "input", shape=layout[0])
    builder.values[node] = Value(name, layout[0], True, True)
    return name


def _output(builder: Builder, program: ExportedProgram) -> Value:
    """The module's one output, which must depend on the input sample by sample."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    if len(specs) != 1 or not isinstance(specs[0].arg, TensorArgument):
        raise ModelError(f"the module returns {len(specs)} values; wrap it in a module that returns one tensor")
    value = next(builder.values[node] for node in builder.values if node.name == specs[0].arg.name)
    if not isinstance(value, Value) or not value.batched:
        raise ModelError("the module's output does not depend on its input")
    return value


def _require_finite(live: LiveParameters) -> None:
    """Refuse NaN and infinity in the module's parameters and buffers."""
    values = live()
    for source in live.names:
        value = values[source.name]
        if value.is_floating_point() and not torch.isfinite(value).all():
            kind = "NaN" if torch.isnan(value).any() else "infinity"
            raise ModelError(f"the module's '{source.name}' contains {kind}; repair or retrain it before tracing")


def _convert(builder: Builder, node: fx.Node, origin: str) -> None:
    """Map one operation of the captured module."""
    value = node.meta.get("val")
    if value is None:
        return
    taken = builder.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if node.target is operator.getitem and isinstance(taken, tuple) and isinstance(node.args[1], int):
        if node.args[1] >= len(taken):
            raise UnsupportedOp("getitem", node.name, origin, f"result {node.args[1]} of '{node.args[0]}' has no rule")
        builder.values[node] = taken[node.args[1]]
        return
    if str(node.target) == "aten.item.default" and isinstance(taken, Value):
        builder.values[node] = taken
        return
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not isinstance(first, Tensor):
        builder.values[node] = Symbolic()
        return
    layout = builder.layout(first)
    shape, axis = ((), False) if layout is None else layout
    call = Call(node, str(node.target), _arguments(builder, node), shape, axis, origin)
    builder.stack.append(call)
    batched = any(operand.batched for operand in _operands(list(call.args.values())))
    if batched and call.op not in INDEPENDENT:
        if layout is None or not axis:
            raise _misplaced(builder, call, first)
        builder.values[node] = _mapped(builder, call)
    else:
        builder.values[node] = _unbatched(builder, call, first, several=first is not value, known=layout is not None)
    builder.stack.pop()


def _misplaced(builder: Builder, call: Call, result: Tensor) -> UnsupportedOp:
    """The error for a result whose batch axis isn't axis 0."""
    if any(str(size).startswith("u") for size in result.shape):
        return call.refuse("the size of its result depends on the values of a tensor")
    known = [(node, builder.values.get(node)) for node in call.node.all_input_nodes]
    shapes = [builder.words(node.meta["val"]) for node, x in known if isinstance(x, Value) and x.batched]
    return call.mixed(f"{', '.join(shapes)} -> {builder.words(result)} where B is the number of samples")


def _arguments(builder: Builder, node: fx.Node) -> dict[str, Any]:
    """Arguments by schema name, with defaults, captured values in place of the exporter's nodes."""

    def resolve(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return builder.values.get(arg)
        return [resolve(item) for item in arg] if isinstance(arg, (list, tuple)) else arg

    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): resolve(arg) for i, arg in enumerate(node.args)}
    schema = node.target._schema.arguments
    given = {argument.name: arg for argument, arg in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    return {argument.name: resolve(given.get(argument.name, argument.default_value)) for argument in schema}


def _operands(arg: Any) -> list[Value]:
    """All values among arguments."""
    if isinstance(arg, Value):
        return [arg]
    return [value for item in arg for value in _operands(item)] if isinstance(arg, (list, tuple)) else []


def _mapped(builder: Builder, call: Call) -> Any:
    """The result of an operation's rule, or of the op table's own entry for it, checked against torch's shapes."""
    key = _table_key(call.op, builder.ops)
    if any(isinstance(arg, Deferred) for arg in call.args.values()) and call.op in RULES:
        raise call.mixed("an operand has the number of samples as the size of another axis than axis 0")
    if call.op in RULES:
        result = RULES[call.op](builder, call)
    elif key is not None:
        attrs = {name: arg for name, arg in call.args.items() if not _operands(arg)}
        result = builder.emit(key, _operands(list(call.args.values())), call.shape, **attrs)
    else:
        raise call.refuse(RANDOM if _is_random(call.node) else "the frontend has no rule for it")
    if isinstance(result, tuple):
        pairs = zip(result, call.node.meta["val"], strict=False)
        return tuple(_checked(builder, call, value, builder.layout(tensor)) for value, tensor in pairs)
    return _checked(builder, call, builder.named(result, call.name), (call.shape, call.axis))


def _checked(builder: Builder, call: Call, value: Value, layout: tuple[tuple[int, ...], bool] | None) -> Value:
    """The value with torch's batch axis; refuses it when its shape isn't torch's."""
    if layout is None or value.shape != layout[0] or (value.batched and not layout[1]):
        raise call.refuse(f"its per-sample shape would be {list(value.shape)}, which is not what torch computes")
    return replace(value, axis=layout[1])


def _unbatched(builder: Builder, call: Call, first: Tensor, several: bool, known: bool) -> Any:
    """An operation that doesn't depend on the input: by its rule if that works, else left to torch."""
    if known and first.is_floating_point() and call.op in RULES:
        with contextlib.suppress(UnsupportedOp):
            return _mapped(builder, call)
    return Deferred() if several or not known else builder.compute()


# --- comparison with the module ----------------------------------------------------------------------------------


def _compare(graph: Graph, original: ModuleOriginal, batch: Tensor) -> None:
    """Raise TraceMismatch unless graph and module agree on the example, on zeros and on noise of several scales."""
    generator = torch.Generator().manual_seed(0)
    params = graph.values(original.dtype, original.device)
    tolerance = TOLERANCE.get(original.dtype, 0.05)
    inputs = [batch]
    for count in (1, 3):
        noise = torch.randn((count, *batch.shape[1:]), generator=generator, dtype=torch.float64)
        inputs += [(scale * noise).to(batch) for scale in (0.0, 0.1, 1.0, 10.0)]
    expected = [_run_once(original, x) for x in inputs]
    floor = 1e-3 * max(_magnitude(y) for y in expected)
    for x, y in zip(inputs, expected, strict=True):
        with torch.no_grad():
            computed = evaluate(graph, params, x)[graph.output.name]
        gap = _difference(computed, y, floor)
        if gap > tolerance:
            raise TraceMismatch(
                f"graph and module disagree on a batch of {x.shape[0]} (largest difference {gap:.3g} relative to the "
                f"largest output, outputs of shape {list(computed.shape)} and {list(y.shape)}). Likely causes: "
                "the forward depends on the number of samples or on values of its input through Python code, "
                "draws random numbers, or keeps state between calls"
            )


def _magnitude(y: Tensor) -> float:
    """The largest finite magnitude; 0 when there is none."""
    finite = y[torch.isfinite(y)]
    return finite.abs().max().item() if finite.numel() else 0.0


def _difference(computed: Tensor, expected: Tensor, floor: float) -> float:
    """Largest difference relative to the largest expected magnitude (at least `floor`).

    Infinite when shapes differ or values are finite in one and not in the other.
    """
    if computed.shape != expected.shape or not torch.equal(torch.isfinite(computed), torch.isfinite(expected)):
        return math.inf
    scale = max(_magnitude(expected), floor, torch.finfo(expected.dtype).tiny)
    return _magnitude(computed - expected) / scale


# --- rules: one small function per operation, (builder, call) -> value(s) ----------------------------------------

Rule = Callable[[Builder, Call], Any]


def _same(b: Builder, c: Call) -> Value:
    """Operations that change nothing about the numbers: clone, detach, a cast between float dtypes."""
    x = next(iter(c.args.values()))
    if not x.floating or not c.node.meta["val"].is_floating_point():
        raise c.refuse("a cast from or to a type that isn't floating-point is no continuous function")
    return x


def _detach(b: Builder, c: Call) -> Value:
    """A detached activation is the same number; detached weights are left to torch, which stops their gradient."""
    if not c["self"].batched:
        raise c.refuse("it stops gradients")
    return c["self"]


def _unary(op: str, **fixed: float) -> Rule:
    return lambda b, c: b.unary(op, next(iter(c.args.values())), **fixed)


def _leaky_relu(b: Builder, c: Call) -> Value:
    return b.unary("leaky_relu", c["self"], slope=float(c["negative_slope"]))


def _prelu(b: Builder, c: Call) -> Value:
    """relu(x) - w relu(-x), so that the slope stays a parameter."""
    x, w = c["self"], c["weight"]
    per_channel = w.shape if len(x.shape) <= 1 else (*w.shape, *[1] * (len(x.shape) - 1))
    slope = b.reshape(w, () if math.prod(w.shape) == 1 else per_channel)
    negative = b.elementwise("mul", slope, b.unary("relu", b.unary("neg", x)))
    return b.elementwise("sub", b.unary("relu", x), negative)


def _clip(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return b.unary("relu", x) if (low, high) == (0.0, math.inf) else b.unary("clip", x, min=low, max=high)


def _clamp(b: Builder, c: Call) -> Value:
    """clamp, clamp_min, clamp_max, hardtanh; bounds that are tensors become maximum and minimum."""
    x, low, high = c["self"], c.args.get("min", c.args.get("min_val")), c.args.get("max", c.args.get("max_val"))
    if isinstance(low, Value) or isinstance(high, Value):
        x = x if low is None else b.elementwise("maximum", x, low)
        return x if high is None else b.elementwise("minimum", x, high)
    if any(isinstance(bound, Symbolic) for bound in (low, high)):
        raise c.refuse("a bound is a number computed from the batch size or from tensors")
    return _clip(b, x, low, high)


def _threshold(b: Builder, c: Call) -> Value:
    if c["threshold"] != c["value"]:
        raise c.refuse("it jumps at its threshold, so it isn't continuous")
    return _clip(b, c["self"], c["value"], None)


def _hardsigmoid(b: Builder, c: Call) -> Value:
    return _clip(b, b.elementwise("add", b.elementwise("mul", c["self"], 1 / 6), 0.5), 0.0, 1.0)


def _binary(op: str) -> Rule:
    """op(self, other), with other scaled by alpha where torch has an alpha."""
    return lambda b, c: b.elementwise(op, c["self"], b.scaled(c["other"], c.args.get("alpha", 1)))


def _rsub(b: Builder, c: Call) -> Value:
    return b.elementwise("sub", c["other"], b.scaled(c["self"], c["alpha"]))


def _reciprocal(b: Builder, c: Call) -> Value:
    return b.elementwise("div", 1.0, c["self"])


def _power(b: Builder, c: Call) -> Value:
    """x to the power of 1, 2, 3 or 4 as products."""
    x, exponent = c["self"], c.args.get("exponent", 2)
    if exponent not in (1, 2, 3, 4):
        raise c.refuse("only the exponents 1, 2, 3 and 4 have a rule")
    square = x if exponent == 1 else b.elementwise("mul", x, x)
    return square if exponent <= 2 else b.elementwise("mul", square, x if exponent == 3 else square)


def _absolute(b: Builder, c: Call) -> Value:
    return b.elementwise("maximum", c["self"], b.unary("neg", c["self"]))


def _weight(c: Call, value: Any) -> Any:
    """A weight, which must not depend on the input."""
    if isinstance(value, Value) and (value.batched or value.axis):
        raise c.refuse("its weights depend on the network's input")
    return value


def _linear(b: Builder, c: Call) -> Value:
    x, weight, bias = c["input"], c["weight"], c["bias"]
    if weight.batched or weight.axis:
        raise c.refuse("its weights depend on the network's input")
    return b.emit("linear", [x, weight] if bias is None else [x, weight, _weight(c, bias)], c.shape)


def _product(b: Builder, c: Call, x: Value, y: Value) -> Value:
    """torch.matmul(x, y); with a fixed matrix on the right it is a linear layer."""
    if not y.axis and y.rank == 2 and x.rank > 1:
        return b.emit("linear", [x, b.transpose(y, (1, 0))], (*x.shape[:-1], y.shape[1]))
    if x.axis and y.axis and (x.rank != y.rank or x.rank < 3):
        raise c.mixed("it multiplies matrices that hold the samples as rows or columns")
    if (x.axis and x.rank == 2 and y.rank > 1) or (y.axis and y.rank < 3):
        raise c.mixed("it multiplies a matrix that holds the samples as rows or columns")
    rank = max(x.rank, y.rank)
    x, y = (b.beside_batch(value, rank) if x.axis or y.axis else value for value in (x, y))
    return b.emit("matmul", [x, y], c.shape)


def _matmul(b: Builder, c: Call) -> Value:
    return _product(b, c, *_operands(list(c.args.values())))


def _addmm(b: Builder, c: Call) -> Value:
    """beta self + alpha mat1 mat2; with a bias vector a linear layer."""
    product = b.scaled(_product(b, c, c["mat1"], c["mat2"]), c["alpha"])
    return b.elementwise("add", product, b.scaled(c["self"], c["beta"]))


def _pair(value: Any, count: int = 2) -> tuple[int, ...]:
    """An int or a list of one as `count` equal ints."""
    listed = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (listed * count if len(listed) == 1 else listed))


def _widened(spatial: int, value: Any, neutral: int) -> tuple[int, int]:
    """A window setting for two axes; with one spatial axis the other gets the neutral value."""
    found = _pair(value, spatial)
    return (neutral, found[0]) if spatial == 1 else (found[0], found[1])


def _image(b: Builder, c: Call, x: Value, spatial: int) -> Value:
    """x as [C, H, W]: a signal gets H = 1, a value without channels one channel."""
    shape = x.shape if len(x.shape) == spatial + 1 else (1, *x.shape)
    if len(shape) != spatial + 1:
        raise c.mixed(f"it takes {spatial} spatial axes behind batch and channels, and gets {list(x.shape)} per sample")
    return b.reshape(x, shape if spatial == 2 else (shape[0], 1, shape[1]))


def _convolution(b: Builder, c: Call) -> Value:
    x, weight, bias = c["input"], _weight(c, c["weight"]), _weight(c, c["bias"])
    spatial = len(weight.shape) - 2
    if c.args.get("transposed") or spatial not in (1, 2):
        raise c.refuse("only convolutions over one or two axes that aren't transposed have a rule")
    if len(x.shape) != spatial + 1:
        raise c.mixed(f"a convolution over {spatial} axes needs [batch, channels, ...]")
    stride, dilation = _widened(spatial, c["stride"], 1), _widened(spatial, c["dilation"], 1)
    x = _image(b, c, x, spatial)
    if spatial == 1:
        weight = b.reshape(weight, (weight.shape[0], weight.shape[1], 1, weight.shape[2]))
    kernel = weight.shape[2:]
    before, after = _conv_padding(spatial, c["padding"], kernel, dilation)
    if before != after:
        pads = ((0, 0), (before[0], after[0]), (before[1], after[1]))
        padded = (x.shape[0], x.shape[1] + sum(pads[1]), x.shape[2] + sum(pads[2]))
        x, before = b.emit("pad", [x], padded, pads=pads, value=0.0), (0, 0)
    sizes = [
        (size + 2 * pad - step * (width - 1) - 1) // jump + 1
        for size, pad, step, width, jump in zip(x.shape[1:], before, dilation, kernel, stride, strict=True)
    ]
    operands = [x, weight] if bias is None else [x, weight, bias]
    attrs = {"stride": stride, "padding": before, "dilation": dilation, "groups": int(c["groups"])}
    return b.reshape(b.emit("conv2d", operands, (weight.shape[0], *sizes), **attrs), c.shape)


def _conv_padding(
    spatial: int, padding: Any, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding before and after each of two axes; 'same' pads the odd one behind."""
    if padding == "same":
        total = [step * (width - 1) for step, width in zip(dilation, kernel, strict=True)]
        before = (total[0] // 2, total[1] // 2)
        return before, (total[0] - before[0], total[1] - before[1])
    both = (0, 0) if padding == "valid" else _widened(spatial, padding, 0)
    return both, both


def _batch_norm(b: Builder, c: Call) -> Any:
    """Batch norm with running statistics; the call's form with a tuple of results gives a tuple."""
    x, mean, var = c["input"], c["running_mean"], c["running_var"]
    if c.args.get("training") or mean is None or var is None:
        return _batch_statistics(b, c)
    weight = b.constant(torch.ones(x.shape[0])) if c["weight"] is None else c["weight"]
    bias = b.constant(torch.zeros(x.shape[0])) if c["bias"] is None else c["bias"]
    operands = [x, *(_weight(c, value) for value in (weight, bias, mean, var))]
    result = b.emit("batch_norm", operands, x.shape, eps=float(c["eps"]))
    return (b.named(result, c.name),) if isinstance(c.node.meta["val"], (list, tuple)) else result


def _batch_statistics(b: Builder, c: Call) -> Value:
    raise c.mixed("it normalises with the statistics of the batch; keep running statistics and call .eval()")


def _recurrent(b: Builder, c: Call) -> Value:
    raise c.refuse("recurrent layers over a whole sequence have no rule; write the loop with a cell (nn.LSTMCell)")


def _max_pool(spatial: int, indices: bool = False) -> Rule:
    def rule(b: Builder, c: Call) -> Any:
        kernel = _widened(spatial, c["kernel_size"], 1)
        attrs = {
            "kernel": kernel,
            "stride": _widened(spatial, c["stride"] or c["kernel_size"], 1),
            "padding": _widened(spatial, c["padding"], 0),
            "dilation": _widened(spatial, c["dilation"], 1),
            "ceil_mode": bool(c["ceil_mode"]),
        }
        return _pooled(b, c, "max_pool2d", spatial, attrs, indices)

    return rule


def _pooled(b: Builder, c: Call, op: str, spatial: int, attrs: Mapping[str, Any], several: bool = False) -> Any:
    """A pooling node between reshapes to [C, H, W] and back."""
    x = _image(b, c, c["self"], spatial)
    out = c.shape[-spatial:] if spatial == 2 else (1, c.shape[-1])
    result = b.reshape(b.emit(op, [x], (x.shape[0], *out), **attrs), c.shape)
    return (b.named(result, c.name),) if several else result


def _avg_pool(spatial: int) -> Rule:
    def rule(b: Builder, c: Call) -> Value:
        if c.args.get("divisor_override") is not None:
            raise c.refuse("divisor_override has no rule")
        attrs = {
            "kernel": _widened(spatial, c["kernel_size"], 1),
            "stride": _widened(spatial, c["stride"] or c["kernel_size"], 1),
            "padding": _widened(spatial, c["padding"], 0),
            "ceil_mode": bool(c["ceil_mode"]),
            "count_include_pad": bool(c["count_include_pad"]),
        }
        return _pooled(b, c, "avg_pool2d", spatial, attrs)

    return rule


def _adaptive_pool(spatial: int, largest: bool) -> Rule:
    """Adaptive pooling to sizes that divide the input's; the average to size one is a mean over axes."""

    def rule(b: Builder, c: Call) -> Any:
        x = c["self"]
        given, wanted = x.shape[-spatial:], c.shape[-spatial:]
        if any(size % out for size, out in zip(given, wanted, strict=True)):
            raise c.refuse(f"adaptive pooling from {list(given)} to {list(wanted)} has windows of different sizes")
        if not largest and set(wanted) == {1}:
            axes = tuple(range(len(x.shape) - spatial, len(x.shape)))
            return b.emit("mean", [x], c.shape, axes=axes, keepdim=True)
        window = _widened(spatial, [size // out for size, out in zip(given, wanted, strict=True)], 1)
        attrs: dict[str, Any] = {"kernel": window, "stride": window, "padding": (0, 0), "ceil_mode": False}
        if largest:
            return _pooled(b, c, "max_pool2d", spatial, attrs | {"dilation": (1, 1)}, several=True)
        return _pooled(b, c, "avg_pool2d", spatial, attrs | {"count_include_pad": True})

    return rule


def _reduction(op: str) -> Rule:
    def rule(b: Builder, c: Call) -> Value:
        x = b.floating(c["self"])
        axes, keep = c.axes_of(x, c.args.get("dim")), bool(c.args.get("keepdim", False))
        return b.emit(op, [x], c.shape, axes=axes, keepdim=keep) if axes else x

    return rule


def _reshape(b: Builder, c: Call) -> Value:
    """Everything that keeps the row-major order of the elements and the batch axis in front."""
    x = next(iter(c.args.values()))
    if x.axis != c.axis:
        raise c.mixed("the batch axis is reshaped")
    return b.reshape(x, c.shape)


def _permuted(b: Builder, c: Call, x: Value, dims: Sequence[int]) -> Value:
    dims = [dim + x.rank if dim < 0 else dim for dim in dims]
    if x.axis and dims[0] != 0:
        raise c.mixed("the batch axis is moved")
    return b.transpose(x, [dim - 1 for dim in dims[1:]] if x.axis else dims)


def _permute(b: Builder, c: Call) -> Value:
    return _permuted(b, c, c["self"], c["dims"])


def _swap(b: Builder, c: Call) -> Value:
    """transpose, t and the matrix transpose: two axes trade places."""
    x = c["self"]
    dims = list(range(x.rank))
    if x.rank > 1:
        first, second = c.args.get("dim0", -2), c.args.get("dim1", -1)
        dims[first], dims[second] = dims[second], dims[first]
    return _permuted(b, c, x, dims)


def _cat(b: Builder, c: Call) -> Value:
    parts = [part for part in c["tensors"] if part.axis or part.shape != (0,)]
    return _joined(b, c, parts, c["dim"])


def _joined(b: Builder, c: Call, parts: Sequence[Value], dim: int) -> Value:
    longest = max(parts, key=lambda part: part.axis)
    axis = c.axis_of(longest, dim)
    return b.concat(b.aligned(parts), axis)


def _stack(b: Builder, c: Call) -> Value:
    parts = c["tensors"]
    dim = c["dim"] + parts[0].rank + 1 if c["dim"] < 0 else c["dim"]
    if dim == 0 and parts[0].axis:
        raise c.mixed("it stacks along axis 0")
    axis = dim - parts[0].axis
    raised = [b.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts]
    return b.concat(b.aligned(raised), axis)


def _bounds(c: Call, size: int) -> tuple[int, int]:
    """Start and stop of a slice of an axis, within it."""
    start, end = c["start"], c["end"]
    if isinstance(start, Symbolic) or isinstance(end, Symbolic):
        raise c.refuse("its range is a number computed from the batch size or from tensors")
    start, stop, _ = slice(start, end).indices(size)
    return start, max(start, stop)


def _slice(b: Builder, c: Call) -> Value:
    x, dim = c["self"], c["dim"]
    if x.axis and dim in (0, -x.rank):
        if c["start"] in (None, 0) and c["step"] == 1 and c.axis:
            return x
        raise c.mixed("it selects samples")
    axis = c.axis_of(x, dim)
    start, stop = _bounds(c, x.shape[axis])
    return b.slice(x, axis, start, stop, c["step"])


def _select(b: Builder, c: Call) -> Value:
    x = c["self"]
    axis = c.axis_of(x, c["dim"])
    if not isinstance(c["index"], int):
        raise c.refuse("its index is not a fixed number")
    index = c["index"] % x.shape[axis]
    return b.reshape(b.slice(x, axis, index, index + 1), c.shape)


def _split(b: Builder, c: Call) -> tuple[Value, ...]:
    """split, split_with_sizes, chunk: consecutive slices, with the sizes that torch found."""
    x = c["self"]
    axis = c.axis_of(x, c["dim"])
    parts, start = [], 0
    for tensor in c.node.meta["val"]:
        stop = start + int(tensor.shape[axis + x.axis])
        parts.append(b.slice(x, axis, start, stop))
        start = stop
    return tuple(parts)


def _unbind(b: Builder, c: Call) -> tuple[Value, ...]:
    x = c["self"]
    axis = c.axis_of(x, c["dim"])
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    return tuple(b.reshape(b.slice(x, axis, i, i + 1), shape) for i in range(x.shape[axis]))


def _index_select(b: Builder, c: Call) -> Value:
    return b.gather(c["self"], c.axis_of(c["self"], c["dim"]), b.concrete(c["index"]).reshape(-1).tolist())


def _index(b: Builder, c: Call) -> Value:
    """x[:, indices] with one fixed tensor of indices."""
    x = c["self"]
    places = [dim for dim, index in enumerate(c["indices"]) if index is not None]
    if len(places) != 1:
        raise c.refuse("only one axis at a time can be indexed by a tensor")
    axis = c.axis_of(x, places[0])
    index = b.concrete(c["indices"][places[0]])
    return b.reshape(b.gather(x, axis, index.reshape(-1).tolist()), c.shape)


def _flip(b: Builder, c: Call) -> Value:
    x = c["self"]
    for axis in c.axes_of(x, c["dims"]):
        x = b.gather(x, axis, range(x.shape[axis] - 1, -1, -1))
    return x


def _roll(b: Builder, c: Call) -> Value:
    x = c["self"]
    if not c["dims"]:
        raise c.mixed("without dims it rolls all axes as one")
    for dim, shift in zip(c["dims"], c["shifts"], strict=True):
        axis = c.axis_of(x, dim)
        x = b.gather(x, axis, [(i - shift) % x.shape[axis] for i in range(x.shape[axis])])
    return x


def _expand(b: Builder, c: Call) -> Value:
    x = c["self"]
    if c.axis:
        x = b.beside_batch(x, len(c.shape) + 1)
    return b.expand(x, c.shape)


def _repeat(b: Builder, c: Call) -> Value:
    """Copies along axes, as joins; along the batch axis only of what doesn't depend on the sample."""
    x, repeats = c["self"], list(c["repeats"])
    if c.axis:
        if x.axis and repeats[0] != 1:
            raise c.mixed("it repeats samples")
        x, repeats = b.beside_batch(x, len(repeats)), repeats[1:]
    x = b.reshape(x, (*[1] * (len(repeats) - len(x.shape)), *x.shape))
    for axis, count in enumerate(repeats):
        if not isinstance(count, int) or count < 1:
            raise c.refuse("it repeats an axis a number of times that isn't fixed and positive")
        x = b.concat([x] * count, axis)
    return x


def _pad(b: Builder, c: Call) -> Value:
    """Constant padding (negative widths crop), or padding with the tensor's own entries."""
    x, widths, mode = c["self"], list(c["pad"]), c.args.get("mode", "constant")
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)][::-1]
    if len(pairs) > len(x.shape):
        if x.axis and pairs[0] != (0, 0):
            raise c.mixed("it pads the batch axis")
        pairs = pairs[1:]
    first = len(x.shape) - len(pairs)
    if mode != "constant":
        for axis, (before, after) in enumerate(pairs, first):
            x = b.gather(x, axis, _padding_indices(c, x.shape[axis], before, after, mode))
        return x
    for axis, (before, after) in enumerate(pairs, first):
        x = b.slice(x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    pads = [(0, 0)] * first + [(max(before, 0), max(after, 0)) for before, after in pairs]
    if not any(before or after for before, after in pads):
        return x
    shape = [size + before + after for size, (before, after) in zip(x.shape, pads, strict=True)]
    return b.emit("pad", [x], shape, pads=tuple(pads), value=float(c["value"] or 0.0))


def _padding_indices(c: Call, size: int, before: int, after: int, mode: str) -> list[int]:
    """Which entry of an axis stands at each place of the padded axis."""
    places = range(-before, size + after)
    if mode == "circular":
        return [place % size for place in places]
    if mode == "replicate":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "reflect":
        return [size - 1 - abs(size - 1 - abs(place)) for place in places]
    raise c.refuse(f"padding mode '{mode}' has no rule")


def _where(b: Builder, c: Call) -> Value:
    return _choice(b, c, c["condition"], c["self"], c["other"])


def _comparison(b: Builder, c: Call) -> Value:
    raise c.refuse("a decision on computed values isn't continuous; use relu, maximum, minimum or clamp instead")


def _masked_fill(b: Builder, c: Call) -> Value:
    return _choice(b, c, c["mask"], c["value"], c["self"])


def _choice(b: Builder, c: Call, condition: Value, x: Any, y: Any) -> Value:
    """x where the condition holds, else y; the condition is fixed."""
    if condition.batched:
        raise c.refuse("its condition depends on the network's input; use relu, maximum, minimum or clamp")
    values = b.aligned([condition, b.floating(b.number(x)), b.floating(b.number(y))])
    return b.emit("where", values, torch.broadcast_shapes(*(value.shape for value in values)))


def _filled(b: Builder, c: Call) -> Value:
    """A constant of the result's shape: zeros_like, new_full, fill."""
    value = c.args.get("fill_value", c.args.get("value", float("one" in c.op)))
    return b.expand(b.number(value), c.shape)


def _copy(b: Builder, c: Call) -> Value:
    """The source in the shape of the destination, which is overwritten."""
    source = b.beside_batch(c["src"], len(c.shape) + 1) if c.axis else c["src"]
    return b.expand(b.floating(source), c.shape)


def _scattered(b: Builder, c: Call, piece: Value, axis: int, start: int, stop: int) -> Value:
    """The destination with its part start:stop along an axis replaced by the piece."""
    x = c["self"]
    return b.concat([b.slice(x, axis, 0, start), piece, b.slice(x, axis, stop, x.shape[axis])], axis)


def _slice_scatter(b: Builder, c: Call) -> Value:
    x, piece = c["self"], c["src"]
    if x.axis and c["dim"] in (0, -x.rank):
        if c["start"] in (None, 0) and c["step"] == 1 and piece.axis:
            return piece
        raise c.mixed("it overwrites single samples")
    if c["step"] != 1:
        raise c.refuse("only slices with step 1 can be overwritten")
    axis = c.axis_of(x, c["dim"])
    return _scattered(b, c, piece, axis, *_bounds(c, x.shape[axis]))


def _select_scatter(b: Builder, c: Call) -> Value:
    x, piece = c["self"], c["src"]
    axis = c.axis_of(x, c["dim"])
    index = c["index"] % x.shape[axis]
    return _scattered(b, c, b.reshape(piece, (*x.shape[:axis], 1, *x.shape[axis + 1 :])), axis, index, index + 1)


def _table(rule: Rule, *names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names}


RULES: Mapping[str, Rule] = {
    **_table(_same, "clone.default", "alias.default", "contiguous.default", "alias_copy.default"),
    **_table(_detach, "detach.default"),
    **_table(_same, "lift_fresh_copy.default", "_to_copy.default", "to.dtype", "to.dtype_layout", "to.device"),
    **_table(_same, "type_as.default", "to.other"),
    **_table(_unary("relu"), "relu.default"),
    **_table(_unary("sigmoid"), "sigmoid.default"),
    **_table(_unary("tanh"), "tanh.default"),
    **_table(_unary("neg"), "neg.default"),
    **_table(_unary("clip", min=0.0, max=6.0), "relu6.default"),
    **_table(_leaky_relu, "leaky_relu.default"),
    **_table(_prelu, "prelu.default", "_prelu_kernel.default"),
    **_table(_clamp, "clamp.default", "clamp.Tensor", "clamp_min.default", "clamp_min.Tensor"),
    **_table(_clamp, "clamp_max.default", "clamp_max.Tensor", "clip.default", "hardtanh.default"),
    **_table(_threshold, "threshold.default"),
    **_table(_hardsigmoid, "hardsigmoid.default"),
    **_table(_absolute, "abs.default"),
    **_table(_binary("add"), "add.Tensor", "add.Scalar"),
    **_table(_binary("sub"), "sub.Tensor", "sub.Scalar"),
    **_table(_binary("mul"), "mul.Tensor", "mul.Scalar"),
    **_table(_binary("div"), "div.Tensor", "div.Scalar"),
    **_table(_binary("maximum"), "maximum.default", "max.other"),
    **_table(_binary("minimum"), "minimum.default", "min.other"),
    **_table(_rsub, "rsub.Scalar", "rsub.Tensor"),
    **_table(_reciprocal, "reciprocal.default"),
    **_table(_power, "pow.Tensor_Scalar", "square.default"),
    **_table(_linear, "linear.default"),
    **_table(_matmul, "matmul.default", "mm.default", "bmm.default", "mv.default"),
    **_table(_addmm, "addmm.default"),
    **_table(_convolution, "conv1d.default", "conv2d.default", "conv1d.padding", "conv2d.padding"),
    **_table(_convolution, "convolution.default"),
    **_table(_batch_norm, "batch_norm.default", "_native_batch_norm_legit_no_training.default"),
    **_table(_batch_statistics, "_native_batch_norm_legit.default", "_native_batch_norm_legit.no_stats"),
    **_table(_recurrent, "lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"),
    **_table(_max_pool(1), "max_pool1d.default"),
    **_table(_max_pool(2), "max_pool2d.default"),
    **_table(_max_pool(2, indices=True), "max_pool2d_with_indices.default"),
    **_table(_avg_pool(1), "avg_pool1d.default"),
    **_table(_avg_pool(2), "avg_pool2d.default"),
    **_table(_adaptive_pool(1, largest=False), "adaptive_avg_pool1d.default"),
    **_table(_adaptive_pool(2, largest=False), "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default"),
    **_table(_adaptive_pool(1, largest=True), "adaptive_max_pool1d.default"),
    **_table(_adaptive_pool(2, largest=True), "adaptive_max_pool2d.default"),
    **_table(_reduction("sum"), "sum.default", "sum.dim_IntList"),
    **_table(_reduction("mean"), "mean.default", "mean.dim"),
    **_table(_reshape, "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints"),
    **_table(_reshape, "unflatten.int", "squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default"),
    **_table(_permute, "permute.default"),
    **_table(_swap, "transpose.int", "t.default"),
    **_table(_cat, "cat.default"),
    **_table(_stack, "stack.default"),
    **_table(_slice, "slice.Tensor"),
    **_table(_select, "select.int"),
    **_table(_split, "split.Tensor", "split_with_sizes.default", "chunk.default", "split.sizes"),
    **_table(_unbind, "unbind.int"),
    **_table(_index_select, "index_select.default"),
    **_table(_index, "index.Tensor"),
    **_table(_flip, "flip.default"),
    **_table(_roll, "roll.default"),
    **_table(_expand, "expand.default"),
    **_table(_repeat, "repeat.default"),
    **_table(_pad, "pad.default", "constant_pad_nd.default"),
    **_table(_where, "where.self"),
    **_table(_masked_fill, "masked_fill.Scalar", "masked_fill.Tensor"),
    **_table(_comparison, "gt.Scalar", "ge.Scalar", "lt.Scalar", "le.Scalar", "eq.Scalar", "ne.Scalar"),
    **_table(_comparison, "gt.Tensor", "ge.Tensor", "lt.Tensor", "le.Tensor", "eq.Tensor", "ne.Tensor"),
    **_table(_copy, "copy.default"),
    **_table(_slice_scatter, "slice_scatter.default"),
    **_table(_select_scatter, "select_scatter.default"),
    **_table(_filled, "zeros_like.default", "ones_like.default", "full_like.default", "new_zeros.default"),
    **_table(_filled, "new_ones.default", "new_full.default", "fill.Scalar", "fill.Tensor"),
}
"""What each torch operation becomes."""

INDEPENDENT = frozenset(op for op, rule in RULES.items() if rule is _filled)
"""Operations that take only shape, dtype and device from their operand."""
