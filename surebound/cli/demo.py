"""`surebound demo`: from training to a proof, on data that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surebound.cli.loading import NotYet
from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, to_json
from surebound.cli.progress import progress


@dataclass(frozen=True)
class Job:
    """Where the demo writes, and the common options."""

    out: Path
    common: Common
