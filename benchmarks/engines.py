"""The search's engines against each other: sub-problems to the proof, per second, and time, by family of instances.

    python benchmarks/engines.py --timeout 20 --log engines.jsonl

Reads the instances named below from the folders in SUREBOUND_BENCH. Each engine is forced from the roots on; there
are no attacks. Seconds are processor seconds of one thread, as is the timeout. Runs already in the log are not
repeated. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from surebound.graph.onnx_import import load_onnx
from surebound.machine import keep_memory, use_threads
from surebound.search.run import VerifyConfig
from surebound.search.verify import verify
from surebound.vnnlib import load_vnnlib

MANY = 1 << 40

NEURONS = {"stages.FEW_DIMENSIONS": -1}
KEPT = {**NEURONS, "stages.REFRESH": 0}
REFRESHED = {**NEURONS, "stages.REFRESH": MANY, "stages.CLIPPED": 0}
WALK, SMALL = {"stages.MEDIUM": MANY}, {"stages.MEDIUM": 0, "collapse.CHEAPER": 1e9}
INPUTS = {"stages.FEW_DIMENSIONS": MANY}

ENGINES: Mapping[str, Mapping[str, float]] = {
    "as chosen": {},
    "neurons, boxes kept": {**KEPT, **WALK},
    "neurons, boxes kept, collapsed": {**KEPT, **SMALL},
    "neurons, boxes refreshed": {**REFRESHED, **WALK},
    "neurons, boxes refreshed, collapsed": {**REFRESHED, **SMALL},
    "neurons, boxes refreshed, inputs clipped": {**NEURONS, "stages.REFRESH": MANY, "stages.CLIPPED": MANY},
    "inputs": {**INPUTS, "collapse.CHEAPER": 0.0},
    "inputs, collapsed": {**INPUTS, "collapse.CHEAPER": 1e9},
}

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "acasxu": ("ACASXU_run2a_1_1_batch_2000 prop_3", "ACASXU_run2a_3_3_batch_2000 prop_9"),
    "safenlp": ("ruarobot perturbations_0 hyperrectangle_1889", "ruarobot perturbations_0 hyperrectangle_11.vnn"),
    "reach_prob_density": ("robot robot_8", "vdp vdp_0"),
    "mnist_fc": ("mnist-net_256x2 prop_6_0.03", "mnist-net_256x4 prop_3_0.05"),
    "oval21": ("cifar_base_kw img4763", "cifar_deep_kw img4325"),
    "cifar10_resnet": ("resnet_2b prop_27_eps_0.008", "resnet_2b prop_36_eps_0.008"),
    "eran": ("mnist_relu_9_200 idx_6998", "ffnnSIGMOID__Point_6x200 idx_7167"),
    "dist_shift": ("mnist_concat index2890", "mnist_concat index9458"),
}


def find(folder: Path, words: str) -> tuple[Path, Path]:
    """The network and the property of the one instance whose paths have all the words."""
    lines = [line.split(",") for line in (folder / "instances.csv").read_text().split()]
    found = {(onnx, spec) for onnx, spec, _ in lines if all(word in f"{onnx} {spec}" for word in words.split())}
    if len(found) != 1:
        raise SystemExit(f"{folder.name}: '{words}' names {len(found)} instances, not one")
    ((onnx, spec),) = found
    return folder / onnx, folder / spec


def run(network: Path, spec: Path, engine: str, timeout: float) -> dict[str, Any]:
    """One search by one engine."""
    graph = load_onnx(network)
    prop = load_vnnlib(spec, graph.input.shape)
    patches = [patch(f"surebound.search.{name}", value) for name, value in ENGINES[engine].items()]
    began = time.process_time()
    for one in patches:
        one.start()
    try:
        (found,) = verify(graph, [prop], VerifyConfig(timeout=timeout, attack="none"))
    finally:
        for one in patches:
            one.stop()
    seconds = {"all": time.process_time() - began, "search": found.seconds["search"]}
    return {"verdict": found.verdict.name, "nodes": found.nodes, "used": found.engine, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    if "SUREBOUND_BENCH" not in os.environ:
        parser.error("set SUREBOUND_BENCH to a folder laid out as NAME/instances.csv")
    time.monotonic = time.process_time
    keep_memory()
    use_threads(1)
    known = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    done = {(row["family"], row["instance"], row["engine"]): row for row in known}
    print(f"| instance | {' | '.join(ENGINES)} |\n|{'---|' * (len(ENGINES) + 1)}")
    for family, instances in FAMILIES.items():
        for instance in instances:
            network, spec = find(Path(os.environ["SUREBOUND_BENCH"]) / family, instance)
            for engine in ENGINES:
                key = (family, instance, engine)
                if key not in done:
                    found = run(network, spec, engine, args.timeout)
                    done[key] = {"family": family, "instance": instance, "engine": engine, **found}
                    with open(args.log, "a") as file:
                        file.write(json.dumps(done[key]) + "\n")
            cells = (cell(done[(family, instance, engine)]) for engine in ENGINES)
            print(f"| {family} {spec.name.split('.vnnlib')[0]} | {' | '.join(cells)} |", flush=True)


def cell(row: Mapping[str, Any]) -> str:
    """Sub-problems and seconds to the proof, and sub-problems per second of searching; in brackets without a proof."""
    rate = row["nodes"] / row["seconds"]["search"] if row["seconds"]["search"] > 0 else 0.0
    text = f"{row['nodes']:,}, {row['seconds']['all']:.1f} s, {rate:,.0f}/s"
    return text if row["verdict"] == "unsat" else f"({text})"


if __name__ == "__main__":
    main()
