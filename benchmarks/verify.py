"""Verdicts on a folder of instances, against the ones on record.

    python benchmarks/verify.py acasxu safenlp --timeout 60 --attack pgd --every 1 --log runs.jsonl

Reads `instances.csv` and `verdicts.csv` of each named folder below SUREBOUND_BENCH; without names, of all.
Prints one line per folder and every wrong verdict; exits with 1 when there is one. With --log each
instance is appended as a JSON line, and instances already there are not run again. With --processor-time seconds are
the process's own instead of the clock's, also those of the timeout: what a machine that does other work still tells,
with one thread. --within leaves out what the peer on record took longer for or did not decide.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surebound.errors import SureboundError
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.machine import keep_memory, use_threads
from surebound.search.run import VerifyConfig
from surebound.search.verify import verify
from surebound.vnnlib import load_vnnlib


def instances(folder: Path, every: int, within: float | None) -> Iterator[tuple[str, str, float, str]]:
    """(onnx, vnnlib, timeout, recorded verdict) of every n-th instance that the peer decided within some seconds."""
    with open(folder / "verdicts.csv") as file:
        recorded = {(row["onnx"], row["vnnlib"]): row for row in csv.DictReader(file)}
    with open(folder / "instances.csv") as file:
        for number, (onnx, vnnlib, timeout) in enumerate(csv.reader(file)):
            row = recorded[(onnx, vnnlib)]
            decided = row["abcrown_verdict"] in ("sat", "unsat")
            if number % every == 0 and (within is None or (decided and float(row["abcrown_seconds"]) <= within)):
                yield onnx, vnnlib, float(timeout), row["verdict"]


def decide(graph: Graph, spec: Path, config: VerifyConfig) -> dict[str, Any]:
    """What is recorded of one run."""
    (outcome,) = verify(graph, [load_vnnlib(spec)], config)
    return {
        "got": outcome.verdict.name,
        "reason": outcome.verdict.reason,
        "nodes": outcome.nodes,
        "engine": outcome.engine,
        "charged": round(outcome.charged, 3),
        "stages": {stage: round(seconds, 3) for stage, seconds in outcome.seconds.items()},
    }


def run(folder: Path, args: argparse.Namespace, known: dict[tuple[str, str, str], dict[str, Any]]) -> list[dict]:
    """Run a folder's instances; networks are read once for neighbouring instances."""
    rows: list[dict[str, Any]] = []
    loaded: tuple[str, Graph] | None = None
    for onnx, vnnlib, timeout, truth in instances(folder, args.every, args.within):
        key = (folder.name, onnx, vnnlib)
        if args.only and truth != args.only:
            continue
        if key in known:
            rows.append(known[key])
            continue
        began = time.monotonic()
        try:
            if loaded is None or loaded[0] != onnx:
                loaded = (onnx, load_onnx(folder / onnx))
            config = VerifyConfig(timeout=min(timeout, args.timeout), attack=args.attack)
            found = decide(loaded[1], folder / vnnlib, config)
        except SureboundError as error:
            found = {"got": error.verdict, "reason": str(error), "nodes": 0, "stages": {}}
        row = {"folder": folder.name, "onnx": onnx, "vnnlib": vnnlib, "truth": truth, **found}
        rows.append({**row, "seconds": round(time.monotonic() - began, 3)})
        if args.log is not None:
            with open(args.log, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def wrong(row: dict[str, Any]) -> bool:
    """A proof of what is recorded as false, or a witness against what is recorded as true."""
    return (row["truth"], row["got"]) in {("sat", "unsat"), ("unsat", "sat")}


def report(name: str, rows: list[dict[str, Any]]) -> None:
    """One line about a folder, and its wrong verdicts."""
    counts = Counter((row["truth"], row["got"]) for row in rows)
    right = {kind: counts[(kind, kind)] for kind in ("unsat", "sat")}
    total = {kind: sum(n for (truth, _), n in counts.items() if truth == kind) for kind in ("unsat", "sat", "unknown")}
    others = Counter(row["got"] for row in rows if row["got"] not in ("sat", "unsat"))
    seconds = sum(row["seconds"] for row in rows)
    left = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    print(
        f"{name:22} unsat {right['unsat']}/{total['unsat']}  sat {right['sat']}/{total['sat']}  "
        f"open on record {total['unknown']}  not decided: {left or 'none'}  {seconds:.0f} s"
    )
    for row in filter(wrong, rows):
        print(f"  WRONG {row['onnx']} {row['vnnlib']}: {row['got']}, on record {row['truth']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--attack", choices=["pgd", "none"], default="pgd")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", choices=["sat", "unsat", "unknown"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--within", type=float)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    if "SUREBOUND_BENCH" not in os.environ:
        parser.error("set SUREBOUND_BENCH to a folder laid out as NAME/instances.csv + verdicts.csv")
    if args.processor_time:
        time.monotonic = time.process_time
    keep_memory()
    use_threads(args.threads)
    root = Path(os.environ["SUREBOUND_BENCH"])
    names = args.folders or sorted(path.parent.name for path in root.glob("*/instances.csv"))
    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    if args.log is not None and args.log.exists():
        for line in args.log.read_text().splitlines():
            row = json.loads(line)
            known[(row["folder"], row["onnx"], row["vnnlib"])] = row
    failed = False
    for name in names:
        rows = run(root / name, args, known)
        report(name, rows)
        failed |= any(map(wrong, rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
