"""`surebound compress`: a smaller network with the same outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, to_json


@dataclass(frozen=True)
class Job:
    """What is made smaller, and over which inputs it stays the same."""

    model: Path
    out: Path
    domain: tuple[float, float]
    common: Common


def run(job: Job) -> int:
    """Compress and print the steps; the exit code."""
    try:
        job.common.check()
        from surebound.loop.compress import compress_model

        job.common.machine()
        found = compress_model(job.model, job.out, *job.domain)
    except (Exception, KeyboardInterrupt) as error:
        return explain(error).exit_code
    if job.common.json:
        emit(to_json({"schema": SCHEMA, "steps": [asdict(step) for step in found.steps]}))
    else:
        for step in found.steps:
            emit(f"{step.name:26} {step.parameters:12,} parameters  {step.neurons:9,} neurons")
    return 0
