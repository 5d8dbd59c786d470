"""How far our bounds are from what the machine could do: `python benchmarks/floor.py [NAME ...] --batch 1 10`.

The floor of a bound is  multiply-adds / matrix rate + bytes / copy rate  over its backward walks: every
unstable neuron is a row below and a row above, an affine step multiplies, reads and writes its rows once, a
relaxed step reads and writes them once. Steps that act on single values cost nothing (they can be merged
into their neighbours). Alpha steps walk twice, for the bound and for its gradient.
`support` counts only coefficients that can differ from zero (a neuron behind convolutions sees a window),
`dense` counts all. Rows that fit into a cache move faster than the copy rate, so small cases can beat it.
Networks and boxes are read from SUREBOUND_REFERENCE.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bounds import METHODS, SEARCHED, STEPS, asked, ours, relaxed_operands, subproblems
from peer_bounds import Case, measured

from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.plan import ELEMENTWISE, Plan, Step, plan
from surebound.bounds.query import Query
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.graph.prepare import prepare
from surebound.ops.record import Interval

WORD = 4
"""Bytes of a float32."""
Support = tuple[int, ...]
"""How many entries along each axis of a node a row can use."""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds and bytes moved."""

    madds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.madds + other.madds, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.madds * times, self.bytes * times)

    def ms(self, rates: tuple[float, float]) -> float:
        """Milliseconds at (multiply-adds, bytes) per second."""
        return 1e3 * (self.madds / rates[0] + self.bytes / rates[1])


def typical(run: Callable[[], object], times: int = 9) -> float:
    """Median seconds of a call, after one that is not counted."""
    found: list[float] = []
    for _ in range(times + 1):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def machine() -> tuple[float, float]:
    """Multiply-adds per second of a 1024^3 float32 product, bytes per second of a 64 MB copy."""
    a, b = torch.randn(2, 1024, 1024)
    product = torch.empty_like(a)
    source, target = torch.ones(2, 1 << 24)
    matrix = typical(lambda: torch.mm(a, b, out=product))
    return 1024**3 / matrix, 2 * source.nbytes / typical(lambda: target.copy_(source))


def below(graph: Graph, step: Step, rows: Support) -> tuple[Support, float]:
    """Support over the operand, and multiply-adds, of one row pulled back through an affine step."""
    node, operand = step.site.node, step.site.operands[0]
    if node.op == "conv2d":
        weight, shape, attrs = graph[node.inputs[1]].shape, operand.shape, node.attrs
        window = (
            (rows[1 + k] - 1) * attrs["stride"][k] + (weight[2 + k] - 1) * attrs["dilation"][k] + 1 for k in (0, 1)
        )
        support = (shape[0], *(min(*sizes) for sizes in zip(window, shape[1:], strict=True)))
        return support, prod(rows) * prod(weight[1:])
    if node.op == "linear":
        return operand.shape, prod(rows) * operand.shape[-1]
    if node.op not in ELEMENTWISE:
        raise NotImplementedError(f"no cost is known for {node.op}")
    if [size for size in node.shape if size > 1] == [size for size in operand.shape if size > 1]:
        sizes = iter([size for size, full in zip(rows, node.shape, strict=True) if full > 1])
        return tuple(next(sizes) if full > 1 else 1 for full in operand.shape), 0.0
    return operand.shape, 0.0


def walk_cost(of: Plan, start: str, count: int, unit: bool, dense: bool) -> Cost:
    """Cost of walking `count` rows over node `start` to the input; unit: each row is one neuron."""
    graph = of.graph
    pending: dict[str, Support] = {start: (1,) * len(graph[start].shape) if unit else graph[start].shape}
    total = Cost()
    for name in of.order(start):
        rows = graph[name].shape if dense else pending[name]
        step = of.steps.get(name)
        if step is None:
            total += Cost(2 * prod(rows), WORD * prod(rows))
            continue
        if not step.affine:
            support, cost = rows, Cost(2 * prod(rows), WORD * 2 * prod(rows))
        else:
            support, madds = below(graph, step, rows)
            cost = Cost(madds, WORD * (prod(rows) + prod(support))) if step.site.node.op not in ELEMENTWISE else Cost()
        total += cost
        for operand, moves in zip(step.site.node.inputs, step.perturbed, strict=True):
            if moves:
                known = pending.get(operand, support)
                pending[operand] = tuple(max(*sizes) for sizes in zip(known, support, strict=True))
    return total * count


def rows_of(query: Query, of: Plan) -> dict[str, int]:
    """Rows by intermediate node: twice the neurons that CROWN's boxes of the earlier nodes leave unstable.

    Optimised boxes leave somewhat fewer; their floor is stated with these.
    """
    graph, found, known = query.graph, Crown().bound(query).boxes, dict[str, Interval]()
    rows: dict[str, int] = {}
    for name in relaxed_operands(graph):
        if not of.one_affine_map(name):
            box = Ibp().bound(Query(graph, query.params, query.regions, query.spec, known=known)).boxes[name]
            rows[name] = 2 * int(((box.lower < 0) & (box.upper > 0)).sum())
        known[name] = found[name]
    return rows


def floor(query: Query, method: str, dense: bool) -> tuple[int, Cost]:
    """Rows walked at least once, and the cost of a method's walks."""
    of = plan(query.graph, tuple(query.regions))
    groups = next(iter(query.regions.values())).groups
    asked_rows = groups * query.spec.shape[1]
    last = walk_cost(of, query.graph.output.name, asked_rows, False, dense)
    if method == "search":
        return asked_rows, last * (2 * STEPS)
    rows = rows_of(query, of)
    before = sum((walk_cost(of, name, count, True, dense) for name, count in rows.items()), Cost())
    times = {"crown": (1, 1), "kept": (1, 2 * STEPS), "optimised": (2 * STEPS, 2 * STEPS)}[method]
    return sum(rows.values()) + asked_rows, before * times[0] + last * times[1]


def least(case: Case, rates: tuple[float, float]) -> float:
    """The floor of a case in milliseconds, on the rows' supports; NaN for interval arithmetic, which walks nothing."""
    if case["method"] == "ibp":
        return float("nan")
    return floor(asked(prepare(load_onnx(case["onnx"])), case), case["method"], False)[1].ms(rates)


def report(name: str, case: Case, rates: tuple[float, float], repeats: int) -> None:
    """Print one line: what the walks cost at least and what they took."""
    query = asked(prepare(load_onnx(case["onnx"])), case)
    rows, cost = floor(query, case["method"], False)
    dense = floor(query, case["method"], True)[1].ms(rates)
    trial, least = ours(case), cost.ms(rates)
    took = statistics.median([measured(trial())["ms"] for _ in range(repeats + 1)][1:])
    print(
        f"{name:20} {case['batch']:5} {case['method']:9} {rows:7} {cost.madds / 1e9:9.3f} {cost.bytes / 1e9:8.3f} "
        f"{least:11.3f} {dense:11.3f} {took:11.2f} {took / least:9.2f} {took / dense:9.2f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=METHODS[1:], nargs="+", default=METHODS[1:])
    args = parser.parse_args()
    if "SUREBOUND_REFERENCE" not in os.environ:
        parser.error("set SUREBOUND_REFERENCE to a folder of NAME.onnx and NAME.npz")
    torch.set_num_threads(args.threads)
    folder = Path(os.environ["SUREBOUND_REFERENCE"])
    names = args.networks or sorted(path.stem for path in folder.glob("*.npz"))
    rates = machine()
    print(f"{args.threads} threads: {rates[0] / 1e9:.1f} G multiply-adds/s, {rates[1] / 1e9:.1f} GB/s copied")
    print(
        f"{'network':20} {'batch':>5} {'method':9} {'rows':>7} {'Gmadds':>9} {'GB':>8} "
        f"{'support ms':>11} {'dense ms':>11} {'ours ms':>11} {'/support':>9} {'/dense':>9}"
    )
    with TemporaryDirectory() as scratch:
        for name in names:
            for batch in args.batch:
                for method in (method for method in METHODS[1:-1] if method in args.only):
                    onnx, data = str(folder / f"{name}.onnx"), str(folder / f"{name}.npz")
                    settings = {"steps": STEPS, "threads": args.threads, "pruned": False}
                    report(
                        name, Case(onnx=onnx, data=data, method=method, batch=batch, **settings), rates, args.repeats
                    )
        if "search" in args.only and SEARCHED in names:
            path = Path(scratch) / "subproblems.npz"
            report(SEARCHED, subproblems(folder, path, args.threads, False), rates, args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
