"""A million sub-problems of one property: how fast the last ones are against the first, and how much memory they take.

    python benchmarks/stress.py [--by neurons|inputs] [--nodes 1000000] [--memory 4GB]

A random network and a limit on its output that lies below all that sampling finds, but above what can be proven with so
many sub-problems. Prints a line for each twentieth: sub-problems per second of the process's own time, which other
work on the machine does not change, sub-problems that are open, and the process's memory. The last line compares the
last tenth with the first after the start (the first twentieth).
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from surebound.graph.torch_export import trace
from surebound.machine import keep_memory, parse_size, peak_memory, use_threads
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.run import VerifyConfig
from surebound.search.verify import Progress, verify

PARTS = 20
SIZES = {"neurons": (20, 32, 0.2), "inputs": (6, 48, 0.004)}
"""Inputs, neurons of each of both layers, and how far the limit is below the samples' least value, in parts of their
spread.
"""


class Enough(Exception):
    """All sub-problems that were asked for are bounded."""


def hard(inputs: int, neurons: int, gap: float) -> tuple[nn.Module, Property]:
    """A network with a property that sampling does not refute and that is far from proven."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(inputs, neurons), nn.ReLU(), nn.Linear(neurons, neurons), nn.ReLU(), nn.Linear(neurons, 1)
    ).eval()
    low, high = torch.full((1, inputs), -1.0), torch.full((1, inputs), 1.0)
    with torch.no_grad():
        values = net(torch.rand(200_000, inputs) * 2 - 1)
    least, spread = float(values.min()), float(values.max() - values.min())
    limit = torch.tensor([least - gap * spread], dtype=torch.float64)
    disjunct = Disjunct(torch.ones(1, 1, dtype=torch.float64), limit, ("Y_0",))
    return net, Property((Case(Box(low.double(), high.double()), (disjunct,)),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", choices=SIZES, default="neurons")
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_memory()
    use_threads(args.threads)
    net, prop = hard(*SIZES[args.by])
    graph = trace(net, torch.zeros(1, SIZES[args.by][0]))
    rates: list[float] = []
    mark = [0, time.process_time()]

    def progress(now: Progress) -> None:
        if now.nodes - mark[0] < args.nodes // PARTS:
            return
        clock = time.process_time()
        rates.append((now.nodes - mark[0]) / (clock - mark[1]))
        mark[:] = [now.nodes, clock]
        memory = peak_memory(torch.device("cpu")) / 1e9
        print(
            f"{now.nodes:>9,} sub-problems, {now.open:>9,} open, {rates[-1]:>7,.0f} per second, {memory:.2f} GB",
            flush=True,
        )
        if now.nodes >= args.nodes:
            raise Enough

    config = VerifyConfig(timeout=1e7, attack="none", memory=parse_size(args.memory))
    try:
        (outcome,) = verify(graph, [prop], config, progress)
        print(f"ended before: {outcome.verdict.name}, {outcome.nodes:,} sub-problems; {outcome.verdict.reason}")
    except Enough:
        last, first = sum(rates[-2:]) / 2, sum(rates[1:3]) / 2
        print(f"last tenth against the second and third twentieth: {last / first:.2f}")


if __name__ == "__main__":
    main()
