"""The file that a sweep leaves behind: one row per job, each written entirely or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surebound import __version__
from surebound.errors import UsageError
from surebound.sweeps.jobs import Job, Result

COLUMNS = (
    "job", "onnx", "vnnlib", "onnx_sha256", "vnnlib_sha256", "timeout_s", "verdict", "reason", "seconds", "charged_s",
    "nodes", "margin", "witness", "engine", "attack", "dtype", "device", "threads", "seed", "version", "started_at",
    "error_type", "error",
)  # fmt: skip

Row = Mapping[str, str]


@dataclass(frozen=True)
class Store:
    """DIR/results.csv while a sweep writes to it, and DIR/witnesses. rows: those that are there, by job."""

    out: Path
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        """The file of rows."""
        return self.out / "results.csv"

    @staticmethod
    @contextmanager
    def open(out: Path, jobs: Sequence[Job], resume: bool) -> Iterator[Store]:
        """The store of a folder, which nobody else may write to meanwhile.

        A new one unless `resume`: then complete rows stay, a torn last line is dropped, and so are rows with the
        verdict `error` of instances that `jobs` has, which are to be tried again. Raises UsageError.
        """
        with ExitStack() as stack, _writing(out):
            (out / "witnesses").mkdir(parents=True, exist_ok=True)
            _lock(stack.enter_context((out / ".lock").open("w")).fileno(), out)
            store = Store(out)
            store._begin(jobs, resume)
            held = stack.pop_all()
        with held:
            yield store

    def _begin(self, jobs: Sequence[Job], resume: bool) -> None:
        exists = self.results.exists()
        if exists and not resume:
            raise UsageError(f"{self.results} exists; continue it with --resume, or choose another folder with --out")
        data = self.results.read_bytes() if exists else b""
        named = {(job.onnx, job.vnnlib) for job in jobs}
        for row in complete_rows(data, str(self.results)):
            if row["verdict"] != "error" or (row["onnx"], row["vnnlib"]) not in named:
                self.rows.setdefault(row["job"], row)
        wanted = b"".join([line_of(COLUMNS), *(line_of(row.values()) for row in self.rows.values())])
        if data != wanted:
            replace_file(self.results, wanted)

    def add(self, job: Job, result: Result) -> None:
        """Append a job's row, after its witness has a file of its own; UsageError when that fails."""
        witness = f"witnesses/{job.key}.txt" if result.witness else ""
        row = row_of(job, result, witness)
        with _writing(self.out):
            if witness:
                replace_file(self.out / witness, (result.witness + "\n").encode())
            append(self.results, line_of(row.values()))
        self.rows[job.key] = row


def row_of(job: Job, result: Result, witness: str) -> Row:
    """The row of a job, its columns in order."""
    settings = job.settings
    values: dict[str, Any] = {
        "job": job.key,
        "onnx": job.onnx,
        "vnnlib": job.vnnlib,
        "onnx_sha256": job.onnx_sha256,
        "vnnlib_sha256": job.vnnlib_sha256,
        "timeout_s": f"{job.timeout_s:.15g}",
        "verdict": result.verdict,
        "reason": result.reason,
        "seconds": f"{result.seconds:.6f}",
        "charged_s": f"{result.charged_s:.6f}",
        "nodes": result.nodes,
        "margin": result.margin,
        "witness": witness,
        "engine": result.engine,
        "attack": settings.attack,
        "dtype": settings.dtype,
        "device": settings.device,
        "threads": settings.threads if result.threads is None else result.threads,
        "seed": settings.seed,
        "version": __version__,
        "started_at": result.started_at,
        "error_type": result.error_type,
        "error": result.error,
    }
    assert tuple(values) == COLUMNS
    return {name: "" if value is None else " ".join(str(value).split()) for name, value in values.items()}


def line_of(values: Iterable[str]) -> bytes:
    """A line of CSV; values have no line breaks, so a line is a row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode("utf-8", "surrogateescape")


def complete_rows(data: bytes, name: str) -> list[Row]:
    """The rows of a results file; what follows the last line break was torn off by a kill and is left out.

    Raises UsageError, with the line, for anything else that no sweep of this version wrote.
    """
    lines = data.decode("utf-8", "surrogateescape").split("\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            (fields,) = csv.reader([line.rstrip("\r")], strict=True)
        except (csv.Error, ValueError):
            fields = []
        if len(fields) != len(COLUMNS) or (number == 1) != (tuple(fields) == COLUMNS):
            what = "the header" if number == 1 else "a row"
            raise UsageError(
                f"{name}:{number}: not {what} of results of this version; choose another folder with --out"
            )
        if number > 1:
            rows.append(dict(zip(COLUMNS, fields, strict=True)))
    return rows


def append(path: Path, line: bytes) -> None:
    """Append a line by one write and see it to the disk; nothing stays of a line that does not fit."""
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
    """Write a file anew so that at any moment it is the old one or the new one."""
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
def _writing(out: Path) -> Iterator[None]:
    """Tell what a failing write means."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written to: {error.strerror}; mend that and use --resume, or choose another --out"
        ) from error


def _lock(file: int, out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"{out}: another sweep is writing to it; let it end, or choose another with --out") from None
