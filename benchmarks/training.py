"""Time and memory of a training step, as multiples of plain ones in the same run.

    python benchmarks/training.py --batch 32 --width 64 --threads 2 --repeats 5

CNN-7 with batch norm on CIFAR shapes, random images, eps 1/255, Adam. Each line is measured in a process of its own:
a first step, whose rise of the memory peak is reported, then `repeats` more, whose median time is.
`x torch`: over a plain step as torch comes (loss, gradient, optimiser; its own layout and allocator), the base of
published ratios; `x plain`: over `surebound train`'s, which keeps channels last and the memory it frees.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from surebound.machine import keep_memory
from surebound.nets.cnn import cnn7
from surebound.training.loop import Group, Run, optimiser_of
from surebound.training.objectives import OBJECTIVES
from surebound.training.objectives.adversarial import Pgd
from surebound.training.scene import Scene
from surebound.training.trainee import Trainee

EPS = 1 / 255
CASES: dict[str, tuple[Any, int]] = {
    "torch": (None, 10),
    "plain": (OBJECTIVES["standard"](), 10),
    "ibp": (OBJECTIVES["ibp"](), 10),
    "ibp + fusion": (OBJECTIVES["crown-ibp"](beta=(0.0, 0.0), fusion=True), 10),
    "crown-ibp": (OBJECTIVES["crown-ibp"](beta=(0.5, 0.5)), 10),
    "crown-ibp + fusion": (OBJECTIVES["crown-ibp"](beta=(0.5, 0.5), fusion=True), 10),
    "mtl-ibp, 1 step": (OBJECTIVES["mtl-ibp"](attack=Pgd(1, 10.0)), 10),
    "plain, 1,000 classes": (OBJECTIVES["standard"](), 1000),
    "crown-ibp + fusion, 1,000 classes": (OBJECTIVES["crown-ibp"](beta=(0.5, 0.5), fusion=True), 1000),
}
BASES = ("torch", "plain")


def memory(line: str) -> float:
    """A line of the process's status in MB."""
    (found,) = [words for words in Path("/proc/self/status").read_text().splitlines() if words.startswith(line)]
    return float(found.split()[1]) / 1024


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds per step, and MB that the first step added to the peak."""
    torch.set_num_threads(args.threads)
    objective, classes = CASES[name]
    if objective is not None:
        keep_memory()
    layout = torch.contiguous_format if objective is None else torch.channels_last
    network = cnn7(width=args.width, classes=classes).train().to(memory_format=layout)
    random = torch.Generator().manual_seed(0)
    images = torch.rand(args.batch, 3, 32, 32, generator=random).contiguous(memory_format=layout)
    labels = torch.randint(classes, (args.batch,), generator=random)
    trainee = Trainee(network, images)
    if name.partition(",")[0] not in BASES:
        _ = trainee.plan
    optimiser = optimiser_of([Group(list(network.parameters()), 5e-4)], Run(1, optimiser="adam"))

    def step() -> float:
        began = time.perf_counter()
        if objective is None:
            loss = F.cross_entropy(network(images), labels)
        else:
            loss = objective(Scene(trainee, images, labels, EPS, 2 * EPS, torch.Generator().manual_seed(0)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return time.perf_counter() - began

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of tracing
    before = memory("VmRSS")
    step()
    grown = memory("VmHWM") - before
    return {"s": statistics.median(step() for _ in range(args.repeats)), "mb": grown}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--worker")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args)))
        return 0
    print(f"batch {args.batch}, width {args.width}, {args.threads} threads, load {os.getloadavg()[0]:.2f}")
    print(f"{'step':36} {'s':>8} {'x torch':>8} {'x plain':>8} {'MB':>8}")
    base: dict[str, float] = {}
    for name in args.only:
        numbers = [f"--{key}={getattr(args, key)}" for key in ("batch", "width", "threads", "repeats")]
        command = [sys.executable, __file__, *numbers, "--worker", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if name.partition(",")[0] in BASES:
            base[name.partition(",")[0]] = found["s"]
        ratios = "".join(f" {found['s'] / base[of]:8.2f}" if of in base else f" {'-':>8}" for of in BASES)
        print(f"{name:36} {found['s']:8.3f}{ratios} {found['mb']:8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
