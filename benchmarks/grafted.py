"""CNN-7 with 17 million parameters on CIFAR-10 at 2/255: as it is, and with half of its neurons grafted.

    python benchmarks/grafted.py --out work --data-dir data --images 2560 --ratio 0.5 --nodes 500

Trains one epoch on so many images, makes lines of the neurons that GAP and interval bounds name, trains another epoch,
and folds norms. Each network is measured in a process of its own: alpha-CROWN on one test image, and searches of
images, those with the largest margins first, until one has so many sub-problems; seconds, and MB that they added to the
peak of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.memory import Memory
from surebound.bounds.query import Query
from surebound.data.readers import load_dataset
from surebound.fit import Start, data_of, fit
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.graph.torch_export import trace
from surebound.machine import keep_memory, parse_size, peak_memory, reset_peak, resident_peak
from surebound.nets.grafted import GraftedReLU
from surebound.properties import robust
from surebound.runs import load_network
from surebound.search.run import VerifyConfig
from surebound.search.verify import Progress, verify
from surebound.sparsify.basis import Basis
from surebound.sparsify.compress.run import compress
from surebound.sparsify.criteria.instability import Unstable
from surebound.sparsify.criteria.significance import Gap
from surebound.sparsify.graft import graft
from surebound.sparsify.select import select
from surebound.training.recipe import recipe_of

CPU = torch.device("cpu")


def networks(args: argparse.Namespace) -> None:
    """Train both, unless they are there, and write their folded graphs."""
    recipe = recipe_of(
        {
            "data": "cifar10",
            "images": args.images,
            "eps": args.eps,
            "network": {"name": "cnn7", "data": "cifar10"},
            "run": {"epochs": 1, "optimiser": "adam", "rate": 5e-4},
            "measure": {"every": 0, "images": 20},
        }
    )
    if not (args.out / "dense" / "summary.json").exists():
        fit(recipe, args.out / "dense", args.data_dir)
    if not (args.out / "grafted" / "summary.json").exists():
        network = load_network(args.out / "dense")
        part = data_of(recipe, args.data_dir).train.first(100)
        basis = Basis(part, args.eps, batch=20)
        masks = select(Gap()(network, basis), Unstable()(network, basis), args.ratio).masks
        fit(recipe, args.out / "grafted", args.data_dir, start=Start(graft(network, masks)))
    for name in ("dense", "grafted"):
        network = load_network(args.out / name)
        lines = [part.mask for part in network.modules() if isinstance(part, GraftedReLU)]
        count = sum(int(mask.sum()) for mask in lines)
        graph = trace(network, torch.zeros(1, 3, 32, 32))
        folded = compress(graph)
        folded.graph.to_onnx(str(args.out / f"{name}.onnx"))
        last = folded.steps[-1]
        print(f"{name}: {last.parameters:,} parameters, {last.neurons:,} neurons, {count:,} of them lines")


class Enough(Exception):
    """The search has as many sub-problems as it should."""


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What bounding and searching one network takes."""
    keep_memory()
    graph = load_onnx(args.out / f"{name}.onnx")
    test = load_dataset("cifar10", args.data_dir, validation=0.0, seed=0, images=args.images).test.first(100)
    found: dict[str, Any] = {"nodes": 0}
    prepared = prepare(graph)
    margins = [margin(graph, image, int(label)) for image, label in zip(test.images, test.labels, strict=True)]
    right = [i for i in sorted(range(len(test)), key=lambda i: -margins[i]) if margins[i] > 0]
    for turn, i in enumerate(right[: args.tries]):
        image, label = test.images[i], int(test.labels[i])
        prop = robust(image.reshape(graph.input.shape), label, args.eps, 10)
        if turn == 0:
            query = Query(
                prepared,
                prepared.values(torch.float32),
                {prepared.input.name: prop.cases[0].region.to(torch.float32, "cpu")},
                prop.cases[0].disjuncts[0].C.float().reshape(1, -1, *prepared.output.shape),
            )
            reset_peak()
            before, began = resident_peak(), time.perf_counter()
            bounds = AlphaCrown(args.steps, memory=Memory(args.memory)).bound(query)
            found |= {
                "alpha_s": time.perf_counter() - began,
                "alpha_mb": (resident_peak() - before) / 1e6,
                "neurons": bounds.stats.neurons,
                "unstable": int(bounds.stats.unstable.max()),
            }
            del bounds
        reset_peak()
        before, began, reached = resident_peak(), time.perf_counter(), 0

        def enough(now: Progress) -> None:
            nonlocal reached
            reached = now.nodes
            if now.nodes >= args.nodes:
                raise Enough

        config = VerifyConfig(timeout=args.timeout, memory=args.memory)
        try:
            (outcome,) = verify(graph, [prop], config, enough)
            reached, said = outcome.nodes, outcome.verdict.name
        except Enough:
            said = "open"
        if reached >= found["nodes"]:
            found |= {"image": i, "nodes": reached, "said": said, "search_s": time.perf_counter() - began}
            found["search_mb"] = (resident_peak() - before) / 1e6
        if reached >= args.nodes:
            break
    return found | {"peak_mb": peak_memory(CPU) / 1e6}


def margin(graph: Any, image: torch.Tensor, label: int) -> float:
    """By how much the label's answer is above the others."""
    answers = graph.original(image.reshape(1, *graph.input.shape)).flatten()
    return float(answers[label] - answers[torch.arange(len(answers)) != label].max())


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--eps", type=float, default=2 / 255)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=1800.0)
    parser.add_argument("--memory", type=parse_size, default=1 << 30)
    parser.add_argument("--only", nargs="+", default=["dense", "grafted"], choices=["dense", "grafted"])
    parser.add_argument("--worker")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args)))
        return 0
    networks(args)
    for name in args.only:
        found = subprocess.run([sys.executable, *sys.argv, "--worker", name], check=True, stdout=subprocess.PIPE)
        print(name, json.loads(found.stdout), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
