"""Worker processes on this machine, each with a pipe of its own, so that what happens to one concerns no other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from surebound.errors import SureboundError
from surebound.sweeps.executor import Decide
from surebound.sweeps.jobs import Job, Result, too_late
from surebound.sweeps.work import Decider, now

STARTING = 300.0
"""Seconds that a worker may take to load what it needs."""

STARTS = 3
"""Workers in a row that may fail to start before the sweep gives up."""

GRACE = (1.0, 0.02)
"""Seconds, and fraction of the timeout, after which a worker that does not answer is killed."""

LONGEST = 3600.0
"""Seconds to wait at once; the system counts them in milliseconds of 31 bits."""

ENDING = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that a terminal or a batch system sends to all processes: the parent acts on them, workers do not."""

Make = Callable[[int], Decide]


class WorkersFailed(SureboundError):
    """Worker processes end before they can take a job."""

    exit_code = 1


@dataclass(frozen=True)
class LocalPool:
    """As many worker processes as `workers`. A worker that dies or hangs costs its running job and is replaced.

    make: what a worker decides jobs with, given how many workers share the cores; something that pickle can name.
    """

    workers: int = 1
    make: Make = Decider

    def run(self, jobs: Sequence[Job]) -> Generator[Result, None, None]:
        """The results as they come; raises WorkersFailed when no worker starts."""
        queue, crew, failures = Queue(jobs), list[Worker](), 0
        try:
            while queue.left or any(worker.job for worker in crew):
                for worker in crew:
                    if worker.alive and worker.ready and worker.job is None:
                        worker.give(queue.take(worker.network, {other.network for other in crew}))
                crew = [worker for worker in crew if worker.alive]
                busy = sum(worker.job is not None for worker in crew)
                while len(crew) < min(self.workers, busy + queue.left):
                    crew.append(Worker(self.make, min(self.workers, len(jobs))))
                for worker in news(crew):
                    result = worker.hear()
                    if result is not None:
                        yield result
                    elif not worker.alive:
                        failures += 1
                    elif worker.ready:
                        failures = 0
                if failures >= STARTS:
                    raise WorkersFailed(
                        f"{failures} worker processes in a row ended before they could take a job; "
                        "what they wrote to stderr says why"
                    )
        finally:
            for worker in crew:
                worker.end()


class Queue:
    """Jobs that nobody has taken yet, by network."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.groups: dict[str, list[Job]] = {}
        for job in reversed(jobs):
            self.groups.setdefault(network_of(job), []).append(job)
        self.groups = dict(reversed(self.groups.items()))

    @property
    def left(self) -> int:
        """How many there are."""
        return sum(map(len, self.groups.values()))

    def take(self, network: str, busy: set[str]) -> Job | None:
        """The next job: of the same network; else of one that nobody is busy with; else of the one with most left."""
        if not self.groups:
            return None
        free = [name for name in self.groups if name not in busy]
        most = max(self.groups, key=lambda name: len(self.groups[name]))
        chosen = network if network in self.groups else (free[0] if free else most)
        job = self.groups[chosen].pop()
        if not self.groups[chosen]:
            del self.groups[chosen]
        return job


def network_of(job: Job) -> str:
    """What jobs of one network have in common."""
    return job.onnx_sha256 or job.onnx_path


class Worker:
    """A process, the pipe to it, and what it is doing."""

    def __init__(self, make: Make, share: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # A daemon: multiprocessing kills it when the parent ends in any orderly way.
        self.process = context.Process(target=serve, args=(theirs, make, share), daemon=True)
        with deaf():
            self.process.start()
        theirs.close()
        self.ready, self.alive = False, True
        self.job: Job | None = None
        self.network, self.started_at = "", now()
        self.since = time.monotonic()
        self.deadline = self.since + STARTING

    def give(self, job: Job | None) -> None:
        """Hand it a job; without one it is dismissed."""
        if job is None:
            self.end()
            return
        self.job, self.network, self.started_at = job, network_of(job), now()
        self.since = time.monotonic()
        self.deadline = self.since + GRACE[0] + (1 + GRACE[1]) * job.timeout_s
        # One that has just died is found out when it is heard.
        with contextlib.suppress(OSError):
            self.pipe.send(job)

    def hear(self) -> Result | None:
        """What it has to say: a result, also when it died over its job or has to be killed."""
        alive = self.process.is_alive()
        if self.pipe.poll():
            try:
                said: Result | None = self.pipe.recv()
            except (EOFError, OSError):
                return self.dead()
            self.ready, self.job = True, None
            return said
        if not alive:
            return self.dead()
        return self.dead(hung=True) if time.monotonic() > self.deadline else None

    def dead(self, hung: bool = False) -> Result | None:
        """End it, and give the result of its job if it had one."""
        if not hung:
            self.process.join(1)
        code = self.process.exitcode
        self.end()
        job, self.job = self.job, None
        if job is None:
            return None
        spent = time.monotonic() - self.since
        if hung:
            reason = f"{too_late(job)}; its worker did not answer and was stopped"
            return Result(job.key, "timeout", reason, spent, spent, self.started_at)
        error = f"the worker process ended {how(code)} while it was on this job"
        return Result(job.key, "error", error, spent, spent, self.started_at, error_type="WorkerDied", error=error)

    def end(self) -> None:
        """Kill it; nothing that it holds needs saving."""
        if self.alive:
            self.alive = False
            self.process.kill()
            self.process.join()
            self.process.close()
            self.pipe.close()


def news(crew: Sequence[Worker]) -> list[Worker]:
    """Wait for workers that have something to say, have ended or are overdue; those."""
    sources: dict[Any, Worker] = {}
    for worker in crew:
        sources |= {worker.pipe: worker, worker.process.sentinel: worker}
    nearest = min((worker.deadline for worker in crew), default=0.0)
    ready = connection.wait(list(sources), min(max(0.0, nearest - time.monotonic()), LONGEST))
    found = {id(sources[source]) for source in ready}
    return [worker for worker in crew if id(worker) in found or time.monotonic() > worker.deadline]


def how(code: int | None) -> str:
    """An exit code in words."""
    if code is None or code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"by {name} (out of memory?)" if name == "SIGKILL" else f"by {name}"


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Processes started within never see an interrupt; this one sees it afterwards."""
    resource_tracker.ensure_running()  # Starting it lifts the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------- in the worker
def serve(pipe: connection.Connection, make: Make, share: int) -> None:
    """Decide jobs until nobody gives any more."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # Results of the command alone belong on stdout.
    threading.Thread(target=end_with_parent, daemon=True).start()
    decide = make(share)
    pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(decide(job))


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, however that happened."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
