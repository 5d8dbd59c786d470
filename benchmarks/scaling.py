"""How CROWN's time and memory grow with width, depth and rows, with a plot and the exponents.

    python benchmarks/scaling.py OUT [--threads 2] [--repeats 5]

Convolutional networks (3 x 3 kernels, every second one with stride 2 up to three times, then two linear layers)
with random weights, one 3 x 32 x 32 image in a box of radius 1/255. Each point is measured in a fresh process:
the median time of a bound after one that is not counted, and the growth of the process's memory peak in that
first one. OUT gets scaling.csv and scaling.png. An exponent is the slope of log time over log size between the
two largest sizes; the cost of a walk from every neuron to the input is quadratic in width at best, in depth too.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.regions import Box

SERIES = {
    "width (channels)": [(channels, 4, 9) for channels in (8, 16, 32)],
    "depth (convolutions)": [(8, layers, 9) for layers in (2, 4, 6, 8, 10, 12)],
    "rows": [(8, 4, rows) for rows in (1, 10, 100, 1000)],
}
"""(channels, convolutions, spec rows) of each series."""


def network(channels: int, layers: int, outputs: int) -> nn.Sequential:
    """The network of a point."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    have, size = 3, 32
    for layer in range(layers):
        stride = 2 if layer % 2 == 0 and size > 4 else 1
        parts += [nn.Conv2d(have, channels, 3, stride, 1), nn.ReLU()]
        have, size = channels, size // stride
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(have * size * size, 64), nn.ReLU(), nn.Linear(64, outputs))


def point(channels: int, layers: int, rows: int, repeats: int, threads: int) -> dict[str, float]:
    """Time and memory of one bound."""
    torch.set_num_threads(threads)
    x = torch.rand(1, 3, 32, 32)
    graph = prepare(trace(network(channels, layers, max(rows, 2)).eval(), x))
    params = {name: value.detach() for name, value in graph.values(torch.float32).items()}
    box = Box((x - 1 / 255).clamp(min=0), (x + 1 / 255).clamp(max=1))
    query = Query(graph, params, {graph.input.name: box}, torch.eye(max(rows, 2))[:rows].unsqueeze(0))
    times = []
    with torch.no_grad():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = Crown().bound(query)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        for _ in range(repeats):
            began = time.perf_counter()
            Crown().bound(query)
            times.append(time.perf_counter() - began)
    unstable = int(found.stats.unstable.sum())
    return {"ms": 1e3 * statistics.median(times), "mb": grown, "neurons": found.stats.neurons, "unstable": unstable}


def in_a_fresh_process(size: tuple[int, int, int], repeats: int, threads: int) -> dict[str, float]:
    """`point` where nothing has been allocated yet."""
    argument = json.dumps([*size, repeats, threads])
    done = subprocess.run([sys.executable, __file__, "--point", argument], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    """Time and memory over size, one panel per series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for at, name in enumerate(SERIES):
        axes = figure.add_subplot(1, len(SERIES), at + 1)
        mine = [row for row in rows if row["series"] == name]
        axes.loglog([row["size"] for row in mine], [row["ms"] for row in mine], "o-", label="time, ms")
        axes.loglog([row["size"] for row in mine], [row["mb"] for row in mine], "s--", label="memory, MB")
        axes.set_xlabel(name)
        axes.legend()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point is not None:
        print(json.dumps(point(*json.loads(args.point))))
        return 0
    if args.out is None:
        parser.error("name a folder for scaling.csv and scaling.png")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    print(f"{'series':22} {'size':>5} {'neurons':>8} {'unstable':>8} {'ms':>9} {'MB':>7} {'exponent':>9}")
    for at, (name, sizes) in enumerate(SERIES.items()):
        for size in sizes:
            found = in_a_fresh_process(size, args.repeats, args.threads)
            before = rows[-1] if rows and rows[-1]["series"] == name else None
            rows.append({"series": name, "size": size[at], **found})
            slope = ""
            if before is not None:
                slope = (
                    f"{math.log(found['ms'] / float(before['ms'])) / math.log(size[at] / float(before['size'])):.2f}"
                )
            print(
                f"{name:22} {size[at]:5} {found['neurons']:8.0f} {found['unstable']:8.0f} "
                f"{found['ms']:9.1f} {found['mb']:7.0f} {slope:>9}",
                flush=True,
            )
    with open(args.out / "scaling.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, args.out / "scaling.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
