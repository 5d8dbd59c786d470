"""`surebound evaluate`: verified accuracy on a data set."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surebound import __version__
from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import progress
from surebound.errors import NotYet, UsageError
from surebound.machine import ending_interrupts
from surebound.rowfile import Row, append, claimed, complete_rows, line_of, replace_file, table, writing

if TYPE_CHECKING:
    from surebound.measures.verified import Judged

COLUMNS = (
    "index",
    "label",
    "prediction",
    "status",
    "reason",
    "attack_margin",
    "lower_ibp",
    "lower_crown",
    "lower_alpha",
    "nodes",
    "charged_s",
    "seed",
)
LOWER = {"ibp": "lower_ibp", "crown": "lower_crown", "alpha-crown": "lower_alpha"}
"""Columns of the bounds, by method."""

TIMEOUT = 60.0
"""Charged seconds per image, unless given."""


@dataclass(frozen=True)
class Job:
    """What is to be evaluated and how, as given on the command line."""

    model: str
    weights: Path | None
    data: str
    data_dir: Path | None
    eps: str
    norm: str
    n: int | None
    indices: str | None
    methods: str
    pool: int | None
    out: Path
    common: Common


def run(job: Job) -> int:
    """Evaluate, print and write; the exit code."""
    try:
        job.common.check()
        with ending_interrupts():
            found = evaluated(job)
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if failure.exit_code == 130:
            say(f"what was decided so far is in {job.out}; the same command goes on from there")
        return failure.exit_code
    emit(to_json(found) if job.common.json else as_text(found))
    return 0


def evaluated(job: Job) -> dict[str, Any]:
    """The summary; raises what ends the work early."""
    with progress("loading", job.common.quiet) as show:
        eps, norm = number(job.eps, "--eps"), number(job.norm, "--norm")
        if job.n is not None and job.indices is not None:
            raise UsageError("give --n or --indices, not both")
        import torch

        from surebound.data.augment import centred
        from surebound.data.readers import data_folder, load_part
        from surebound.measures.verified import EvaluateConfig, check_asked, evaluate, summary
        from surebound.models import load_model
        from surebound.runs import crop_of
        from surebound.search.run import VerifyConfig

        machine = job.common.machine()
        if machine.device.type != "cpu":
            raise NotYet(f"evaluate does not run on '{machine.device}' yet; leave out --device, or give cpu")
        part = load_part(job.data, job.data_dir, "test", indices=None if job.indices is None else listed(job.indices))
        part = part if job.n is None else part.take(torch.arange(first(job.n, len(part))))
        part = replace(part, images=centred(part.images, crop_of(Path(job.model))))
        graph, digest = load_model(job.model, job.weights, part.images[:1])
        check_asked(graph, part, eps, norm)
        search = VerifyConfig(
            timeout=TIMEOUT if job.common.timeout is None else job.common.timeout,
            dtype=machine.dtype,
            seed=job.common.seed_or_zero,
            memory=machine.memory,
        )
        config = EvaluateConfig(tuple(job.methods.split(",")), job.pool, search=search)
        folder = data_folder(job.data_dir)
        settings = {
            "version": __version__,
            "model": job.model,
            "data": job.data,
            "data_dir": None if folder is None else str(folder.resolve()),
            "eps": eps,
            "norm": "inf" if norm == math.inf else norm,
            "methods": list(config.methods),
            "timeout": search.timeout,
            "pool": job.pool,
            "dtype": job.common.dtype,
            "device": job.common.device,
            "threads": machine.threads,
            "memory": machine.memory,
            "seed": job.common.seed_or_zero,
            "model_sha256": digest,
        }
        began, sheet = time.monotonic(), job.out / "rows.csv"
        with claimed(job.out), writing(job.out):
            settle(job.out, settings)
            labels = dict(zip(part.indices.tolist(), part.labels.tolist(), strict=True))
            before = known_rows(sheet, labels)
            replace_file(sheet, table(COLUMNS, before))
            done = {int(row["index"]) for row in before}
            places = [k for k, index in enumerate(part.indices.tolist()) if index not in done]

            budget = Budget(len(places), search.timeout)

            def judged(item: Judged) -> None:
                append(sheet, line_of(as_row(item, job.common.seed_or_zero).values()))
                budget.decided(item.seconds)

            def told(words: str) -> None:
                show(f"{words}; {budget.words()}")

            if places:
                evaluate(graph, part.take(torch.tensor(places)), eps, norm, config, judged, told)
            rows = sorted(known_rows(sheet, labels), key=lambda row: int(row["index"]))
            replace_file(sheet, table(COLUMNS, rows))
            found = summary([from_row(row) for row in rows if int(row["index"]) in labels])
            wall = time.monotonic() - began
            result = {"schema": SCHEMA, **found, "wall_s": wall, "config": settings, "model_sha256": digest}
            replace_file(job.out / "summary.json", (to_json(result, 2) + "\n").encode())
    return result


class Budget:
    """How long the rest can take at most: every second is charged to images that are open, each up to `timeout`."""

    def __init__(self, images: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.open, self.timeout, self.clock = images, timeout, clock
        self.began, self.spent = clock(), 0.0

    def decided(self, charged: float) -> None:
        """One image less, which was charged so many seconds."""
        self.open -= 1
        self.spent += charged

    def words(self) -> str:
        """For people."""
        charged = max(0.0, self.clock() - self.began - self.spent)
        minutes, seconds = divmod(round(max(0.0, self.open * self.timeout - charged)), 60)
        return f"{self.open} open, at most {minutes}:{seconds:02d} to go"


def number(text: str, option: str) -> float:
    """A number, `inf`, or a fraction such as 8/255; UsageError otherwise."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} must be a number or a fraction such as 8/255, got '{text}'") from None
    return value


def first(n: int, there: int) -> int:
    """How many images --n asks for; UsageError when there are not as many."""
    if not 1 <= n <= there:
        raise UsageError(f"--n must be from 1 to {there}, the number of test images, got {n}")
    return n


def listed(argument: str) -> list[int]:
    """The numbers in FILE: one per line, or JSON; FILE:KEY takes the list under KEY of a JSON object."""
    name, _, key = argument.partition(":")
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the indices in {name} cannot be read: {error}") from None
    try:
        values: Any = json.loads(text) if text.lstrip()[:1] in ("[", "{") else [int(line) for line in text.split()]
        values = values[key] if key else values
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{argument} holds no list of indices: {error!r}; write one number per line, or JSON"
        ) from None
    if not isinstance(values, list) or not values or not all(type(v) is int and v >= 0 for v in values):
        raise UsageError(f"{argument} must hold a list of image indices (whole numbers from 0 on)")
    if len(set(values)) < len(values):
        raise UsageError(f"{argument} names an image twice")
    return values


def settle(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of the results in a folder to its config.json; UsageError when it holds those of others."""
    from surebound.same_settings import require_unused

    require_unused(path, "config.json")
    written = json.loads(to_json(settings))
    if not (path / "config.json").exists():
        replace_file(path / "config.json", (to_json(settings, 2) + "\n").encode())
        return
    try:
        before = json.loads((path / "config.json").read_text())
        changed = [key for key in written if before.get(key) != written[key]]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}/config.json is not one of ours: {error}; choose another --out") from None
    if changed:
        raise UsageError(
            f"{path} holds results with another {', '.join(changed)}; choose another --out or equal settings"
        )


def known_rows(sheet: Path, labels: Mapping[int, int]) -> list[Row]:
    """The rows that are there; labels: of the images asked for, by index.

    Raises UsageError, with the line, for a row that evaluating these images cannot have written.
    """
    rows, seen = complete_rows(sheet, COLUMNS), set[int]()
    for line, row in enumerate(rows, 2):
        try:
            item = from_row(row)
        except ValueError as error:
            raise UsageError(f"{sheet}:{line}: a damaged row ({error}); choose another folder with --out") from None
        if item.index in seen:
            raise UsageError(f"{sheet}:{line}: image {item.index} again; choose another folder with --out")
        if labels.get(item.index, item.label) != item.label:
            raise UsageError(
                f"{sheet}:{line}: image {item.index} has the label {item.label} there and {labels[item.index]} in the "
                "data; choose another folder with --out"
            )
        seen.add(item.index)
    return rows


def as_row(item: Judged, seed: int) -> dict[str, Any]:
    """A row of rows.csv."""
    return {
        "index": item.index,
        "label": item.label,
        "prediction": item.prediction,
        "status": item.status,
        "reason": item.reason,
        "attack_margin": item.margin,
        **{column: item.lower.get(method) for method, column in LOWER.items()},
        "nodes": item.nodes,
        "charged_s": round(item.seconds, 6),
        "seed": seed,
    }


def from_row(row: Mapping[str, str]) -> Judged:
    """What a row says, without the evidence; ValueError for what no row says."""
    from surebound.measures.verified import STATUSES, Judged

    if row["status"] not in STATUSES:
        raise ValueError(f"there is no status '{row['status']}'")
    lower = {method: float(row[column]) for method, column in LOWER.items() if row[column]}
    margin = float(row["attack_margin"]) if row["attack_margin"] else None
    status: Any = row["status"]
    return Judged(int(row["index"]), int(row["label"]), int(row["prediction"]), status, None, margin, lower)


def as_text(found: Mapping[str, Any]) -> str:
    """The fractions, one per line."""
    shown = ("clean", "attacked", "verified_ibp", "verified_crown", "verified_alpha", "verified", "unknown", "errors")
    lines = [f"{name:15} {found[name]:8.2%}" for name in shown]
    return "\n".join([f"{'images':15} {found['n']:8}", *lines, f"{'seconds':15} {found['wall_s']:8.1f}"])
