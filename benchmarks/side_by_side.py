"""The search beside alpha-beta-CROWN's on the same images: verdicts, seconds and sub-problems.

    python benchmarks/side_by_side.py [NETWORK ...] [--threads 2] [--timeout 60] [--log runs.jsonl] [--processor-time]

What the peer did is in `peer_search.csv` (alpha-beta-CROWN of December 2025 on two cores without a GPU, 60 s, in its
default and in a tuned configuration with fewer attack and alpha steps; its start is not counted; an empty cell was not
run). Images, labels and the subsets' indices are read from SUREBOUND_DATA, networks from SUREBOUND_REFERENCE.
One image at a time. With --log each image is appended as a JSON line, and images already there are not run again.
With --processor-time seconds are the process's own instead of the clock's, also those of the timeout: what a machine
that does other work still tells, with one thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.data.readers import load_part
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.machine import keep_memory, use_threads
from surebound.properties import Case, Disjunct, Property, robust
from surebound.regions import Box
from surebound.search.run import VerifyConfig
from surebound.search.verify import verify

CLASSES, IMAGES = 10, 20
PEER = Path(__file__).parent / "peer_search.csv"
Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """Images of a data set and their radius; without a radius the published way of choosing radii and targets is used:
    the class that scores second, at the largest radius that CROWN proves, times 1.06, 1.10, 1.14 and 1.18 in turn.
    """

    data: str
    subset: str
    eps: float | None


SUITES = {
    "cifar_cnn_a_mix": Suite("cifar10", "sdp/cifar", 2 / 255),
    "cifar_cnn_a_adv": Suite("cifar10", "sdp/cifar", 2 / 255),
    "mnist_cnn_a_adv": Suite("mnist", "sdp/mnist", 0.3),
    "oval_base": Suite("cifar10", "sdp/cifar", None),
    "mnist_6_100": Suite("mnist", "eran/mnist_eran", 0.026),
    "resnet2b": Suite("cifar10", "sdp/cifar", 2 / 255),
}


def images(suite: Suite) -> tuple[Tensor, Tensor]:
    """Pixels and labels of the subset, in its order."""
    indices = json.loads((Path(os.environ["SUREBOUND_DATA"]) / "subset_indices.json").read_text())[suite.subset]
    part = load_part(suite.data, indices=indices)
    return part.images, part.labels


def against(x: Tensor, label: int, other: int, eps: float) -> Property:
    """Counterexamples within `eps` score `other` at least as high as the label."""
    centre = x.double().unsqueeze(0)
    rows = torch.eye(CLASSES, dtype=torch.float64)[[label]] - torch.eye(CLASSES, dtype=torch.float64)[[other]]
    box = Box((centre - eps).clamp(0, 1), (centre + eps).clamp(0, 1))
    return Property((Case(box, (Disjunct(rows, torch.zeros(1, dtype=torch.float64), (f"Y_{other} >= Y_{label}",)),)),))


def provable(graph: Graph, x: Tensor, label: int, other: int) -> float:
    """The largest radius, to 1 in 10,000, at which CROWN's margin is positive."""
    ready = prepare(graph)
    low, high = 0.0, 0.1
    while high - low > 1e-4 * high:
        eps = (low + high) / 2
        case = against(x, label, other, eps).cases[0]
        query = Query(ready, ready.values(torch.float64), {ready.input.name: case.region}, case.disjuncts[0].C[None])
        low, high = (eps, high) if float(Crown().bound(query).lower) > 0 else (low, eps)
    return low


def properties(name: str, graph: Graph) -> Iterator[tuple[int, Property]]:
    """The first images' numbers and properties."""
    suite = SUITES[name]
    pixels, labels = images(suite)
    asked = 0
    for number in range(len(labels)):
        if asked == IMAGES:
            return
        x, label = pixels[number].reshape(graph.input.shape), int(labels[number])
        if suite.eps is not None:
            yield asked, robust(x, label, suite.eps, CLASSES)
        else:
            assert graph.original is not None
            scores = graph.original(x.unsqueeze(0)).flatten()
            if int(scores.argmax()) != label:
                continue
            other = int(scores.index_fill(0, torch.tensor([label]), -torch.inf).argmax())
            eps = provable(graph, x, label, other) * (1.06, 1.10, 1.14, 1.18)[asked % 4]
            yield asked, against(x, label, other, eps)
        asked += 1


def measured(name: str, timeout: float, log: Path | None) -> list[Row]:
    """A row for each image, those of the log first."""
    known = [json.loads(line) for line in log.read_text().splitlines()] if log is not None and log.exists() else []
    rows = [row for row in known if row["network"] == name]
    graph = load_onnx(Path(os.environ["SUREBOUND_REFERENCE"]) / f"{name}.onnx")
    for number, prop in properties(name, graph):
        if any(row["image"] == number for row in rows):
            continue
        began = time.monotonic()
        (outcome,) = verify(graph, [prop], VerifyConfig(timeout=timeout))
        row = {"network": name, "image": number, "verdict": outcome.verdict.name, "s": time.monotonic() - began}
        row |= {"nodes": outcome.nodes, "search_s": outcome.seconds.get("search", 0.0)}
        rows.append(row)
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return rows


def decided(verdict: str) -> bool:
    """By either tool's words."""
    return verdict in ("unsat", "sat") or verdict.startswith(("safe", "unsafe"))


def mean_ratio(ratios: list[float]) -> str:
    """The geometric mean of some ratios, and how many there are."""
    return f"{math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f} ({len(ratios)})" if ratios else "-"


def report(name: str, rows: list[Row], peer: dict[int, Row]) -> None:
    """A table of the images that the peer has a row for, and what they amount to."""
    print(f"\n## {name}\n\n| image | verdict | s | sub-problems | peer | s | sub-problems | tuned | s | sub-problems |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    ours = {row["image"]: row for row in rows}
    for number, theirs in peer.items():
        mine = ours[number]
        cells = [theirs[f"{kind}{column}"] for kind in ("default", "tuned") for column in ("", "_s", "_visited")]
        print(f"| {number} | {mine['verdict']} | {mine['s']:.2f} | {mine['nodes']:,} | {' | '.join(cells)} |")
    rest = [row for row in rows if row["image"] not in peer]
    print(f"\n{len(rest)} images are not in the peer's table: {sum(r['verdict'] == 'sat' for r in rest)} sat")
    for kind in ("default", "tuned"):
        pairs = [(ours[n], row) for n, row in peer.items() if row[kind] not in ("", "NOT_FINISHED")]
        both = [(m, t) for m, t in pairs if decided(m["verdict"]) and decided(t[kind])]
        long = [(m, t) for m, t in both if float(t[f"{kind}_visited"] or 0) > 100 and m["nodes"] > 100]
        times = mean_ratio([m["s"] / float(t[f"{kind}_s"]) for m, t in both])
        nodes = mean_ratio([m["nodes"] / float(t[f"{kind}_visited"]) for m, t in long])
        rate = mean_ratio(
            [m["nodes"] / m["search_s"] / (float(t[f"{kind}_visited"]) / float(t[f"{kind}_search_s"])) for m, t in long]
        )
        print(
            f"{kind}: decided {sum(decided(m['verdict']) for m, _ in pairs)} against "
            f"{sum(decided(t[kind]) for _, t in pairs)} of {len(pairs)}; seconds {times} times the peer's; where both "
            f"bounded over 100: sub-problems {nodes}, a second {rate}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(SUITES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    if args.processor_time:
        time.monotonic = time.process_time
    if not {"SUREBOUND_DATA", "SUREBOUND_REFERENCE"} <= set(os.environ):
        parser.error("set SUREBOUND_DATA and SUREBOUND_REFERENCE")
    keep_memory()
    use_threads(args.threads)
    with PEER.open() as file:
        peer = list(csv.DictReader(file))
    for name in args.networks or SUITES:
        theirs = {int(row["image"]): row for row in peer if row["network"] == name}
        report(name, measured(name, args.timeout, args.log), theirs)


if __name__ == "__main__":
    main()
