"""The module behind a traced graph as the user gave it: its own forward, dtype and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surebound.errors import ModelError, UsageError


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
    def first(self) -> Tensor | None:
        """The first floating-point parameter, else buffer."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in now."""
        return self.default if self.first is None else self.first.dtype

    @property
    def device(self) -> torch.device:
        """The device it computes on now."""
        return torch.device("cpu") if self.first is None else self.first.device

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs [B, *output shape] of the module for x [B, *input shape], without gradients.

        x is copied to the module's dtype and device. Raises UsageError for a module in training mode.
        """
        require_eval(self.module)
        with torch.no_grad():
            return single_output(self.module(x.detach().to(self.device, self.dtype, copy=True)))


CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.utils.parametrize.ParametrizationList)
"""Modules that compute the same in training and evaluation, and that appear in training mode when added late."""


def require_precision(original: ModuleOriginal) -> None:
    """Raise UsageError unless the module computes in float32 or float64."""
    if original.dtype not in (torch.float32, torch.float64):
        kind = str(original.dtype).removeprefix("torch.")
        raise UsageError(
            f"the module computes in {kind}, whose rounding is too coarse for bounds in real arithmetic to say "
            "anything about it: call .float() on the module and the example first"
        )


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
