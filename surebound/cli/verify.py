"""`surebound verify`: decide one property of one network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surebound.cli.options import Common, Machine
from surebound.cli.output import SCHEMA, ResultsFile, emit, explain, say, to_json
from surebound.cli.progress import progress
from surebound.errors import InvalidGraph, NotYet

if TYPE_CHECKING:
    from surebound.cli.proof_file import ProofFile
    from surebound.graph.ir import Graph
    from surebound.properties import Property
    from surebound.search.verdict import Outcome, Verdict, Verified
    from surebound.search.verify import Progress
    from surebound.witness import Witness

STAGES = ("import", "load", "attack", "bound", "search")
"""What the seconds are reported for."""

TIMEOUT = 60.0
"""Seconds from opening the files to the verdict, unless given."""


@dataclass(frozen=True)
class Job:
    """What is to be decided and how, as given on the command line."""

    model: Path
    spec: Path
    attack: Literal["pgd", "none"]
    results_file: Path | None
    proof: Path | None
    recheck: bool
    common: Common


@dataclass(frozen=True)
class Answer:
    """What is printed. witness: its X and Y, and its text in VNN-COMP form."""

    verdict: str
    reason: str
    margin: float | None = None
    nodes: int = 0
    engine: str | None = None
    witness: Mapping[str, list[Any]] | None = None
    witness_text: str = ""
    recheck: Literal["float64"] | None = None

    @property
    def text(self) -> str:
        """The verdict, and the witness below it."""
        return f"{self.verdict}\n{self.witness_text}" if self.witness_text else self.verdict


@dataclass
class Run:
    """What is known about a run while it goes on; seconds by stage."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    machine: Machine | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


def run(job: Job) -> int:
    """Decide, print and write; the exit code."""
    state, sink, code = Run(), None, 0
    try:
        job.common.check()
        sink = None if job.results_file is None else ResultsFile.at(job.results_file)
        answer = decide(job, state)
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        answer, code = Answer(failure.verdict, failure.reason), failure.exit_code
    emit(to_json(as_object(job, state, answer)) if job.common.json else answer.text)
    if sink is not None:
        try:
            sink.write(answer.text)
        except Exception as error:
            return explain(error).exit_code
    return code


def decide(job: Job, state: Run) -> Answer:
    """The answer; raises what ends the work early."""
    with state.stage("import"):
        from surebound.cli.loading import load
        from surebound.cli.proof_file import ProofFile
        from surebound.search.run import VerifyConfig
        from surebound.search.verdict import Verified
        from surebound.search.verify import verify

        state.machine = machine = job.common.machine()
    if machine.device.type != "cpu":
        raise NotYet(f"verify does not run on '{machine.device}' yet; leave out --device, or give cpu")
    with progress("loading", job.common.quiet) as show:
        with state.stage("load"):
            proof = None if job.proof is None else ProofFile.at(job.proof, job.model, job.spec)
            graph, prop = load(job.model, job.spec)
        timeout = TIMEOUT if job.common.timeout is None else job.common.timeout
        left = timeout - state.seconds["load"]
        if left <= 0:
            return Answer("timeout", f"reading the files took all of {timeout:g} seconds")
        config = VerifyConfig(
            timeout=left,
            attack=job.attack,
            dtype=machine.dtype,
            device=str(machine.device),
            seed=job.common.seed_or_zero,
            memory=machine.memory,
        )
        show("bounding")
        (outcome,) = verify(
            graph,
            [prop],
            config,
            lambda now: show(words(now)),
            unfinished=None if proof is None else lambda _, trees: proof.keep(graph, trees),
            begun=None if proof is None or not proof.begun else {0: proof.begun},
        )
        state.seconds.update(outcome.seconds)
        answer = answer_of(outcome)
        if isinstance(outcome.verdict, Verified):
            if proof is not None:
                proof.write(graph, outcome.verdict.trees)
                say(f"the proof is in {proof.path}")
                answer = believing(answer, proof)
            if job.recheck:
                show("replaying the proof")
                answer = replayed(answer, graph, prop, outcome.verdict, timeout, machine.memory)
    if job.recheck and answer.witness_text:
        recheck(answer.witness_text, graph, prop)
    return answer


def believing(answer: Answer, proof: ProofFile) -> Answer:
    """The answer with what it takes from an earlier run's file: that is believed, so nothing was rechecked."""
    if not proof.proven:
        return answer
    reason = f"{answer.reason}, {proof.proven:,} of them by the run that wrote {proof.path} first"
    return replace(answer, reason=reason, recheck=None)


def replayed(answer: Answer, graph: Graph, prop: Property, verdict: Verified, timeout: float, memory: int) -> Answer:
    """The answer if the proof holds when it is replayed, else `unknown` with the reason."""
    from surebound.proofs.replay import replay

    found = replay(graph, prop, verdict.trees, timeout, memory)
    if found.holds:
        return replace(answer, recheck="float64")
    return replace(
        answer, verdict="unknown", reason=f"a proof did not replay: {found.reason}", margin=None, recheck=None
    )


def answer_of(outcome: Outcome) -> Answer:
    """What an outcome is printed as."""
    return replace(evidence(outcome.verdict), nodes=outcome.nodes, engine=outcome.engine)


def evidence(verdict: Verdict) -> Answer:
    """The part of an answer that the verdict itself gives."""
    from surebound.search.verdict import Falsified, Verified
    from surebound.witness import format_witness

    if isinstance(verdict, Verified):
        return Answer(verdict.name, verdict.reason, margin=verdict.margin, recheck="float64")
    if isinstance(verdict, Falsified):
        witness = verdict.witness
        return Answer(
            verdict.name,
            verdict.reason,
            witness=entries(witness),
            witness_text=format_witness(witness),
        )
    return Answer(verdict.name, verdict.reason)


def entries(witness: Witness) -> dict[str, list[Any]]:
    """The witness's numbers: X in decimals, Y in floats."""
    return {"X": list(witness.x), "Y": [float(value) for value in witness.y.tolist()]}


def recheck(text: str, graph: Graph, prop: Property) -> None:
    """Read a printed witness back and feed it to the network; InvalidGraph when it is none."""
    import torch

    from surebound.witness import parse_witness

    x, _ = parse_witness(text)
    assert graph.original is not None
    point = torch.tensor([float(value) for value in x], dtype=torch.float64).to(graph.original.dtype)
    y = graph.original(point.reshape(1, *graph.input.shape)).flatten()
    for case in prop.cases:
        inside = case.limits is None or all(
            low <= value <= high for value, (low, high) in zip(x, case.limits, strict=True)
        )
        if inside and any(disjunct.holds(y) for disjunct in case.disjuncts):
            return
    raise InvalidGraph("the witness that was found does not violate the property when it is read back and replayed")


def words(now: Progress) -> str:
    """One line about a search."""
    return f"{now.nodes:,} sub-problems bounded, {now.open:,} open, worst bound {now.bound:.4g}, {now.seconds:.0f} s"


def as_object(job: Job, state: Run, answer: Answer) -> dict[str, Any]:
    """The JSON object of schema 1."""
    machine = state.machine
    return {
        "schema": SCHEMA,
        "verdict": answer.verdict,
        "reason": answer.reason,
        "margin": answer.margin,
        "nodes": answer.nodes,
        "seconds": state.seconds,
        "engine": answer.engine,
        "dtype": job.common.dtype,
        "device": job.common.device,
        "threads": job.common.threads if machine is None else machine.threads,
        "seed": job.common.seed_or_zero,
        "attack": job.attack,
        "witness": answer.witness,
        "recheck": answer.recheck,
    }
