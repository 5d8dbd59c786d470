"""`surebound demo`: from training to a proof, on data that needs no download."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import progress
from surebound.errors import NotYet


@dataclass(frozen=True)
class Job:
    """Where the demo writes, and the common options."""

    out: Path
    common: Common


def run(job: Job) -> int:
    """Run the demonstration; print its table, or its summary as JSON; the exit code."""
    common = job.common
    try:
        common.check()
        check(common)
        with progress("loading", common.quiet) as show:
            from rich.console import Console

            from surebound.demo import DemoConfig, run_demo
            from surebound.reports.table import in_terminal

            common.machine()
            config = DemoConfig()
            if common.timeout is not None:
                config = replace(config, timeout=common.timeout)
            summary = run_demo(job.out, seed=common.seed_or_zero, progress=show, config=config)
        if common.json:
            emit(to_json(json.loads((job.out / "summary.json").read_text())))
        else:
            Console().print(in_terminal(summary.table))
            say(f"Open {summary.report} in a browser. Check the example yourself:")
            say(f"  surebound verify {summary.model} {summary.spec}")
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if common.json:
            emit(to_json({"schema": SCHEMA, "verdict": failure.verdict, "reason": failure.reason}))
        return failure.exit_code
    return 0


def check(common: Common) -> None:
    """Raise NotYet for common options that the demo does not follow."""
    for name in ("device", "dtype", "memory"):
        if getattr(common, name) != getattr(Common, name):
            raise NotYet(f"the demo runs on the CPU, in float32 and within 1GiB a pass; leave out --{name}")
