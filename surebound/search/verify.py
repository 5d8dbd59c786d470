"""`verify`: decide properties of one network, all of them in one pool of sub-problems.

The order of work: CROWN at the roots; a quick attack where that left something open (before it where CROWN costs far
more than the attack); then branch and bound. Where that gets long, the whole attack, and tighter boxes. Choices depend
on counts and bounds, never on the clock; the clock only ends the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from surebound.search.attack import quick_attack
from surebound.search.ledger import Ledger
from surebound.search.mirrors import merge_mirrors
from surebound.search.problem import problem
from surebound.search.resumed import first_rows, trees_by_root
from surebound.search.root_bounds import bound_roots
from surebound.search.root_boxes import RootBoxes
from surebound.search.roots import roots_of
from surebound.search.run import Run, VerifyConfig
from surebound.search.stages import Search
from surebound.search.tree import Forest, Tree
from surebound.search.verdict import Falsified, Outcome, Unknown, Verdict, Verified

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
    unfinished: Callable[[int, tuple[Tree, ...]], None] | None = None,
    begun: Mapping[int, Sequence[Tree]] | None = None,
) -> list[Outcome]:
    """Decide each property; one `Outcome` per property, in order.

    decided is called with a property's number and outcome as soon as there is one, once for each property.
    unfinished is called at the end, also of a work that an exception ends, with the trees of each property that has
    neither a proof nor a witness; given as `begun` to another call on the same network and properties, the search goes
    on from there. What they say is proven is believed: a replay of the proof is not.
    A traced graph is compared with its module first, as `trace` did: attributes of the module that are no tensors,
    and submodules, may have changed since. Raises TraceMismatch when the two differ now, SpecError when a property
    does not fit the network, UnsupportedOp when an op has no linear bound, InvalidProof when trees do not fit.
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
    trees = trees_by_root(begun or {}, ledger.prop_of, prepared, forest.names)
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
            decide(run, forest, trees, progress, tell)
    except OutOfMemory as error:
        run.ledger.end(run.ledger.roots_open(), Unknown(str(error), "memory"))
    finally:
        if unfinished is not None:
            for p in range(len(properties)):
                if ledger.proof_margin(p) is None and not isinstance(ledger.verdicts[p], Falsified):
                    unfinished(p, trees_of(run, forest, p, trees))
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
        return Verified(margin, trees_of(run, forest, prop))
    return Unknown("the search ended without a proof or a witness")


def trees_of(run: Run, forest: Forest, prop: int, begun: Mapping[int, Tree] | None = None) -> tuple[Tree, ...]:
    """The trees of a property's roots as they are, those begun where the search has not come to them."""
    ledger, within = run.ledger, run.problem.roots.within.numpy()

    def tree(root: int) -> Tree:
        closed = ledger.open_count[root] == 0
        if begun and root in begun and not closed and not len(forest.rows(root)):
            return begun[root]
        return forest.tree(root, run.boxes.methods[within[root]], float(ledger.margin[root]) if closed else -np.inf)

    return tuple(tree(root) for root in np.flatnonzero(ledger.prop_of == prop).tolist())


def decide(
    run: Run,
    forest: Forest,
    trees: Mapping[int, Tree],
    progress: Callable[[Progress], None] | None,
    tell: Callable[[NDArray[np.bool_]], None],
) -> None:
    """All stages, from the trees of roots that have some; `tell` hears which properties are finished, repeatedly."""
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
        quick_attack(run)
    atoms = bound_roots(run)
    if attacking and not attack_first:
        quick_attack(run)
    roots = ledger.roots_open()
    report(len(roots), float("nan"))
    if len(roots):
        waiting = first_rows(run, forest, roots, trees)
        Search(run, forest, atoms).go(waiting, report)
