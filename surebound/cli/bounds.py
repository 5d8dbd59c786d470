"""`surebound bounds`: lower bounds of every atom of a property, by one method."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surebound.cli.options import Common, Machine
from surebound.cli.output import SCHEMA, emit, explain, to_json
from surebound.cli.progress import progress
from surebound.errors import UsageError
from surebound.machine import peak_memory, time_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from surebound.bounds.query import Bounds, Method
    from surebound.graph.ir import Graph
    from surebound.properties import Case, Property

MethodName = Literal["ibp", "crown-ibp", "crown", "forward", "forward-backward", "alpha-crown"]
Intermediates = Literal["ibp", "crown", "optimised"]


@dataclass(frozen=True)
class Job:
    """What is to be bounded and how, as given on the command line; None: the method's default."""

    model: Path
    spec: Path
    method: MethodName
    steps: int | None
    intermediates: Intermediates | None
    common: Common


def run(job: Job) -> int:
    """Bound and print; the exit code."""
    indent = None if job.common.json else 2
    try:
        job.common.check()
        check(job)
        with time_limit(job.common.timeout, "bounding"):
            found = bound(job, job.common.machine())
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        emit(to_json({"schema": SCHEMA, "verdict": failure.verdict, "reason": failure.reason}, indent))
        return failure.exit_code
    emit(to_json(found, indent))
    return 0


def check(job: Job) -> None:
    """Raise UsageError for options that do not go together."""
    if job.steps is not None and (job.method != "alpha-crown" or job.steps < 0):
        raise UsageError("--steps counts the optimisation steps of --method alpha-crown, 0 or more")
    allowed = {"crown": ("ibp", "crown"), "alpha-crown": ("ibp", "crown", "optimised")}.get(job.method, ())
    if job.intermediates is not None and job.intermediates not in allowed:
        choice = f"allows {' or '.join(allowed)}" if allowed else "has no choice of them"
        raise UsageError(f"--intermediates {job.intermediates}: method {job.method} {choice}")


def method_of(job: Job, machine: Machine) -> Method:
    """The bounding method that the options describe."""
    from surebound.bounds.alpha import AlphaCrown
    from surebound.bounds.crown import Crown, Ibp
    from surebound.bounds.forward import Forward
    from surebound.bounds.memory import Memory

    memory = Memory(machine.memory)
    if job.method == "ibp":
        return Ibp()
    if job.method in ("forward", "forward-backward"):
        return Forward(job.method == "forward-backward", memory)
    if job.method == "crown-ibp":
        return Crown("ibp", memory)
    if job.method == "crown":
        return Crown(job.intermediates or "crown", memory)
    return AlphaCrown(20 if job.steps is None else job.steps, job.intermediates or "crown", memory=memory)


def bound(job: Job, machine: Machine) -> dict[str, Any]:
    """The JSON object of schema 1."""
    from surebound.cli.loading import load
    from surebound.graph.prepare import prepare

    method = method_of(job, machine)
    with progress("loading", job.common.quiet) as show:
        began = time.perf_counter()
        graph, prop = load(job.model, job.spec)
        graph = prepare(graph)
        loaded = time.perf_counter()
        show(f"bounding {len(prop.cases)} boxes")
        before = peak_memory(machine.device)
        found = bounds_of(graph, prop, method, machine)
        peak = peak_memory(machine.device) - before
        ended = time.perf_counter()
    boxes = [described(index, case, bounds) for index, (case, bounds) in enumerate(zip(prop.cases, found, strict=True))]
    return {
        "schema": SCHEMA,
        "method": job.method,
        "dtype": job.common.dtype,
        "seconds": {"load": loaded - began, "bound": ended - loaded},
        "peak_bytes": peak,
        "neurons": {
            "total": found[0].stats.neurons,
            "unstable": max(int(bounds.stats.unstable.max()) for bounds in found),
        },
        "boxes": boxes,
    }


def bounds_of(graph: Graph, prop: Property, method: Method, machine: Machine) -> list[Bounds]:
    """The method's bounds of each case, the rows of all its disjuncts in one specification [1, S, *output]."""
    from surebound.bounds.query import Query

    params: Mapping[str, Tensor] = graph.values(machine.dtype, machine.device)
    return [
        method.bound(
            Query(
                graph,
                params,
                {graph.input.name: case.region.to(machine.dtype, machine.device)},
                rows_of(case).to(machine.device, machine.dtype).reshape(1, -1, *graph.output.shape),
            )
        )
        for case in prop.cases
    ]


def rows_of(case: Case) -> Tensor:
    """The rows of all disjuncts [S, m], in order."""
    import torch

    return torch.cat([disjunct.C for disjunct in case.disjuncts])


def described(index: int, case: Case, bounds: Bounds) -> dict[str, Any]:
    """One box with its disjuncts and what was shown about them."""
    import torch

    lower = bounds.lower[0].detach().to("cpu", torch.float64)
    thresholds = torch.cat([disjunct.t for disjunct in case.disjuncts])
    values = iter((lower - thresholds).tolist())
    disjuncts: list[dict[str, Any]] = []
    for number, disjunct in enumerate(case.disjuncts):
        rows = [{"text": text, "lower": next(values)} for text in disjunct.text]
        refuted = any(math.isfinite(row["lower"]) and row["lower"] > 0 for row in rows)
        disjuncts.append({"index": number, "rows": rows, "refuted": refuted})
    verified = all(disjunct["refuted"] for disjunct in disjuncts)
    return {"index": index, "disjuncts": disjuncts, "verified": verified}
