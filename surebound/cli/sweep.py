"""`surebound sweep`: decide a list of instances, in a folder that an interrupted sweep continues in."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import counted
from surebound.errors import INTERRUPTED, NotYet, UsageError
from surebound.machine import check_device, ending_interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surebound.sweeps.jobs import Job as Task
    from surebound.sweeps.jobs import Result, Settings
    from surebound.sweeps.store import Store
    from surebound.sweeps.sweep import Summary


@dataclass(frozen=True)
class Job:
    """What is to be decided and how, as given on the command line."""

    instances: Path
    out: Path
    workers: int
    attack: Literal["pgd", "none"]
    resume: bool
    common: Common


def run(job: Job) -> int:
    """Run the sweep and say how it went; the exit code."""
    try:
        job.common.check()
        check(job)
        with ending_interrupts():
            from surebound.sweeps.instances import jobs_of, read_instances
            from surebound.sweeps.store import Store

            tasks = jobs_of(read_instances(job.instances, job.common.timeout), settings_of(job))
            with Store.open(job.out, tasks, job.resume) as store:
                return decide(job, tasks, store)
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if job.common.json:
            emit(to_json({"schema": SCHEMA, "verdict": failure.verdict, "reason": failure.reason}))
        return failure.exit_code


def check(job: Job) -> None:
    """Raise UsageError for options that make no sense, NotYet for a device that cannot be used."""
    if job.workers < 1:
        raise UsageError(f"--jobs must be at least 1, got {job.workers}")
    if check_device(job.common.device) != "cpu":
        raise NotYet(f"sweep does not run on '{job.common.device}' yet; leave out --device, or give cpu")


def settings_of(job: Job) -> Settings:
    """The options that results depend on."""
    from surebound.sweeps.jobs import Settings

    common = job.common
    return Settings(job.attack, common.dtype, common.device, common.threads, common.memory_bytes, common.seed_or_zero)


def decide(job: Job, tasks: Sequence[Task], store: Store) -> int:
    """Decide what is open and print the summary, also after an interrupt; the exit code."""
    from surebound.sweeps.pool import LocalPool
    from surebound.sweeps.sweep import open_jobs, summary, sweep

    began, interrupted = time.monotonic(), False
    waiting = len(open_jobs(tasks, store))
    try:
        with counted(waiting, job.common.quiet) as count:
            sweep(tasks, store, LocalPool(job.workers), lambda task, result: count(words(task, result)))
    except KeyboardInterrupt:
        interrupted = True
    found = summary(tasks, store)
    wrong = found.rows < found.jobs or found.verdicts["error"] > 0
    if job.common.json:
        emit(to_json(as_object(found, found.jobs - waiting, time.monotonic() - began)))
    tell(found, found.jobs - waiting, time.monotonic() - began)
    if interrupted:
        say(f"interrupted with {found.jobs - found.rows} jobs to go; continue with --resume")
        return INTERRUPTED
    return int(wrong)


def words(task: Task, result: Result) -> str:
    """One line about a job that has ended."""
    return f"{result.verdict} in {result.seconds:.1f} s: {Path(task.onnx).name} {Path(task.vnnlib).name}"


def tell(found: Summary, before: int, seconds: float) -> None:
    """The summary, for people."""
    verdicts = ", ".join(f"{count} {name}" for name, count in found.verdicts.items() if count)
    earlier = f", {before} of them from before" if before else ""
    say(f"{found.rows} of {found.jobs} jobs{earlier}: {verdicts or 'nothing yet'}; {seconds:.0f} s")
    if found.verdicts["error"]:
        say(f"error: {found.verdicts['error']} jobs ended in an error; {found.results} says which in its last column")


def as_object(found: Summary, before: int, seconds: float) -> dict[str, Any]:
    """The summary of schema 1."""
    values = asdict(replace(found, verdicts=dict(found.verdicts)))
    return {"schema": SCHEMA, **values, "results": str(found.results), "resumed": before, "seconds": seconds}
