"""Runs of one study, trained and verified side by side; each is continued where it stopped.

    python recipes/study.py recipes/mnist-0.1.toml --out studies --data-dir data --jobs 2

A study names runs: a published recipe, what is changed of it, and seeds. Every run is `surebound train` into
OUT/STUDY/RUN-SEED and `surebound evaluate` into its folder `verified`, with one thread each. It may name sparse
networks besides: `surebound prune` or `graft` of runs it lists under `of`, into OUT/STUDY/RUN-NAME-SEED, and which
network there is evaluated (`network`, such as "round-01"); how stable these are is read from their curves. Results go
to a CSV file beside the study (`--table FILE` for another place) as they come; runs that have a row there are not run
again. At the end a table with the mean and the standard deviation over seeds is printed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from surebound.rowfile import complete_rows, replace_file, table
from surebound.training.recipe import read_toml

SUMMARISED = ("attacked", "verified_ibp", "verified_crown", "verified", "unknown")
MEASURED = ("clean", "pgd", *SUMMARISED)
STABLE = ("unstable", "crown", "instability")
"""Columns of a curve: parts of the neurons that interval bounds and CROWN leave unstable, mean -lu."""
NAMES = ("run", "recipe", "seed")
SPENT = ("train_cpu_s", "verify_cpu_s")
COLUMNS = (*NAMES, *MEASURED, "seconds", *STABLE, *SPENT)
KEYS = {"recipe", "seeds", "set", "evaluate"}
SPARSE = {"command", "of", "network", "set", "evaluate"}
"""What a run may say; a dot in its name needs quotes, or TOML makes a table of what follows."""
COMMAND = (sys.executable, "-m", "surebound")


@dataclass(frozen=True)
class Trial:
    """One run with one seed. settings: KEY=VALUE as the command takes them; evaluate: arguments of evaluate. recipe:
    what is trained, or the command that makes a sparse network of the run `of`, the one in its folder `network`.
    """

    run: str
    recipe: str
    seed: int
    settings: tuple[str, ...]
    evaluate: Mapping[str, Any]
    of: str = ""
    network: str = "."

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.run}-{self.seed}"


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Nested tables as KEY=VALUE; JSON's plain values are TOML's, too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}={json.dumps(value)}"


def trials(study: Mapping[str, Any]) -> list[Trial]:
    """What a study asks for, seed by seed, so that a first result of every run comes early."""
    runs = study["runs"].items()
    for name, run in runs:
        if not {"recipe", "seeds"} <= set(run) <= KEYS:
            raise SystemExit(f"run '{name}' has the keys {', '.join(run)}; there are {', '.join(sorted(KEYS))}")
    most = max(len(run["seeds"]) for _, run in runs)
    shared = tuple(flat(study.get("set", {})))
    trained = [
        Trial(
            name, run["recipe"], run["seeds"][turn], (*shared, *flat(run.get("set", {}))),
            {**study["evaluate"], **run.get("evaluate", {})},
        )
        for turn in range(most)
        for name, run in runs
        if turn < len(run["seeds"])
    ]  # fmt: skip
    return trained + [sparse for dense in trained for sparse in made_of(dense, study)]


def made_of(dense: Trial, study: Mapping[str, Any]) -> Iterator[Trial]:
    """The sparse networks that a study wants of a run."""
    for name, sparse in study.get("sparse", {}).items():
        if not {"command", "of", "network"} <= set(sparse) <= SPARSE:
            raise SystemExit(f"'{name}' has the keys {', '.join(sparse)}; there are {', '.join(sorted(SPARSE))}")
        if dense.run in sparse["of"]:
            settings = tuple(flat(study.get("sparse-set", {}))) + tuple(flat(sparse.get("set", {})))
            evaluate = {**dense.evaluate, **sparse.get("evaluate", {})}
            of = f"{dense.run}-{name}"
            yield Trial(of, sparse["command"], dense.seed, settings, evaluate, dense.name, sparse["network"])


def spent(command: list[str], log: Path) -> float:
    """Run a command, its output to `log`; CPU seconds. Ends the program where the command fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}, see {log}")
    return used.ru_utime + used.ru_stime


def timed(trial: Trial, stage: str, out: Path, *arguments: str) -> None:
    """Run a command for a trial and note its CPU time beside the trial's folder."""
    times = times_of(trial, out)
    times[stage] += spent([*COMMAND, *arguments, "--threads", "1", "--quiet"], out / f"{trial.name}.log")
    replace_file(out / f"{trial.name}.seconds", json.dumps(times).encode())


def times_of(trial: Trial, out: Path) -> dict[str, float]:
    """CPU seconds of a trial so far, by stage."""
    clock = out / f"{trial.name}.seconds"
    return json.loads(clock.read_text()) if clock.exists() else {"train": 0.0, "verify": 0.0}


def made(trial: Trial, out: Path, data_dir: list[str]) -> Path:
    """The folder of a trial's network, which is made if it is not there."""
    folder = out / trial.name
    if not (folder / "summary.json").exists():
        own = (*trial.settings, *([] if trial.of else [f"seed={trial.seed}"]))
        settings = [word for setting in own for word in ("--set", setting)]
        what = [trial.recipe, str(out / trial.of)] if trial.of else ["train", "--recipe", trial.recipe]
        timed(trial, "train", out, *what, *settings, "--out", str(folder), *data_dir)
    return folder


def carry_out(trial: Trial, out: Path, data_dir: list[str]) -> dict[str, Any]:
    """The row of a trial, from what is there or by doing what is missing."""
    folder = made(trial, out, data_dir)
    if not (folder / "verified" / "summary.json").exists():
        told = [word for key, value in trial.evaluate.items() for word in (f"--{key}", str(value))]
        network, verified = str(folder / trial.network), str(folder / "verified")
        timed(trial, "verify", out, "evaluate", network, *told, "--out", verified, *data_dir)
    row = {"run": trial.run, "recipe": trial.recipe, "seed": trial.seed, **measured(folder / "verified")}
    row |= stability(folder / "curve.csv", trial.network) if trial.of else dict.fromkeys(STABLE, "")
    print(f"{out.name} {trial.name}: " + ", ".join(f"{name} {row[name]:.1%}" for name in MEASURED), flush=True)
    return row | {f"{stage}_cpu_s": round(seconds) for stage, seconds in times_of(trial, out).items()}


def stability(curve: Path, name: str) -> dict[str, Any]:
    """How stable the network of a name is, by its row in a curve."""
    with curve.open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["name"] == name]
    return {column: float(row[column]) for column in STABLE}


def with_dense(rows: list[dict[str, Any]], wanted: list[Trial], out: Path) -> list[dict[str, Any]]:
    """The rows, those of trained networks with the stability that a curve begun with them tells."""
    curves = {trial.of: out / trial.name / "curve.csv" for trial in wanted if trial.of}
    curves = {name: curve for name, curve in curves.items() if curve.exists()}
    names = [f"{row['run']}-{row['seed']}" for row in rows]
    return [
        row | stability(curves[name], "dense") if name in curves else row for name, row in zip(names, rows, strict=True)
    ]


class Table:
    """The file of results: the rows of trials that are done, in the study's order."""

    def __init__(self, file: Path, wanted: list[Trial], out: Path) -> None:
        self.file, self.wanted, self.out, self.lock = file, wanted, out, Lock()
        self.rows: dict[str, dict[str, Any]] = {}
        for row in complete_rows(file, COLUMNS) if file.exists() else []:
            numbers = {name: float(value) if value else "" for name, value in row.items() if name not in NAMES}
            whole = {name: round(float(row[name])) for name in ("seed", *SPENT)}
            self.rows[f"{row['run']}-{row['seed']}"] = {**row, **numbers, **whole}

    def put(self, trial: Trial, row: dict[str, Any]) -> None:
        """A trial is done; the file is replaced at once."""
        with self.lock:
            self.rows[trial.name] = row
            replace_file(self.file, table(COLUMNS, self.sorted()))

    def sorted(self) -> list[dict[str, Any]]:
        """All rows there are."""
        done = [self.rows[trial.name] for trial in self.wanted if trial.name in self.rows]
        return with_dense(done, self.wanted, self.out)


def measured(folder: Path) -> dict[str, float]:
    """What `surebound evaluate` found; pgd: right, and its gradient attack met no other answer; seconds: charged per
    image that was right.
    """
    found = json.loads((folder / "summary.json").read_text())
    with (folder / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    stood = [row["status"] not in ("wrong", "error") and float(row["attack_margin"]) > 0 for row in rows]
    seconds = [float(row["charged_s"]) for row in rows if row["status"] not in ("wrong", "error")]
    told = {"clean": found["clean"], "pgd": sum(stood) / len(rows)} | {name: found[name] for name in SUMMARISED}
    return told | {"seconds": statistics.mean(seconds) if seconds else 0.0}


def spread(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def summary(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown: a line per run, over its seeds."""
    heads = ("run", "recipe", "seeds", *MEASURED, "s/image", "CPU s")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == name]
        seconds = sum(row["train_cpu_s"] + row["verify_cpu_s"] for row in of_run)
        cells = [name, of_run[0]["recipe"], ", ".join(str(row["seed"]) for row in of_run)]
        cells += [spread([row[measure] for row in of_run]) for measure in MEASURED]
        cells += [f"{statistics.mean(row['seconds'] for row in of_run):.3g}", f"{seconds:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    wanted = trials(read_toml(args.study))
    out = args.out / args.study.stem
    out.mkdir(parents=True, exist_ok=True)
    data_dir = ["--data-dir", str(args.data_dir)] if args.data_dir else []
    results = Table(args.table or args.study.with_suffix(".csv"), wanted, out)
    missing = [trial for trial in wanted if trial.name not in results.rows]
    needed = {trial.name for trial in missing} | {trial.of for trial in missing}

    def work(trial: Trial) -> None:
        if trial.name in results.rows:
            made(trial, out, data_dir)
        else:
            results.put(trial, carry_out(trial, out, data_dir))

    with ThreadPoolExecutor(args.jobs) as pool:
        for sparse in (False, True):  # sparse networks when the runs they are made of are there
            list(pool.map(work, (trial for trial in wanted if bool(trial.of) is sparse and trial.name in needed)))
    print(summary(results.sorted()))


if __name__ == "__main__":
    main()
