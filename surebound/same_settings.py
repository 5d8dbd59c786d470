"""Folders that hold the work of one command by one set of settings, so that the same command goes on there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surebound.errors import UsageError
from surebound.rowfile import replace_file
from surebound.runs import RunFolder
from surebound.training.distributed import first

RECIPE, SETTINGS = "recipe.json", "settings.json"
"""Where a folder of `surebound train` says what it is made by, and where those of other commands do."""


def same_settings(path: Path, values: Mapping[str, Any], begun: bool, name: str = SETTINGS) -> RunFolder:
    """Make a folder, or check that it holds work by the same settings, in its file `name`; UsageError otherwise.

    begun: is there anything in it that the work would go on from? Else the folder is made anew.
    """
    text = json.dumps(values, sort_keys=True)
    there = path / name
    require_unused(path, name)
    if there.exists():
        before = there.read_text()
        if before == text:
            return RunFolder(path)
        if begun or (path / "summary.json").exists():
            changed = ", ".join(differences(parsed(before), json.loads(text))) or "another version"
            raise UsageError(f"{path} holds work by other settings ({changed}); choose another --out, or delete it")
    if first():
        folder = RunFolder.create(path)
        folder.write_config(values)
        replace_file(there, text.encode())
    return RunFolder(path)


def require_unused(path: Path, own: str) -> None:
    """Raise UsageError where the folder holds what another command has left; own: the file of this one's settings."""
    others = {SETTINGS} if (path / own).exists() else {RECIPE, SETTINGS, "summary.json"}
    for other in sorted(others - {own}):
        if (path / other).exists():
            raise UsageError(f"{path} holds the work of another command ({other}); choose another --out")


def parsed(text: str) -> Any:
    """JSON, and an empty table for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Which values differ between two tables, as "run.epochs: 3 there, 4 here"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path}: {json.dumps(before)} there, {json.dumps(now)} here"
