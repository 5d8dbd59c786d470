"""`surebound info`: what a network is made of and what can be shown about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, to_json
from surebound.cli.progress import progress
from surebound.machine import time_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from surebound.graph.ir import Graph, Node

EXACT, LINEAR, INTERVAL = "exact", "linear bounds", "interval only"
"""How an op is bounded: as it is (affine), between two lines (CROWN), or by interval arithmetic alone."""


@dataclass(frozen=True)
class Job:
    """What is to be described."""

    model: Path
    common: Common


def run(job: Job) -> int:
    """Describe and print; the exit code."""
    try:
        job.common.check()
        with time_limit(job.common.timeout, "reading the network"), progress("loading", job.common.quiet):
            found = describe(job)
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if job.common.json:
            emit(to_json({"schema": SCHEMA, "verdict": failure.verdict, "reason": failure.reason}))
        return failure.exit_code
    emit(to_json(found) if job.common.json else as_text(found))
    return 0


def describe(job: Job) -> dict[str, Any]:
    """The JSON object of schema 1, of the network as it is bounded."""
    from surebound.graph.onnx_import import load_onnx
    from surebound.graph.prepare import prepare

    job.common.machine()
    graph = prepare(load_onnx(job.model))
    moving = graph.dependents(graph.inputs) - set(graph.inputs)
    computed = [node for node in graph if node.name in moving]
    kinds = {node.name: how(graph, node) for node in computed}
    return {
        "schema": SCHEMA,
        "model": str(job.model),
        "inputs": [{"name": name, "shape": list(graph[name].shape)} for name in graph.inputs],
        "outputs": [{"name": name, "shape": list(graph[name].shape)} for name in graph.outputs],
        "parameters": sum(node.numel for node in graph if node.op == "parameter"),
        "neurons": dict(neurons(graph, computed, kinds)),
        "ops": [
            {"op": op, "nodes": count, "bounds": bounds}
            for (op, bounds), count in sorted(Counter((node.op, kinds[node.name]) for node in computed).items())
        ],
    }


def how(graph: Graph, node: Node) -> str:
    """How a computed node is bounded when the inputs move."""
    op = graph.ops[node.op]
    moving = graph.dependents(graph.inputs)
    if op.affine(tuple(name in moving for name in node.inputs)):
        return EXACT
    return LINEAR if op.relax is not None else INTERVAL


def neurons(graph: Graph, computed: Sequence[Node], kinds: dict[str, str]) -> Counter[str]:
    """Values of non-affine nodes, by op."""
    found: Counter[str] = Counter()
    for node in computed:
        if kinds[node.name] != EXACT:
            found[node.op] += node.numel
    return found


def as_text(found: dict[str, Any]) -> str:
    """The description for people."""
    lines = [found["model"]]
    for kind in ("inputs", "outputs"):
        lines += [f"  {kind[:-1]:<11}{value['name']} {value['shape']}" for value in found[kind]]
    lines.append(f"  {'parameters':<11}{found['parameters']:,}")
    total = sum(found["neurons"].values())
    by_kind = ", ".join(f"{count:,} {op}" for op, count in found["neurons"].items())
    lines.append(f"  {'neurons':<11}{total:,}{f' ({by_kind})' if by_kind else ''}")
    lines += ["", f"  {'op':<16}{'nodes':>6}  bounds"]
    lines += [f"  {row['op']:<16}{row['nodes']:>6}  {row['bounds']}" for row in found["ops"]]
    return "\n".join(lines)
