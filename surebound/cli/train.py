"""`surebound train`: a network from data, by a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import progress, steps_shown
from surebound.errors import INTERRUPTED, NotYet, UsageError
from surebound.machine import ending_interrupts

Show = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """The recipe as given on the command line, and where the run goes."""

    config: Path | None
    recipe: str | None
    settings: Sequence[str]
    out: Path
    data_dir: Path | None
    common: Common


def run(job: Job) -> int:
    """Train and say how it went; the exit code."""
    try:
        job.common.check()
        with ending_interrupts() as again, progress("loading", job.common.quiet) as show:
            summary = trained(job, show, again)
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if failure.exit_code == INTERRUPTED:
            say(f"the same command goes on from the last checkpoint in {job.out}")
        return failure.exit_code
    if job.common.json:
        emit(to_json({"schema": SCHEMA, **summary}))
    else:
        words = ", ".join(f"{name} {value:.1%}" for name, value in summary["validation"].items() if name != "unstable")
        part = "validation" if summary["recipe"]["validation"] else "training"
        emit(f"{summary['epochs']} epochs; {part} images: {words}; see {job.out}")
    return 0


def trained(job: Job, show: Show, again: Callable[[], None]) -> Mapping[str, Any]:
    """The summary of the run."""
    from surebound.fit import fit
    from surebound.training.published import parts_of
    from surebound.training.recipe import read_toml, recipe_of, setting

    if job.config is not None and job.recipe is not None:
        raise UsageError("give a TOML file or --recipe, not both")
    parts = [read_toml(job.config)] if job.config is not None else parts_of(job.recipe) if job.recipe else []
    seed = {} if job.common.seed is None else {"seed": job.common.seed}
    recipe = recipe_of(*parts, *(setting(text) for text in job.settings), seed)
    machine = job.common.machine()
    if machine.device.type != "cpu":
        raise NotYet(f"train does not run on '{machine.device}' yet; leave out --device, or give cpu")
    together()
    return fit(recipe, job.out, job.data_dir, steps_shown(show, again)).summary


def together() -> None:
    """Join the other processes where torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo")
