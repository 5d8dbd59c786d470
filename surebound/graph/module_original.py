"""The live module behind a traced graph: its parameters, fetched anew at every query, and its own forward."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from surebound.errors import ModelError, ParametersChanged, UsageError


@dataclass(frozen=True)
class Source:
    """A tensor of the module: its dotted name and its shape at trace time.

    registered: it is a parameter or buffer, not a plain attribute. tied: other names of the same tensor, which
    the exporter merges into one (weights shared between layers).
    """

    name: str
    shape: tuple[int, ...]
    registered: bool = True
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ref:
    """Stands in a step's arguments for a tensor of the module, a constant, or the result of an earlier step."""

    name: str


@dataclass(frozen=True)
class Step:
    """One torch operation that doesn't depend on the network's input, e.g. the one inside a weight norm.

    op: full name ("aten.div.Tensor") or "getitem". args, kwargs: as torch takes them, with `Ref` for tensors.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Computed:
    """A parameter node's tensor as the result of a step; drop_batch removes a leading axis of size one."""

    ref: Ref
    drop_batch: bool = False


@dataclass(frozen=True)
class LiveParameters:
    """The tensors of a traced graph's parameter nodes, read from the module at every call.

    Reassigned, pruned, parametrised, moved and trained values are therefore seen, with their gradients.
    names: what is read from the module. constants: tensors that belong to the traced code.
    steps: torch operations on those, in order, for what the op table has no rule for; computed: the parameter
    nodes that are their results. fixed: values that became static arguments of the graph (indices) and so
    must not change. dtype: floating dtype of the module at trace time; steps follow the present one.
    Raises ParametersChanged when the module no longer fits the graph.
    """

    module: nn.Module
    names: tuple[Source, ...]
    constants: Mapping[str, Tensor]
    steps: tuple[Step, ...] = ()
    computed: Mapping[str, Computed] = field(default_factory=dict)
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def __call__(self) -> Mapping[str, Tensor]:
        values = {source.name: fetch(self.module, source) for source in self.names}
        computed = self._run(values) if self.steps or self.fixed else {}
        return {**values, **self.constants, **computed}

    def _run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype, device = place([value for value in tensors.values() if value.is_floating_point()], self.dtype)
        values = {**tensors, **{name: value.to(device) for name, value in self.constants.items()}}
        for step in self.steps:
            values[step.name] = run_step(step, values, self.dtype, dtype, device)
        for name, value in self.fixed.items():
            if not torch.equal(values[name].to(value.device), value):
                raise ParametersChanged(
                    f"the values of '{name}' are indices that were built into the traced graph, and they have "
                    "changed since; trace the module again"
                )
        return {name: pick(values[item.ref.name], item.drop_batch) for name, item in self.computed.items()}


def pick(value: Tensor, drop_batch: bool) -> Tensor:
    """A computed value without the axis of size one that stands for the batch."""
    return value.squeeze(0) if drop_batch else value


def place(tensors: list[Tensor], dtype: torch.dtype) -> tuple[torch.dtype, torch.device | None]:
    """Dtype and device of the first tensor; `dtype` and None without one."""
    return (tensors[0].dtype, tensors[0].device) if tensors else (dtype, None)


def run_step(
    step: Step, values: Mapping[str, Any], traced: torch.dtype, dtype: torch.dtype, device: torch.device | None
) -> Any:
    """The result of a step, created in the present `dtype` and `device` where the trace saw `traced`."""

    def resolve(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return values[arg.name]
        if isinstance(arg, (list, tuple)):
            return type(arg)(resolve(item) for item in arg)
        if isinstance(arg, torch.dtype):
            return dtype if arg == traced else arg
        if isinstance(arg, torch.device):
            return arg if device is None else device
        return arg

    function: Any = operator.getitem
    if step.op != "getitem":
        namespace, packet, overload = step.op.split(".")
        function = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return function(*resolve(step.args), **{key: resolve(arg) for key, arg in step.kwargs.items()})


def owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that a dotted name points into, and the last part of the name."""
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def fetch(module: nn.Module, source: Source) -> Tensor:
    """The present value of a tensor of the module; raises ParametersChanged if it is gone or has another shape."""
    try:
        value = present(*owner(module, source.name), source.registered)
    except AttributeError:
        value = None
    if not isinstance(value, Tensor):
        raise ParametersChanged(
            f"the module has no parameter or buffer '{source.name}' any more (removed, renamed or wrapped since it "
            "was traced); trace the module again"
        )
    if tuple(value.shape) != source.shape:
        raise ParametersChanged(
            f"'{source.name}' has shape {list(value.shape)} now and had {list(source.shape)} when it was traced; "
            "trace the module again"
        )
    for other in source.tied:
        twin = fetch(module, replace(source, name=other, tied=()))
        if twin is not value and not torch.equal(twin, value):
            raise ParametersChanged(
                f"'{source.name}' and '{other}' were one tensor when the module was traced and are two now; "
                "trace the module again"
            )
    return value


def present(holder: nn.Module, leaf: str, registered: bool) -> Tensor | None:
    """The tensor `leaf` of one module, through pruning and parametrisations added since; None if there is none."""
    if leaf in holder._parameters or leaf in holder._buffers or not registered:
        return getattr(holder, leaf)
    if nn.utils.parametrize.is_parametrized(holder, leaf):
        return getattr(holder, leaf)
    for hook in holder._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == leaf:
            return hook.apply_mask(holder)
    return None


def source_of(module: nn.Module, name: str, shape: tuple[int, ...]) -> Source:
    """How to find the tensor with this dotted name again."""
    holder, leaf = owner(module, name)
    if leaf not in holder._parameters and leaf not in holder._buffers:
        return Source(name, shape, registered=False)
    tensor = getattr(holder, leaf)
    everything = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return Source(name, shape, tied=tuple(other for other, twin in everything if twin is tensor and other != name))


def module_floats(module: nn.Module) -> list[Tensor]:
    """Floating-point parameters, then buffers."""
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


def single_output(value: Any) -> Tensor:
    """The tensor that a forward returns, alone or in a container of one; raises ModelError otherwise."""
    if isinstance(value, Tensor):
        return value
    items = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(items, (list, tuple)) and len(items) == 1:
        return single_output(items[0])
    count = f"{len(items)} values" if isinstance(items, (list, tuple)) else f"a {type(value).__name__}"
    raise ModelError(
        f"the module returns {count}; wrap it in a module whose forward returns the one tensor to reason about"
    )


@dataclass(frozen=True)
class ModuleOriginal:
    """The module as the user gave it; `default` is its dtype when it has no floating parameter or buffer."""

    module: nn.Module
    default: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in now."""
        return place(module_floats(self.module), self.default)[0]

    @property
    def device(self) -> torch.device:
        """The device it computes on now."""
        return place(module_floats(self.module), self.default)[1] or torch.device("cpu")

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [B, *output shape] of the module for x [B, *input shape], without gradients.

        x is copied to the module's dtype and device. Raises UsageError for a module in training mode.
        """
        require_eval(self.module)
        with torch.no_grad():
            return single_output(self.module(x.detach().to(self.device, self.dtype, copy=True)))


CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.utils.parametrize.ParametrizationList)
"""Modules that compute the same in training and evaluation, and that appear in training mode when added late."""


def require_eval(module: nn.Module) -> None:
    """Raise UsageError unless the module and all its parts but mere containers are in evaluation mode."""
    parts = [(name, part) for name, part in module.named_modules() if type(part) not in CONTAINERS]
    training = [name or type(module).__name__ for name, part in parts if part.training]
    if training:
        raise UsageError(
            f"the module is in training mode ({training[0]}"
            + (f" and {len(training) - 1} more parts" if len(training) > 1 else "")
            + "): call .eval() on it first, because dropout and batch norm compute something else in training"
        )
