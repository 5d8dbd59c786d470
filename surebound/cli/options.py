"""The options that all commands have, declared once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from surebound.errors import UsageError
from surebound.machine import check_device, keep_memory, parse_size, use_threads

if TYPE_CHECKING:
    import torch

PANEL = "Common options"


@dataclass(frozen=True)
class Common:
    """The common options as they were given."""

    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=PANEL)] = "cpu"
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="What bounds are computed in.", rich_help_panel=PANEL)
    ] = "float32"
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads.", show_default="torch's, where they help", rich_help_panel=PANEL),
    ] = None
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What one pass may use, such as 4GB or 512MiB.", rich_help_panel=PANEL)
    ] = "1GiB"
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random.", show_default="0, or the recipe's", rich_help_panel=PANEL),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="More than 0.",
            show_default="verify 60, per image evaluate 60 and demo 1, sweep as listed",
            rich_help_panel=PANEL,
        ),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=PANEL)] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel=PANEL)] = False

    def check(self) -> None:
        """Raise UsageError for values that make no sense; needs no torch."""
        if self.timeout is not None and not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UsageError(f"--timeout must be a finite number of seconds above 0, got {self.timeout:g}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {self.threads}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed must lie between 0 and 2^63 - 1, got {self.seed}")
        parse_size(self.memory)

    @property
    def seed_or_zero(self) -> int:
        """--seed, 0 where it was not given."""
        return self.seed or 0

    @property
    def memory_bytes(self) -> int:
        """--memory in bytes."""
        return parse_size(self.memory)

    def machine(self) -> Machine:
        """Check the device, set the number of threads and let the process keep its memory; imports torch."""
        import torch

        keep_memory()
        device = torch.device(check_device(self.device))
        dtype = {"float32": torch.float32, "float64": torch.float64}[self.dtype]
        return Machine(device, dtype, use_threads(self.threads), self.memory_bytes)


@dataclass(frozen=True)
class Machine:
    """Where and how bounds are computed; memory in bytes."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    memory: int


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Spread a command's parameter `common: Common` into one option per field."""
    hints = get_type_hints(Common, include_extras=True)
    own = inspect.signature(command, eval_str=True).parameters.values()
    spread = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Common)
    ]

    @wraps(command)
    def spreading(**given: Any) -> None:
        common = Common(**{field.name: given.pop(field.name) for field in fields(Common)})
        command(common=common, **given)

    parameters = [parameter for parameter in own if parameter.name != "common"] + spread
    vars(spreading)["__signature__"] = inspect.Signature(parameters)
    spreading.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spreading
