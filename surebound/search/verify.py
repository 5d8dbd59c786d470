"""`verify`: decide properties of one network, all of them in one pool of sub-problems.

The order of work: CROWN at the roots; a quick attack where that left something open (before it where CROWN costs far
more than the attack); then branch and bound. Where that gets long, the whole attack, and tighter boxes. Choices depend
on counts and bounds, never on the clock; the clock only ends the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from surebound.bounds.memory import Memory
from surebound.errors import OutOfMemory
from surebound.graph.graph_original import GraphOriginal
from surebound.graph.ir import Graph
from surebound.graph.module_original import ModuleOriginal
from surebound.graph.prepare import prepare
from surebound.graph.torch_frontend.compare import compare_again
from surebound.machine import one_thread
from surebound.properties import Property, check_fits
from surebound.search.attack import QUICK, attack
from surebound.search.ledger import Ledger
from surebound.search.mirrors import merge_mirrors
from surebound.search.problem import problem
from surebound.search.root_bounds import bound_roots
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import roots_of
from surebound.search.run import Run, VerifyConfig
from surebound.search.stages import Search
from surebound.search.tree import Forest
from surebound.search.verdict import Outcome, Unknown, Verdict, Verified

FEW = 2_000
"""Networks with at most this many neurons are computed with one thread: their tensors are too small for more."""

LARGE = 10_000
"""Networks with more neurons are attacked before they are bounded."""


@dataclass(frozen=True)
class Progress:
    """Where a search stands: properties done of total, sub-problems bounded and open, seconds, worst bound."""

    done: int
    total: int
    nodes: int
    open: int
    seconds: float
    bound: float


def verify(
    graph: Graph,
    properties: Sequence[Property],
    config: VerifyConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
    decided: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Decide each property; one `Outcome` per property, in order.

    decided is called with a property's number and outcome as soon as there is one, once for each property.
    A traced graph is compared with its module first, as `trace` did: attributes of the module that are no tensors,
    and submodules, may have changed since. Raises TraceMismatch when the two differ now, SpecError when a property
    does not fit the network, UnsupportedOp when an op has no linear bound.
    """
    if not properties:
        return []
    chosen = config or VerifyConfig()
    if isinstance(graph.original, ModuleOriginal):
        compare_again(graph, graph.original)
    prepared = merge_mirrors(prepare(graph))
    for prop in properties:
        check_fits(prop, prepared.input.numel, prepared.output.numel)
    roots = roots_of(properties, prepared.input.shape)
    of = problem(prepared, roots, chosen.dtype, Memory(chosen.memory))
    original = graph.original if graph.original is not None else GraphOriginal(graph)
    ledger = Ledger(roots.prop.numpy(), len(properties), chosen.timeout)
    run = Run(of, properties, original, chosen, ledger, RootBoxes(roots.region.groups), np.full(roots.count, np.inf))
    forest = Forest([*of.plan.operands, of.input])
    outcomes: dict[int, Outcome] = {}

    def tell(finished: NDArray[np.bool_]) -> None:
        for p in np.flatnonzero(finished).tolist():
            if p not in outcomes:
                outcome = run.ledger.outcome(p, verdict_of(run, forest, p))
                outcomes[p] = replace(outcome, splits=forest.splits(np.flatnonzero(run.ledger.prop_of == p)))
                if decided is not None:
                    decided(p, outcomes[p])

    try:
        with one_thread() if of.neurons <= FEW else nullcontext():
            decide(run, forest, progress, tell)
    except OutOfMemory as error:
        run.ledger.end(run.ledger.roots_open(), Unknown(str(error), "memory"))
    tell(np.ones(len(properties), bool))
    return [outcomes[p] for p in range(len(properties))]


def verdict_of(run: Run, forest: Forest, prop: int) -> Verdict:
    """The ledger's verdict, or the proof when every root of the property is closed."""
    ledger = run.ledger
    decided = ledger.verdicts[prop]
    if decided is not None:
        return decided
    margin = ledger.proof_margin(prop)
    if margin is not None:
        within = run.problem.roots.within.numpy()
        trees = (
            forest.tree(int(root), run.boxes.methods[within[root]], float(ledger.margin[root]))
            for root in np.flatnonzero(ledger.prop_of == prop)
        )
        return Verified(margin, tuple(trees))
    return Unknown("the search ended without a proof or a witness")


def decide(
    run: Run,
    forest: Forest,
    progress: Callable[[Progress], None] | None,
    tell: Callable[[NDArray[np.bool_]], None],
) -> None:
    """All stages; `tell` hears which properties are finished, again and again."""
    ledger, of = run.ledger, run.problem
    began = time.monotonic()

    def report(open_: int, bound: float) -> None:
        finished = ledger.finished
        tell(finished)
        if progress is not None:
            done, total = int(finished.sum()), len(run.properties)
            progress(Progress(done, total, int(ledger.nodes.sum()), open_, time.monotonic() - began, bound))

    attacking = run.config.attack == "pgd"
    attack_first = attacking and of.neurons > LARGE
    if attack_first:
        attack(run, ledger.roots_open(), QUICK)
    atoms = bound_roots(run)
    if attacking and not attack_first:
        attack(run, ledger.roots_open(), QUICK)
    roots = ledger.roots_open()
    report(len(roots), float("nan"))
    if len(roots):
        waiting = forest.append(parent=np.full(len(roots), -1, np.int64), root=roots, slot=-1, lower=-np.inf)
        Search(run, forest, atoms).go(waiting, report)
