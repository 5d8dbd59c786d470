"""What worker processes of the tests do instead of deciding: a job's network is named after what is to happen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from surebound.sweeps.jobs import Job, Result


def scripted(share: int) -> Callable[[Job], Result]:
    """A decider that dies, hangs, is slow, or answers at once; `engine` is the process."""
    return act


def act(job: Job) -> Result:
    """Leaves a file NAME.started with its process beside the network, then does what the network's name says."""
    network = Path(job.onnx_path)
    network.with_name(f"{network.name}.started").write_text(str(os.getpid()))
    deed = network.name.split("-")[0]
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if deed == "leave":
        os._exit(3)
    if deed == "hang":
        time.sleep(1000)
    if deed == "slow":
        time.sleep(0.15)
    verdict = "sat" if "even" in job.vnnlib else "unsat"
    return Result(job.key, verdict, "", 0.1, 0.1, "2026-01-01T00:00:00+00:00", engine=str(os.getpid()), witness="")


def broken(share: int) -> Callable[[Job], Result]:
    """A decider that cannot be made."""
    os._exit(1)
