"""Our bounds against reference bounds, row by row: `python benchmarks/reference.py [NAME ...]`.

Reads NAME.onnx and NAME.npz (images, boxes, labels, margins' lower bounds by another tool) from
SUREBOUND_REFERENCE. Prints the share of rows that reach `reference - 1e-4 max(1, |reference|)`, and means.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from surebound.bounds.crown import Crown
from surebound.bounds.query import Query
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.regions import Box

SLACK = 1e-4


def margins(classes: int, label: int) -> torch.Tensor:
    """Rows e_label - e_k for every other class k in ascending order, [1, classes - 1, classes]."""
    rows = torch.eye(classes)[label] - torch.eye(classes)
    return rows[torch.arange(classes) != label].unsqueeze(0)


def compare(folder: Path, name: str) -> tuple[float, float, float, float]:
    """(share of rows reached, our mean, reference mean, seconds per image)."""
    graph, data = prepare(load_onnx(folder / f"{name}.onnx")), np.load(folder / f"{name}.npz")
    params = graph.values(torch.float32)
    found, began = [], time.perf_counter()
    for low, high, label in zip(data["xl"], data["xu"], data["y"], strict=True):
        box = Box(*(torch.tensor(limit).reshape(1, *graph.input.shape) for limit in (low, high)))
        spec = margins(graph.output.numel, int(label)).reshape(1, -1, *graph.output.shape)
        with torch.no_grad():
            found.append(Crown().bound(Query(graph, params, {graph.input.name: box}, spec)).lower[0].numpy())
    seconds = (time.perf_counter() - began) / len(found)
    ours, theirs = np.stack(found), data["CROWN"]
    reached = ours >= theirs - SLACK * np.maximum(1, np.abs(theirs))
    return float(reached.mean()), float(ours.mean()), float(theirs.mean()), seconds


def main() -> int:
    if "SUREBOUND_REFERENCE" not in os.environ:
        print("set SUREBOUND_REFERENCE to a folder of NAME.onnx and NAME.npz", file=sys.stderr)
        return 2
    folder = Path(os.environ["SUREBOUND_REFERENCE"])
    names = sys.argv[1:] or sorted(path.stem for path in folder.glob("*.npz"))
    print(f"{'network':22} {'rows reached':>12} {'mean':>14} {'reference':>14} {'s/image':>8}")
    for name in names:
        share, ours, theirs, seconds = compare(folder, name)
        print(f"{name:22} {share:12.1%} {ours:14.5f} {theirs:14.5f} {seconds:8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
