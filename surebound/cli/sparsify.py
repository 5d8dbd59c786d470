"""`surebound prune` and `surebound graft`: sparse networks from a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import progress, steps_shown
from surebound.errors import INTERRUPTED, NotYet
from surebound.machine import ending_interrupts

if TYPE_CHECKING:
    from surebound.loop.work import Say, Sparse


@dataclass(frozen=True)
class Job:
    """A run folder, what is done to its network and how, as given on the command line."""

    kind: Literal["prune", "graft"]
    run: Path
    config: Path | None
    settings: Sequence[str]
    out: Path
    data_dir: Path | None
    common: Common


def run(job: Job) -> int:
    """Sparsify and say how it went; the exit code."""
    try:
        job.common.check()
        with ending_interrupts(), progress("loading", job.common.quiet) as show:
            found = sparsified(job, steps_shown(show))
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if failure.exit_code == INTERRUPTED:
            say(f"the same command goes on from what is in {job.out}")
        return failure.exit_code
    if job.common.json:
        emit(to_json({"schema": SCHEMA, "chosen": found.chosen, "rows": [asdict(row) for row in found.rows]}))
    else:
        from surebound.loop.curve import as_text

        emit(as_text(found.rows))
        emit(f"the best by validation images is {found.chosen}, which is the network of {job.out}")
    return 0


def sparsified(job: Job, tell: Say) -> Sparse:
    """The rows and the best network."""
    from surebound.loop.graft import graft_run
    from surebound.loop.prune import prune
    from surebound.training.recipe import read_toml, setting

    machine = job.common.machine()
    if machine.device.type != "cpu":
        raise NotYet(f"{job.kind} does not run on '{machine.device}' yet; leave out --device, or give cpu")
    parts = [read_toml(job.config)] if job.config is not None else []
    seed = {} if job.common.seed is None else {"seed": job.common.seed}
    work = {"prune": prune, "graft": graft_run}[job.kind]
    return work(job.run, job.out, [*parts, *(setting(text) for text in job.settings), seed], job.data_dir, tell)
