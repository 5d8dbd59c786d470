"""Our bounds against reference bounds, row by row: `python benchmarks/reference.py [NAME ...] [--only METHOD ...]`.

Reads NAME.onnx and NAME.npz (images, boxes, labels, margins' lower bounds by another tool under the methods'
names) from SUREBOUND_REFERENCE. Prints the share of rows that reach `reference - 1e-4 max(1, |reference|)`,
and the means over all rows.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from peer_bounds import margins

from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.query import Method, Query
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.regions import Box

SLACK = 1e-4
METHODS: dict[str, Method] = {
    "IBP": Ibp(),
    "CROWN-IBP": Crown("ibp"),
    "CROWN": Crown(),
    "alpha20_fixinterm": AlphaCrown(20, "crown"),
    "alpha20": AlphaCrown(20, "optimised"),
}


def compare(folder: Path, name: str, method: str) -> tuple[float, float, float, float]:
    """(share of rows reached, our mean, reference mean, seconds)."""
    graph, data = prepare(load_onnx(folder / f"{name}.onnx")), np.load(folder / f"{name}.npz")
    count = len(data["y"])
    box = Box(*(torch.from_numpy(data[key]).reshape(count, *graph.input.shape) for key in ("xl", "xu")))
    spec = margins(data["y"], graph.output.numel).reshape(count, -1, *graph.output.shape)
    params = {key: value.detach() for key, value in graph.values(torch.float32).items()}
    began = time.perf_counter()
    ours = METHODS[method].bound(Query(graph, params, {graph.input.name: box}, spec)).lower.detach().numpy()
    seconds = time.perf_counter() - began
    theirs = data[method]
    reached = ours >= theirs - SLACK * np.maximum(1, np.abs(theirs))
    return float(reached.mean()), float(ours.mean()), float(theirs.mean()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--only", choices=METHODS, nargs="+", default=METHODS)
    args = parser.parse_args()
    if "SUREBOUND_REFERENCE" not in os.environ:
        parser.error("set SUREBOUND_REFERENCE to a folder of NAME.onnx and NAME.npz")
    folder = Path(os.environ["SUREBOUND_REFERENCE"])
    names = args.networks or sorted(path.stem for path in folder.glob("*.npz"))
    print(f"{'network':22} {'method':18} {'rows reached':>12} {'mean':>14} {'reference':>14} {'seconds':>8}")
    for name in names:
        for method in args.only:
            share, ours, theirs, seconds = compare(folder, name, method)
            print(f"{name:22} {method:18} {share:12.1%} {ours:14.5f} {theirs:14.5f} {seconds:8.3f}", flush=True)


if __name__ == "__main__":
    main()
