"""What a sweep hands out and gets back: plain values that any engine can carry, by pickle or as JSON."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from surebound import __version__
from surebound.errors import SureboundError, failure_of

DIGITS = 16
"""Hexadecimal digits of a job's key."""


@dataclass(frozen=True)
class Settings:
    """How instances are decided. threads: of one worker, None for its share of the cores; memory: bytes of one pass."""

    attack: Literal["pgd", "none"] = "pgd"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    memory: int = 1 << 30
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One instance to decide.

    key: hash of the contents and the options. onnx, vnnlib: as the list of instances names them; the paths: where
    they are; the hashes: of their contents, "" where they could not be read. timeout_s: charged seconds.
    """

    key: str
    onnx: str
    vnnlib: str
    onnx_path: str
    vnnlib_path: str
    onnx_sha256: str
    vnnlib_sha256: str
    timeout_s: float
    settings: Settings = field(default_factory=Settings)

    @staticmethod
    def of(values: Mapping[str, Any]) -> Job:
        """The job whose `asdict` these values are, as after a detour through JSON."""
        return Job(**{**values, "settings": Settings(**values["settings"])})


@dataclass(frozen=True)
class Result:
    """What is known of a job when it has ended; job: its key, witness: text in VNN-COMP form or "".

    seconds: wall time from opening the files to the verdict; charged_s: what counts against the timeout. threads:
    used, None where nothing ran. started_at: ISO 8601, UTC. error_type, error: the exception that ended it, or "".
    """

    job: str
    verdict: str
    reason: str
    seconds: float
    charged_s: float
    started_at: str
    nodes: int = 0
    margin: float | None = None
    witness: str = ""
    engine: str = ""
    threads: int | None = None
    error_type: str = ""
    error: str = ""


def key_of(onnx: str, vnnlib: str, timeout_s: float, settings: Settings) -> str:
    """The key of a job: equal for equal contents, options and version of Surebound.

    onnx, vnnlib: hashes of the contents, or names of what has none.
    """
    values = {
        "onnx": onnx,
        "vnnlib": vnnlib,
        "timeout": float(timeout_s),
        "version": __version__,
        **asdict(settings),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]


def failed(job: Job, error: BaseException, seconds: float, started_at: str, threads: int | None) -> Result:
    """The result of a job that an exception ended; timeouts are no errors."""
    failure = failure_of(error)
    if failure.verdict == "timeout":
        return Result(job.key, "timeout", too_late(job), seconds, seconds, started_at, threads=threads)
    place = "" if isinstance(error, SureboundError) else _place(error)
    return Result(
        job.key,
        failure.verdict,
        failure.reason,
        seconds,
        seconds,
        started_at,
        threads=threads,
        error_type=type(error).__name__,
        error=f"{error}{place}",
    )


def too_late(job: Job) -> str:
    """The reason of a timeout."""
    return f"not decided within {job.timeout_s:.3g} s"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
