"""From the captured program to a graph: every operation by its rule, or left to torch."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.fx.node import map_arg

from surebound.errors import ModelError, UnsupportedOp
from surebound.graph.ir import Graph, Node
from surebound.graph.module_original import ModuleOriginal
from surebound.graph.passes import recognise_grafts
from surebound.graph.torch_frontend.builder import Builder, Value, values_in
from surebound.graph.torch_frontend.call import Call
from surebound.graph.torch_frontend.live import LiveParameters, source_of
from surebound.graph.torch_frontend.recording import RANDOM, computed, is_random, live
from surebound.graph.torch_frontend.rules import INDEPENDENT, REFUSED, RULES, find, names
from surebound.ops.record import Op


def to_graph(program: ExportedProgram, module: nn.Module, ops: Mapping[str, Op], original: ModuleOriginal) -> Graph:
    """Map every operation and keep what the output needs."""
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
    if changed:
        raise ModelError(
            f"the module's forward changes its own '{changed[0]}', so calling it twice gives two networks; "
            "make the forward free of side effects in evaluation mode"
        )
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = list(zip(placeholders, signature.input_specs, strict=True))
    (user,) = (node for node, spec in specs if spec.kind == InputKind.USER_INPUT)
    size = user.meta["val"].shape[0]
    if not isinstance(size, torch.SymInt):
        raise ModelError(f"the module works for a batch of {size} samples only; write it for any number of samples")
    builder = Builder(module, ops, size.node.expr, original.dtype)
    for node, spec in specs:
        if node is not user:
            add_tensor(builder, node, spec, program)
    name, shape = builder.unique(user.name), tuple(int(size) for size in user.meta["val"].shape[1:])
    builder.nodes[name] = Node(name, "input", shape=shape)
    builder.values[user] = Value(name, shape, True)
    for node in program.graph.nodes:
        if node.op == "call_function":
            convert(builder, node)
        elif node.op not in ("placeholder", "output"):
            raise builder.refusal(node, "it is a submodule or a nested graph")
    output = output_of(builder, program)
    nodes = tuple(builder.nodes.values())
    graph = recognise_grafts(Graph(nodes, (name,), (output.name,), ops, live(builder, ()), original))
    parameters = live(builder, [node.name for node in graph if node.op == "parameter"])
    require_finite(parameters)
    return replace(graph, parameters=parameters)


def add_tensor(builder: Builder, node: fx.Node, spec: Any, program: ExportedProgram) -> None:
    """A parameter, buffer or constant of the captured module as a parameter node."""
    if not isinstance(spec.arg, TensorArgument) or spec.target is None:
        raise ModelError(f"the module needs '{node.name}', which is not a tensor; only tensors can be traced")
    name, value = spec.target, node.meta["val"]
    held = program.constants.get(name)
    if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) and not holds(builder.module, name, held):
        builder.values[node] = builder.constant(held.detach().clone(), name)  # type: ignore[union-attr]
        return
    if name not in builder.sources:
        builder.sources[name] = source_of(builder.module, name, tuple(value.shape))
        builder.parameter(name, value.shape, value.is_floating_point())
    builder.values[node] = Value(name, tuple(value.shape), False, value.is_floating_point())


def holds(module: nn.Module, name: str, constant: Any) -> bool:
    """Is this constant of the captured program a tensor that the module holds as an attribute of that name?"""
    held: Any = module
    for part in name.split("."):
        held = getattr(held, part, None)
    return isinstance(held, Tensor) and isinstance(constant, Tensor) and held.shape == constant.shape


def output_of(builder: Builder, program: ExportedProgram) -> Value:
    """The module's one output, which must depend on the input sample by sample."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
    if len(specs) != 1 or not isinstance(specs[0].arg, TensorArgument):
        raise ModelError(f"the module returns {len(specs)} values; wrap it in a module that returns one tensor")
    value = next((value for node, value in builder.values.items() if node.name == specs[0].arg.name), None)
    if not isinstance(value, Value) or not value.batched:
        raise ModelError("the module's output does not depend on its input")
    return value


def require_finite(live: LiveParameters) -> None:
    """Refuse NaN and infinity in the module's parameters and buffers."""
    values = replace(live, names=tuple(source.name for source in live.sources))()
    for name, value in values.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            kind = "NaN" if torch.isnan(value).any() else "infinity"
            raise ModelError(f"the module's '{name}' contains {kind}; repair or retrain it before tracing")


def convert(builder: Builder, node: fx.Node) -> None:
    """Map one operation of the captured module; numbers stay what they are in the exporter's node."""
    value = node.meta.get("val")
    taken = builder.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if node.target is operator.getitem and isinstance(taken, tuple) and isinstance(node.args[1], int):
        if node.args[1] >= len(taken):
            raise builder.refusal(node, f"result {node.args[1]} of '{node.args[0]}' has no rule")
        builder.values[node] = taken[node.args[1]]
        return
    if str(node.target) == "aten.item.default" and isinstance(taken, Value):
        builder.values[node] = taken
        return
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    result = tensors(builder, node, first) if isinstance(first, Tensor) else None
    if result is not None:
        builder.values[node] = result


def tensors(builder: Builder, node: fx.Node, first: Tensor) -> Value | tuple[Value, ...] | None:
    """The result of an operation: by its rule, or left to torch if it doesn't depend on the input.

    None for what torch computes when it is used: one of several results, or a size that depends on values.
    """
    args = arguments(builder, node)
    batched = any(value.batched for value in values_in(args)) and str(node.target) not in INDEPENDENT
    shape = builder.shape_of(first, batched)
    call = Call(builder, node, args, batched, shape or ())
    if batched and shape is None:
        raise misplaced(call, first)
    if batched:
        return mapped(call)
    if shape is None:
        return None
    if first.is_floating_point() and find(call.op, RULES) is not None:
        with contextlib.suppress(UnsupportedOp):
            return mapped(call)
    return computed(builder, node, shape) if first is node.meta["val"] else None


def arguments(builder: Builder, node: fx.Node) -> dict[str, Any]:
    """Arguments by schema name, with defaults, captured values in place of the exporter's nodes."""

    def resolved(arg: fx.Node) -> Any:
        return builder.values.get(arg, arg)

    args, kwargs = map_arg((node.args, node.kwargs), resolved)
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): arg for i, arg in enumerate(args)}
    schema = node.target._schema.arguments
    given = {argument.name: arg for argument, arg in zip(schema, args, strict=False)} | kwargs
    return {argument.name: given.get(argument.name, argument.default_value) for argument in schema}


def misplaced(call: Call, result: Tensor) -> UnsupportedOp:
    """The error for a result whose batch axis isn't axis 0."""
    if any(call.builder.for_one_sample(size) is None for size in result.shape):
        return call.refuse("the size of its result depends on the values of a tensor")
    known = [(node, call.builder.values.get(node)) for node in call.node.all_input_nodes]
    shapes = [call.builder.words(node.meta["val"]) for node, x in known if isinstance(x, Value) and x.batched]
    return call.mixed(f"{', '.join(shapes)} -> {call.builder.words(result)} where B is the number of samples")


def mapped(call: Call) -> Value | tuple[Value, ...]:
    """The result of an operation's rule, or of the op table's own entry for it."""
    require_precision(call)
    rule, key = find(call.op, RULES), next((key for key in names(call.op) if key in call.builder.ops), None)
    if rule is not None:
        try:
            result = rule(call)
        except (TypeError, ValueError, IndexError) as error:
            raise call.refuse(f"its rule does not know arguments of this kind ({error})") from error
    elif key is not None:
        attrs = {name: call[name] for name, arg in call.args.items() if not values_in(arg)}
        result = call.emit(key, call.operands, call.shape, **attrs)
    else:
        other = RANDOM if is_random(call.node) else "the frontend has no rule for it"
        raise call.refuse(find(call.op, REFUSED) or other)
    expected = call.node.meta["val"]
    if isinstance(expected, Tensor) and isinstance(result, Value):
        return checked(call, result, expected)
    results = result if isinstance(result, tuple) else (result,)
    return tuple(checked(call, value, tensor) for value, tensor in zip(results, expected, strict=False))


def require_precision(call: Call) -> None:
    """Refuse results in a narrower float type than the module's: the graph would not round as they do."""
    for result in (
        call.node.meta["val"] if isinstance(call.node.meta["val"], (tuple, list)) else [call.node.meta["val"]]
    ):
        narrow = isinstance(result, Tensor) and result.is_floating_point()
        if narrow and result.dtype.itemsize < call.builder.dtype.itemsize:
            kind, known = (str(dtype).removeprefix("torch.") for dtype in (result.dtype, call.builder.dtype))
            raise call.refuse(
                f"it computes in {kind}, which rounds more than the module's {known}; use {known} throughout"
            )


def checked(call: Call, value: Value, tensor: Tensor) -> Value:
    """The value; refuses it when its shape isn't torch's."""
    if value.shape != call.builder.shape_of(tensor, call.batched):
        raise call.refuse(f"its per-sample shape would be {list(value.shape)}, which is not what torch computes")
    return value if value.batched or not call.batched else call.reshape(value, (1, *value.shape))
