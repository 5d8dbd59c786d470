"""A table per folder of what `verify.py --log` wrote, beside the times on record.

    python benchmarks/tables.py runs.jsonl --without-attack off.jsonl --conditions "two cores" --out benchmarks/results

Writes NAME.md for each folder in the log and README.md with a line for each of them. Instances are put into classes by
the seconds that the peer took on record (its start included): at most 12, at most 60, more, and not decided by it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]
DECIDED = ("sat", "unsat")
CLASSES = ("at most 12 s", "12 - 60 s", "over 60 s", "not decided")


def read(log: Path) -> dict[str, list[Row]]:
    """The rows of a log by folder."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for line in log.read_text().splitlines():
        row = json.loads(line)
        rows[row["folder"]].append(row)
    return rows


def on_record(folder: Path) -> dict[tuple[str, str], Row]:
    """The rows of `verdicts.csv` by instance."""
    with open(folder / "verdicts.csv") as file:
        return {(row["onnx"], row["vnnlib"]): row for row in csv.DictReader(file)}


def peer_class(record: Row) -> str:
    """Which of CLASSES an instance belongs to."""
    if record["abcrown_verdict"] not in DECIDED:
        return CLASSES[3]
    seconds = float(record["abcrown_seconds"])
    return CLASSES[0] if seconds <= 12 else CLASSES[1] if seconds <= 60 else CLASSES[2]


def ended(row: Row) -> str:
    """Why an instance was not decided: what it says, and where the time went."""
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in row["stages"].items() if seconds >= 0.05)
    return f"{row['reason']} ({spent}; {row['nodes']:,} sub-problems)" if spent else row["reason"]


def table(rows: list[Row], off: dict[tuple[str, str], Row], record: dict[tuple[str, str], Row]) -> list[str]:
    """A folder's instances, a line each, and below it the ones that the peer decided and this did not."""
    lines = [
        "| network | property | on record | verdict | s | sub-problems | without attack | s | alpha-beta-CROWN | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    missed = []
    for row in rows:
        key = (row["onnx"], row["vnnlib"])
        known, other = record[key], off.get(key)
        names = f"{Path(key[0]).stem} | {Path(key[1]).stem}"
        without = f"{other['got']} | {other['seconds']:.1f}" if other else " | "
        lines.append(
            f"| {names} | {row['truth']} | {row['got']} | {row['seconds']:.1f} | {row['nodes']:,} | {without} "
            f"| {known['abcrown_verdict']} | {float(known['abcrown_seconds']):.1f} |"
        )
        if row["got"] not in DECIDED and known["abcrown_verdict"] in DECIDED:
            missed.append(f"- {names.replace(' | ', ', ')} ({peer_class(known)}): {ended(row)}")
    return [*lines, "", "Decided there and not here:", "", *missed] if missed else lines


def summary(name: str, rows: list[Row], others: list[Row]) -> str:
    """A line: by class how many of the instances are decided, how many without attack, and what was wrong."""

    def decided(some: list[Row]) -> str:
        return f"{sum(row['got'] in DECIDED for row in some)} of {len(some)}" if some else ""

    cells = [decided([row for row in rows if row["class"] == kind]) for kind in CLASSES]
    both = [*rows, *others]
    wrong = sum(row["got"] in DECIDED and row["truth"] in DECIDED and row["got"] != row["truth"] for row in both)
    return f"| {name} | {len(rows)} | {' | '.join(cells)} | {decided(others)} | {wrong} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--without-attack", type=Path)
    parser.add_argument("--conditions", default="")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if "SUREBOUND_BENCH" not in os.environ:
        parser.error("set SUREBOUND_BENCH to a folder laid out as NAME/instances.csv + verdicts.csv")
    others = read(args.without_attack) if args.without_attack else {}
    lines = [
        "# Instances of the verification competitions",
        "",
        f"{args.conditions} Classes by the seconds of alpha-beta-CROWN on a GPU machine, its start (6 s) included.",
        "",
        f"| folder | instances | {' | '.join(CLASSES)} | without attack | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = read(args.log)
    for name, rows in sorted(found.items()):
        off = {(row["onnx"], row["vnnlib"]): row for row in others.get(name, [])}
        record = on_record(Path(os.environ["SUREBOUND_BENCH"]) / name)
        for row in rows:
            row["class"] = peer_class(record[(row["onnx"], row["vnnlib"])])
        lines.append(summary(f"[{name}]({name}.md)", rows, list(off.values())))
        text = [f"# {name}", "", args.conditions, "", *table(rows, off, record)]
        (args.out / f"{name}.md").write_text("\n".join(text) + "\n")
    everything = (sum(found.values(), []), sum((others[name] for name in found if name in others), []))
    lines.append(summary("together", *everything))
    (args.out / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
