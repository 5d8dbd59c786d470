"""Who does the work of a sweep: the protocol that an engine such as Ray or SLURM has to fulfil."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from surebound.sweeps.jobs import Job, Result
from surebound.sweeps.work import Decider

Decide = Callable[[Job], Result]
"""Decides a job; answers with a failed `Result` instead of raising."""


class Executor(Protocol):
    """Takes jobs and gives their results back as they end.

    Jobs and results are plain values: they survive pickle, and `json` by way of `dataclasses.asdict`, `Job.of` and
    `Result(**values)`. What runs elsewhere is `surebound.sweeps.work.Decider()(job)`; a decider keeps the network
    of its last job, so jobs of one network, which come one after the other, belong together.
    """

    def run(self, jobs: Sequence[Job]) -> Generator[Result, None, None]:
        """Exactly one result per job, in any order. Closing the generator stops what still runs."""
        ...


@dataclass(frozen=True)
class InProcess:
    """One job after the other, right here: for debugging and for tests. A crash is a crash."""

    make: Callable[[], Decide] = Decider

    def run(self, jobs: Sequence[Job]) -> Generator[Result, None, None]:
        """The results, in order."""
        decide = self.make()
        for job in jobs:
            yield decide(job)
