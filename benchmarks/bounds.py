"""Time, memory and tightness of our bounds, side by side with auto_LiRPA's in one run.

    python benchmarks/bounds.py mnist_6_100 oval_base --batch 1 10 --threads 2 --repeats 5 --only crown kept

Reads NAME.onnx and NAME.npz from SUREBOUND_REFERENCE. PEER_PYTHON names an interpreter that can import
auto_LiRPA (PEER_PATH becomes its PYTHONPATH); without it only our side is measured.
Every line of the table is measured in two fresh processes, one per side, that take turns: a first run, whose
rise of the memory peak is reported, then `n` more, whose median time is. `x` is the peer's over ours.
`floor` is what the arithmetic and the memory traffic of our walks cost at the machine's rates (floor.py).
Methods: ibp; crown; kept (CROWN's boxes, then 20 alpha steps on the margins); optimised (20 steps, all
boxes optimised too); search (20 steps on 256 sub-problems of one image with known boxes, one row each).
With --pruned the peer forgets the alphas of layers whose boxes are kept, as its verifier does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peer_bounds import Case, Trial, margins, serve
from torch import Tensor

from surebound.bounds.alpha import AlphaCrown, optimise
from surebound.bounds.climb import Rates
from surebound.bounds.crown import Crown, Ibp, context, spec_rows
from surebound.bounds.memory import Memory
from surebound.bounds.plan import plan
from surebound.bounds.query import Query
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.ops.record import Interval
from surebound.regions import Box

METHODS = ("ibp", "crown", "kept", "optimised", "search")
STEPS = 20
SEARCHED, IMAGE, SUBPROBLEMS = "cifar_cnn_a_mix", 2, 256
LONG = 8.0
"""Seconds from which on a run is repeated less often."""
PAUSE = 0.02
"""Seconds between runs, in which the other side's threads stop spinning."""
HERE = Path(__file__).resolve().parent


def relaxed_operands(graph: Graph) -> list[str]:
    """Names of the nodes that relaxed steps read, in order."""
    return [step.site.node.inputs[0] for step in plan(graph, (graph.input.name,)).relaxed]


def asked(graph: Graph, case: Case) -> Query:
    """The query of a case."""
    data, count = np.load(case["data"]), case["batch"]
    if case["method"] == "search":
        low, high = (torch.from_numpy(data[key]).expand(count, *data[key].shape) for key in ("xl", "xu"))
        spec, known = torch.from_numpy(data["row"]).reshape(1, 1, -1), dict[str, Interval]()
        for k, name in enumerate(relaxed_operands(graph)):
            limits = (torch.from_numpy(data[key]).reshape(count, *graph[name].shape) for key in (f"low{k}", f"high{k}"))
            known[name] = Interval(*limits)
    else:
        low, high = (torch.from_numpy(data[key][:count]) for key in ("xl", "xu"))
        spec, known = margins(data["y"][:count], graph.output.numel), {}
    box = Box(*(limit.reshape(count, *graph.input.shape) for limit in (low, high)))
    spec = spec.reshape(*spec.shape[:2], *graph.output.shape)
    return Query(graph, graph.values(torch.float32), {graph.input.name: box}, spec, known=known)


def search_step(query: Query) -> Tensor:
    """What the search does in one round: alpha steps on sub-problems whose boxes are known."""
    ctx = context(query, Memory())
    return optimise(ctx, query.known, query.graph.output.name, spec_rows(query, ctx.groups), {}, STEPS, Rates()).lower


def ours(case: Case) -> Trial:
    """Our side of a case."""
    query = asked(prepare(load_onnx(case["onnx"])), case)
    if case["method"] == "search":
        return lambda: partial(search_step, query)
    method = {
        "ibp": Ibp(),
        "crown": Crown(),
        "kept": AlphaCrown(case["steps"], "crown"),
        "optimised": AlphaCrown(case["steps"], "optimised"),
    }[case["method"]]

    def run() -> Tensor:
        with torch.set_grad_enabled(isinstance(method, AlphaCrown)):
            return method.bound(query).lower

    return lambda: run


def subproblems(folder: Path, path: Path, threads: int, pruned: bool) -> Case:
    """Write sub-problems of one image: CROWN's boxes with 3 to 6 unstable neurons of changing layers split.

    The row is the margin with the least bound. Neurons and phases are random with a fixed seed. Both
    sides get the boxes after interval arithmetic through the split neurons.
    """
    case: Case = {
        "onnx": str(folder / f"{SEARCHED}.onnx"),
        "data": str(folder / f"{SEARCHED}.npz"),
        "method": "crown",
        "batch": IMAGE + 1,
        "steps": STEPS,
        "threads": threads,
        "pruned": pruned,
    }
    graph = prepare(load_onnx(case["onnx"]))
    query = asked(graph, case)
    root = Crown().bound(query)
    row = query.spec[IMAGE, int(root.lower[IMAGE].argmin())].flatten()
    names, rng = relaxed_operands(graph), np.random.default_rng(0)
    boxes = {name: [limit[IMAGE].flatten().repeat(SUBPROBLEMS, 1) for limit in root.boxes[name]] for name in names}
    for number in range(SUBPROBLEMS):
        order = rng.permutation(len(names))
        for k in range(int(rng.integers(3, 7))):
            low, high = (limit[number] for limit in boxes[names[order[k % len(names)]]])
            neuron = int(rng.choice(((low < 0) & (high > 0)).nonzero().flatten().numpy()))
            (low if rng.integers(2) else high)[neuron] = 0
    known = {name: Interval(*(x.reshape(-1, *graph[name].shape) for x in boxes[name])) for name in names}
    region = query.regions[graph.input.name].take(torch.full((SUBPROBLEMS,), IMAGE))
    found = Ibp().bound(Query(graph, query.params, {graph.input.name: region}, query.spec[:1], known=known)).boxes
    data = np.load(case["data"])
    written = {"xl": data["xl"][IMAGE], "xu": data["xu"][IMAGE], "row": row.numpy()}
    for k, name in enumerate(names):
        written |= {f"low{k}": found[name].lower.numpy(), f"high{k}": found[name].upper.numpy()}
    np.savez(path, allow_pickle=False, **written)
    return {**case, "data": str(path), "method": "search", "batch": SUBPROBLEMS}


class Side:
    """A process that measures one case, run by run."""

    def __init__(self, command: list[str], case: Case, path: str | None = None) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": str(case["threads"]), "MKL_NUM_THREADS": str(case["threads"])}
        if path is not None:
            env["PYTHONPATH"] = path
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=quiet, text=True, env=env)
        self.found: list[dict[str, float]] = []
        self.send(json.dumps(case))

    def send(self, words: str) -> None:
        """Write one line; that a process has ended shows when nothing comes back."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()

    def run(self) -> bool:
        """One more run; False when it failed, and why is printed."""
        assert self.process.stdout is not None
        self.send("run")
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in answer:
            print(f"{self.process.args}: {answer['error']}", file=sys.stderr)
            return False
        self.found.append(answer)
        return True

    def close(self) -> None:
        """End the process."""
        with suppress(BrokenPipeError):
            self.process.communicate()

    def result(self) -> dict[str, float]:
        """Median time of the runs after the first, mean bound of the last, rise of the peak in the first."""
        if len(self.found) < 2:
            return dict.fromkeys(("ms", "mean", "mb"), float("nan"))
        times = [one["ms"] for one in self.found[1:]]
        return {"ms": statistics.median(times), "mean": self.found[-1]["mean"], "mb": self.found[0]["mb"]}


def compare(case: Case, repeats: int) -> dict[str, Any]:
    """Both sides of a case, measured in turns."""
    sides = [Side([sys.executable, str(HERE / "bounds.py"), "--worker"], case)]
    if "PEER_PYTHON" in os.environ:
        command = [os.environ["PEER_PYTHON"], "-W", "ignore", str(HERE / "peer_bounds.py")]
        sides.append(Side(command, case, os.environ.get("PEER_PATH")))
    alive = [side for side in sides if side.run()]
    slowest = max((side.found[0]["ms"] / 1e3 for side in alive), default=0.0)
    count = max(1, int(repeats * LONG / slowest)) if slowest > LONG else repeats
    for _ in range(count):
        for side in alive:
            time.sleep(PAUSE)
            side.run()
    for side in sides:
        side.close()
    none = dict.fromkeys(("ms", "mean", "mb"), float("nan"))
    return {"ours": sides[0].result(), "peer": sides[1].result() if len(sides) > 1 else none, "n": count}


def line(name: str, case: Case, row: dict[str, Any]) -> str:
    """One line of the table."""
    us, peer = row["ours"], row["peer"]
    words = (
        f"{name:20} {case['batch']:5} {case['method']:9} {us['ms']:10.2f} {peer['ms']:10.2f} "
        f"{peer['ms'] / us['ms']:7.2f} {us['mean']:13.5f} {peer['mean']:13.5f} "
        f"{us['mb']:8.1f} {peer['mb']:8.1f} {peer['mb'] / max(us['mb'], 0.1):7.2f} {row['n']:3} "
        f"{row['floor']:9.2f} {us['ms'] / row['floor']:8.1f}"
    )
    return words.replace("nan", "  -")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--pruned", action="store_true", help="the peer forgets alphas that nothing needs")
    parser.add_argument("--log", type=Path, help="append every line as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(ours)
        return 0
    if "SUREBOUND_REFERENCE" not in os.environ:
        parser.error("set SUREBOUND_REFERENCE to a folder of NAME.onnx and NAME.npz")
    folder = Path(os.environ["SUREBOUND_REFERENCE"])
    names = args.networks or sorted(path.stem for path in folder.glob("*.npz"))
    from floor import least, machine  # which reads this file

    torch.set_num_threads(args.threads)
    rates = machine()
    print(
        f"{args.threads} threads, load {os.getloadavg()[0]:.2f}, {rates[0] / 1e9:.1f} G multiply-adds/s, "
        f"{rates[1] / 1e9:.1f} GB/s copied"
    )
    print(
        f"{'network':20} {'batch':>5} {'method':9} {'ours ms':>10} {'peer ms':>10} {'x':>7} "
        f"{'ours mean':>13} {'peer mean':>13} {'ours MB':>8} {'peer MB':>8} {'x':>7} {'n':>3} "
        f"{'floor ms':>9} {'/floor':>8}"
    )
    with TemporaryDirectory() as scratch:
        cases: list[tuple[str, Case]] = []
        for name in names:
            onnx, data = str(folder / f"{name}.onnx"), str(folder / f"{name}.npz")
            for batch in args.batch:
                for method in (method for method in METHODS[:-1] if method in args.only):
                    settings = {"steps": STEPS, "threads": args.threads, "pruned": args.pruned}
                    cases.append((name, Case(onnx=onnx, data=data, method=method, batch=batch, **settings)))
        if "search" in args.only and SEARCHED in names:
            cases.append((SEARCHED, subproblems(folder, Path(scratch) / "subproblems.npz", args.threads, args.pruned)))
        for name, case in cases:
            row = {**compare(case, args.repeats), "floor": least(case, rates)}
            print(line(name, case, row), flush=True)
            if args.log is not None:
                with open(args.log, "a") as file:
                    what = {key: case[key] for key in ("batch", "method", "steps", "threads", "pruned")}
                    file.write(json.dumps({"network": name, **what, **row, "load": os.getloadavg()[0]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
