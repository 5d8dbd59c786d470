"""Deciding jobs in the process that has them, one after the other."""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from surebound.errors import ModelError, SpecError, SureboundError
from surebound.machine import check_device, keep_memory, time_limit, use_threads
from surebound.sweeps.instances import onnx_sha256, sha256
from surebound.sweeps.jobs import Job, Result, failed, too_late

if TYPE_CHECKING:
    from surebound.graph.ir import Graph

LATE = (0.5, 0.01)
"""Seconds, and fraction of the timeout, after which a search that has not noticed its timeout is interrupted."""


class Decider:
    """Decides jobs and keeps the last network, so that it is imported once for neighbouring jobs.

    share: how many deciders share the cores, for jobs that do not say how many threads they want.
    """

    def __init__(self, share: int = 1) -> None:
        # What takes long to load is loaded here, so that no job pays for it.
        import surebound.instance
        import surebound.search.verify  # noqa: F401

        self.cores = max(1, use_threads(None) // share)
        self.loaded: tuple[str, Graph | SureboundError] | None = None

    def __call__(self, job: Job) -> Result:
        """The job's result; an exception becomes a result, too, and only an interrupt ends the work."""
        import torch

        started_at, began = now(), time.perf_counter()
        threads = self.cores if job.settings.threads is None else job.settings.threads
        torch.set_num_threads(threads)
        keep_memory()
        on_main = threading.current_thread() is threading.main_thread()
        limit = job.timeout_s + LATE[0] + LATE[1] * job.timeout_s
        try:
            with time_limit(limit, "deciding") if on_main else contextlib.nullcontext():
                return self.decide(job, began, started_at, threads)
        except Exception as error:
            if not isinstance(error, SureboundError) or error.verdict == "timeout":
                self.loaded = None
            return failed(job, error, time.perf_counter() - began, started_at, threads)

    def decide(self, job: Job, began: float, started_at: str, threads: int) -> Result:
        """The result of a job that nothing ends early; raises what loading and `verify` raise."""
        import torch

        from surebound.instance import load_property
        from surebound.search.run import VerifyConfig
        from surebound.search.verdict import Falsified, Verified
        from surebound.search.verify import verify
        from surebound.witness import format_witness

        settings = job.settings
        check_device(settings.device)
        graph = self.network(job)
        if sha256(job.vnnlib_path) not in ("", job.vnnlib_sha256):
            raise SpecError("its content has changed since the sweep began; run it again with --resume", job.vnnlib)
        prop = load_property(Path(job.vnnlib_path), graph)
        loading = time.perf_counter() - began
        if loading >= job.timeout_s:
            return Result(job.key, "timeout", too_late(job), loading, loading, started_at, threads=threads)
        config = VerifyConfig(
            timeout=job.timeout_s - loading,
            attack=settings.attack,
            dtype={"float32": torch.float32, "float64": torch.float64}[settings.dtype],
            device=settings.device,
            seed=settings.seed,
            memory=settings.memory,
        )
        (outcome,) = verify(graph, [prop], config)
        verdict = outcome.verdict
        return Result(
            job.key,
            verdict.name,
            too_late(job) if verdict.name == "timeout" else verdict.reason,
            time.perf_counter() - began,
            loading + outcome.charged,
            started_at,
            nodes=outcome.nodes,
            margin=verdict.margin if isinstance(verdict, Verified) else None,
            witness=format_witness(verdict.witness) if isinstance(verdict, Falsified) else "",
            engine=outcome.engine,
            threads=threads,
        )

    def network(self, job: Job) -> Graph:
        """The job's network, or the error that reading it ends in, both remembered until another is asked for."""
        from surebound.instance import load_network

        if self.loaded is None or self.loaded[0] != job.onnx_path:
            self.loaded = None
            if onnx_sha256(job.onnx_path) not in ("", job.onnx_sha256):
                raise ModelError(f"{job.onnx}: its content has changed since the sweep began; run it with --resume")
            try:
                found: Graph | SureboundError = load_network(Path(job.onnx_path))
            except SureboundError as error:
                if error.verdict == "timeout":
                    raise
                found = error
            self.loaded = (job.onnx_path, found)
        if isinstance(self.loaded[1], SureboundError):
            raise self.loaded[1]
        return self.loaded[1]


def now() -> str:
    """The time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
