"""The parameters of a traced graph: the module's own tensors, fetched anew at every query."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.utils import prune

from surebound.errors import ParametersChanged


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

    def run(self, values: Mapping[str, Any], dtypes: Mapping[Any, torch.dtype], device: torch.device | None) -> Any:
        """The result for present values, with dtypes replaced as told, on the device (None: as recorded)."""

        def present(arg: Any) -> Any:
            if isinstance(arg, Ref):
                return values[arg.name]
            if isinstance(arg, torch.dtype):
                return dtypes.get(arg, arg)
            return device or arg if isinstance(arg, torch.device) else arg

        function = operator.getitem if self.op == "getitem" else operator.attrgetter(self.op)(torch.ops)
        args: Any = map_aggregate(self.args, present)
        kwargs: Any = map_aggregate(dict(self.kwargs), present)
        return function(*args, **kwargs)


@dataclass(frozen=True)
class LiveParameters:
    """The tensors of a traced graph's parameter nodes, read from the module at every call.

    Reassigned, pruned, parametrised, moved and trained values are therefore seen, with their gradients.
    names: the parameter nodes. sources: what is read from the module. constants: tensors that belong to the
    traced code. steps: torch operations on those, in order, for what the op table has no rule for. fixed: values
    that became static arguments of the graph (indices) and so must not change. dtype: floating dtype of the
    module at trace time; steps follow the present one.
    Raises ParametersChanged when the module no longer fits the graph.
    """

    module: nn.Module
    names: tuple[str, ...]
    sources: tuple[Source, ...]
    constants: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    fixed: Mapping[str, Tensor]
    dtype: torch.dtype

    def __call__(self) -> Mapping[str, Tensor]:
        values = {source.name: fetch(self.module, source) for source in self.sources}
        floats = [tensor for tensor in values.values() if tensor.is_floating_point()]
        dtypes = {self.dtype: floats[0].dtype if floats else self.dtype}
        device = next((tensor.device for tensor in (*floats, *values.values())), None)
        values |= {name: tensor.to(device) for name, tensor in self.constants.items()}
        for step in self.steps:
            values[step.name] = step.run(values, dtypes, device)
        for name, value in self.fixed.items():
            if not torch.equal(values[name].to(value.device), value):
                raise ParametersChanged(
                    f"the values of '{name}' are indices that were built into the traced graph, and they have "
                    "changed since; trace the module again"
                )
        return {name: values[name] for name in self.names}


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
    plain = leaf in holder._parameters or leaf in holder._buffers or not registered
    if plain or nn.utils.parametrize.is_parametrized(holder, leaf):
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
    everything = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return Source(name, shape, tied=tuple(other for other, twin in everything if twin is tensor and other != name))
