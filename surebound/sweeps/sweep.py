"""Sweeps: every job that has no row yet is handed to an executor, every result becomes a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from surebound.sweeps.executor import Executor
from surebound.sweeps.jobs import Job, Result
from surebound.sweeps.store import Store

VERDICTS = ("unsat", "sat", "unknown", "timeout", "memory", "unsupported", "error")


@dataclass(frozen=True)
class Summary:
    """Where a sweep stands. rows: jobs that have one; verdicts: how many have each."""

    jobs: int
    rows: int
    verdicts: Mapping[str, int]
    results: Path


def open_jobs(jobs: Sequence[Job], store: Store) -> list[Job]:
    """The jobs without a row."""
    return [job for job in jobs if job.key not in store.rows]


def sweep(
    jobs: Sequence[Job], store: Store, executor: Executor, report: Callable[[Job, Result], None] | None = None
) -> Summary:
    """Run the jobs without a row, and append each row as its job ends.

    Jobs must differ, as those of `jobs_of` do. Whatever ends this early, an interrupt included, stops the running
    jobs and leaves the rows that are there.
    """
    waiting = {job.key: job for job in grouped(open_jobs(jobs, store))}
    if waiting:
        with closing(executor.run(list(waiting.values()))) as results:
            for result in results:
                job = waiting.pop(result.job)
                store.add(job, result)
                if report is not None:
                    report(job, result)
    return summary(jobs, store)


def grouped(jobs: Sequence[Job]) -> list[Job]:
    """The jobs of a network side by side, otherwise in order."""
    first: dict[str, int] = {}
    for number, job in enumerate(jobs):
        first.setdefault(job.onnx_path, number)
    return sorted(jobs, key=lambda job: first[job.onnx_path])


def summary(jobs: Sequence[Job], store: Store) -> Summary:
    """What the store knows of these jobs."""
    found = Counter(store.rows[job.key]["verdict"] for job in jobs if job.key in store.rows)
    return Summary(len(jobs), found.total(), {name: found[name] for name in VERDICTS}, store.results)
