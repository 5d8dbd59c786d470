"""A CSV file that grows by whole rows: what a killed run had finished can be read and continued."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surebound.errors import UsageError


@dataclass(frozen=True)
class RowFile:
    """Rows of named columns. A row is one write to the file, on the disk when `append` returns."""

    path: Path
    columns: tuple[str, ...]

    def start(self) -> list[dict[str, str]]:
        """The rows that are there; writes the header of a new file and cuts off a last row that was not finished.

        Raises UsageError for a file with other columns, or one that cannot be written.
        """
        try:
            text = self.path.read_bytes().decode() if self.path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            if not whole:
                self.path.write_text(self.line(self.columns))
                return []
            if len(whole) < len(text):
                os.truncate(self.path, len(whole.encode()))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path} cannot be used for results: {error}; choose another --out") from None
        header, *rows = csv.reader(io.StringIO(whole))
        if tuple(header) != self.columns:
            raise UsageError(f"{self.path} has other columns than this version writes; choose another --out")
        return [dict(zip(self.columns, row, strict=True)) for row in rows if len(row) == len(self.columns)]

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row; None is an empty field. Raises UsageError when it cannot be written."""
        data = self.line([row[name] for name in self.columns]).encode()
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise UsageError(f"a row could not be added to {self.path}: {error}") from None

    @staticmethod
    def line(values: Sequence[Any]) -> str:
        """One row as text."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()
