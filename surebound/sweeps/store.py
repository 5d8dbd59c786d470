"""The file that a sweep leaves behind: one row per job, each written entirely or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surebound import __version__
from surebound.errors import UsageError
from surebound.rowfile import Row, append, claimed, complete_rows, line_of, replace_file, table, writing
from surebound.sweeps.jobs import Job, Result

COLUMNS = (
    "job", "onnx", "vnnlib", "onnx_sha256", "vnnlib_sha256", "timeout_s", "verdict", "reason", "seconds", "charged_s",
    "nodes", "margin", "witness", "engine", "attack", "dtype", "device", "threads", "seed", "version", "started_at",
    "error_type", "error",
)  # fmt: skip


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
        with claimed(out):
            store = Store(out)
            with writing(out):
                store._begin(jobs, resume)
            yield store

    def _begin(self, jobs: Sequence[Job], resume: bool) -> None:
        if self.results.exists() and not resume:
            raise UsageError(f"{self.results} exists; continue it with --resume, or choose another folder with --out")
        (self.out / "witnesses").mkdir(exist_ok=True)
        named = {(job.onnx, job.vnnlib) for job in jobs}
        for row in complete_rows(self.results, COLUMNS):
            if row["verdict"] != "error" or (row["onnx"], row["vnnlib"]) not in named:
                self.rows.setdefault(row["job"], row)
        replace_file(self.results, table(COLUMNS, self.rows.values()))

    def add(self, job: Job, result: Result) -> None:
        """Append a job's row, after its witness has a file of its own; UsageError when that fails."""
        witness = f"witnesses/{job.key}.txt" if result.witness else ""
        row = row_of(job, result, witness)
        with writing(self.out):
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
    return {name: "" if value is None else str(value) for name, value in values.items()}
