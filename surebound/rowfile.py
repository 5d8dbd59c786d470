"""Folders of results that grow by whole rows: what a killed run had finished can be read and continued."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surebound.errors import UsageError

Row = Mapping[str, str]


def line_of(values: Iterable[Any]) -> bytes:
    """A line of CSV. None is an empty field; white space inside a value becomes a blank, so that a line is a row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        "" if value is None else " ".join(str(value).split()) for value in values
    )
    return text.getvalue().encode("utf-8", "surrogateescape")


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A whole file: the header and the rows."""
    return b"".join([line_of(columns), *(line_of(row[name] for name in columns) for row in rows)])


def complete_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a file, if there is one; what follows the last line break was torn off by a kill and is left out.

    Raises UsageError, with the line, for anything else that was not written with these columns.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; choose another folder with --out") from None
    lines = data.decode("utf-8", "surrogateescape").split("\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            (fields,) = csv.reader([line.rstrip("\r")], strict=True)
        except (csv.Error, ValueError):
            fields = []
        if len(fields) != len(columns) or (number == 1) != (tuple(fields) == tuple(columns)):
            what = "the header" if number == 1 else "a row"
            raise UsageError(
                f"{path}:{number}: not {what} of results of this version; choose another folder with --out"
            )
        if number > 1:
            rows.append(dict(zip(columns, fields, strict=True)))
    return rows


def append(path: Path, line: bytes) -> None:
    """Append a line by one write and see it to the disk; nothing stays of a line that does not fit. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        before = os.fstat(file).st_size
        if os.write(file, line) != len(line):
            os.ftruncate(file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    finally:
        os.close(file)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file anew so that at any moment it is the old one or the new one. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Tell what a failing write into a folder of results means: UsageError instead of OSError."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written to: {error.strerror}; mend that, and the same command goes on from there, or "
            f"choose another --out"
        ) from error


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make a folder and keep it to ourselves; UsageError where another run is writing to it."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{out}: another run is writing to it; let it end, or choose another folder with --out"
            ) from None
        yield
