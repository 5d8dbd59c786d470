"""How commands speak: results on stdout, messages on stderr, an exit code."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import typer

from surebound.errors import Failure, SureboundError, UsageError, failure_of

SCHEMA = 1


def explain(error: BaseException) -> Failure:
    """Tell the user on stderr why the command ends; SUREBOUND_DEBUG=1 adds the traceback."""
    failure = failure_of(error)
    say(f"{'error' if failure.exit_code in (1, 2) else failure.verdict}: {failure.reason}")
    if os.environ.get("SUREBOUND_DEBUG") == "1":
        say("".join(traceback.format_exception(error)).rstrip())
    elif failure.exit_code == 1 and not isinstance(error, SureboundError):
        say("Set SUREBOUND_DEBUG=1 to see where; please report it with the model and the command.")
    return failure


def say(message: str) -> None:
    """A message on stderr."""
    typer.echo(message, err=True)


def emit(text: str) -> None:
    """A result on stdout."""
    typer.echo(text)
    sys.stdout.flush()


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text of nested values. Non-finite floats become null, Decimals keep all their digits."""
    return _json(value, indent, "" if indent is None else "\n")


def _json(value: Any, indent: int | None, line: str) -> str:
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else "null"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    if isinstance(value, Mapping):
        parts = [f"{json.dumps(key)}: {_json(item, indent, line + ' ' * (indent or 0))}" for key, item in value.items()]
        return _enclosed("{", parts, "}", indent, line)
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [_json(item, indent, line + " " * (indent or 0)) for item in value]
        return _enclosed("[", parts, "]", indent, line)
    return json.dumps(value)


def _enclosed(left: str, parts: Sequence[str], right: str, indent: int | None, line: str) -> str:
    if indent is None or not parts:
        return left + ", ".join(parts) + right
    inner = line + " " * indent
    return left + inner + ("," + inner).join(parts) + line + right


@dataclass(frozen=True)
class ResultsFile:
    """Where the answer is written besides stdout."""

    path: Path

    @staticmethod
    def at(path: Path) -> ResultsFile:
        """Check that the file can be written, before any work is done; UsageError otherwise."""
        try:
            with path.open("a"):
                return ResultsFile(path)
        except OSError as error:
            raise UsageError(
                f"the results file {path} cannot be written: {error.strerror}; choose another path"
            ) from None

    def write(self, text: str) -> None:
        """Replace what the file holds; UsageError when that fails after all."""
        try:
            self.path.write_text(text + "\n")
        except OSError as error:
            raise UsageError(f"the results file {self.path} could not be written: {error.strerror}") from None
