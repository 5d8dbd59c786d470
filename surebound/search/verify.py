"""`verify`: decide properties of one network, all of them in one pool of sub-problems.

The order of work: CROWN at the roots; a gradient attack where that left something open (before it where
CROWN costs far more than the attack); then branch and bound. Choices depend on counts and bounds, never on
the clock; the clock only ends the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.attacks.pgd import Descent, hinge, pgd, worst_row
from surebound.bounds.climb import Rates
from surebound.bounds.crown import BY_WALK, boxes_of, walked_lower
from surebound.bounds.memory import Memory, pieces
from surebound.errors import OutOfMemory, OutOfTime, UsageError
from surebound.graph.graph_original import GraphOriginal
from surebound.graph.ir import Graph, Original
from surebound.graph.module_original import ModuleOriginal
from surebound.graph.prepare import prepare
from surebound.graph.torch_frontend.compare import compare_again
from surebound.linear.maps import Dense, merged
from surebound.ops.record import Interval
from surebound.properties import Property, check_fits
from surebound.regions import Box, Region
from surebound.search.engine import confirmed
from surebound.search.inputs import InputEngine
from surebound.search.ledger import Ledger
from surebound.search.neurons import NeuronEngine
from surebound.search.pool import Pool
from surebound.search.problem import Problem, problem
from surebound.search.roots import roots_of
from surebound.search.tree import Forest
from surebound.search.verdict import Falsified, Outcome, Unknown, Verdict, Verified
from surebound.witness import replay

FEW_DIMENSIONS = 10
"""Boxes with at most this many non-degenerate dimensions are split on the input."""

AT_ONCE = 32
"""Cases whose root boxes are computed in one pass, and roots attacked in one pass."""

LARGE = 10_000
"""Networks with more neurons are attacked before they are bounded."""

SAMPLES = 256
"""Random points per root that tell how far its atoms' bounds are from what the network does."""

MOST_RESTARTS = 1000
"""Starting points per root where the network is small enough for that many."""

ATTACK = 1 << 18
"""Activations per root and step that the starting points may have together, beyond the fewest."""

REFINED = 32
"""Sub-problems per batch whose points are descended from."""

REFINEMENT = Descent(steps=20, stride=0.1, final=0.001, restarts=1)

NEAR = 1e-4
"""Candidates whose float32 distance from a violation is at most this are replayed on the original."""


@dataclass(frozen=True)
class VerifyConfig:
    """How to decide.

    timeout: charged seconds per property. attack: gradient search for witnesses, or none (then the points
    that bounding yields are not tried either). dtype: of the search; proofs are float64 always. memory:
    bytes for one pass. steps, rates: of the alpha and beta optimisation per sub-problem.
    """

    timeout: float = 60.0
    attack: Literal["pgd", "none"] = "pgd"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0
    memory: int = 1 << 30
    descent: Descent = field(default_factory=Descent)
    steps: int = 6
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UsageError(f"the timeout must be more than 0 seconds, got {self.timeout}")


@dataclass(frozen=True)
class Progress:
    """Where a search stands: properties done of total, sub-problems bounded and open, seconds, worst bound."""

    done: int
    total: int
    nodes: int
    open: int
    seconds: float
    bound: float


@dataclass(frozen=True)
class Run:
    """One call of `verify`: what is decided, how, and the ledger that the stages fill."""

    problem: Problem
    properties: Sequence[Property]
    original: Original
    config: VerifyConfig
    ledger: Ledger


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
    prepared = prepare(graph)
    for prop in properties:
        check_fits(prop, prepared.input.numel, prepared.output.numel)
    roots = roots_of(properties, prepared.input.shape)
    of = problem(prepared, roots, chosen.dtype, Memory(chosen.memory))
    original = graph.original if graph.original is not None else GraphOriginal(graph)
    run = Run(of, properties, original, chosen, Ledger(roots.prop.numpy(), len(properties), chosen.timeout))
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
    roots = np.flatnonzero(ledger.prop_of == prop)
    margin = float(ledger.margin[roots].min())
    if ledger.refuted(prop) and np.isfinite(margin) and margin > 0:
        return Verified(margin, tuple(forest.tree(int(root), "crown, float64") for root in roots))
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
        attack(run)
    boxes, atoms = bound_roots(run)
    if attacking and not attack_first:
        attack(run)
    roots = ledger.roots_open()
    report(len(roots), float("nan"))
    if not len(roots):
        return
    engines = {
        "input-split": InputEngine(of, forest),
        "beta-crown": NeuronEngine(of, forest, boxes, gaps(run, atoms), run.config.steps, run.config.rates),
    }
    engine_of = np.where(few_dimensions(of), "input-split", "beta-crown").astype(object)
    pool = Pool(of, forest, engines, engine_of, ledger, (lambda r, x: try_points(run, r, x)) if attacking else None)
    pool.run(roots, report)


def few_dimensions(of: Problem) -> NDArray[np.bool_]:
    """By root: a box with few dimensions that have any width."""
    region = of.roots.region
    if not isinstance(region, Box):
        return np.zeros(of.roots.count, bool)
    moving = merged(region.upper > region.lower, 1).sum(1)
    return (moving <= FEW_DIMENSIONS)[of.roots.within].numpy()


def gaps(run: Run, atoms: Tensor) -> Tensor:
    """How far each atom's bound [R, S] is below the least value found in a sample; positive, 1 for padding."""
    of, roots = run.problem, run.problem.roots
    generator = torch.Generator().manual_seed(run.config.seed)
    found = torch.ones_like(atoms)
    for piece in pieces(roots.count, AT_ONCE):
        at = torch.arange(piece.start, piece.stop)
        points = roots.region.take(roots.within[at]).sample(SAMPLES, generator).float()
        with torch.no_grad():
            outputs = of.network(points.flatten(0, 1)).reshape(len(at), SAMPLES, -1).double()
        least = torch.einsum("gnm,gsm->gns", outputs, roots.spec[at]).amin(1) - roots.threshold[at]
        gap = (least - atoms[at]).clamp(min=1e-6)
        found[at] = torch.where(roots.real[at] & torch.isfinite(gap), gap, torch.ones_like(gap))
    return found


def alarm(ledger: Ledger, roots: NDArray[np.int64]) -> Callable[[], None]:
    """Raises OutOfTime once the properties of `roots` have used up what they may spend together."""
    deadline = time.monotonic() + ledger.left(roots)

    def check() -> None:
        if time.monotonic() > deadline:
            raise OutOfTime(ledger.too_late)

    return check


def bound_roots(run: Run) -> tuple[dict[str, Interval], Tensor]:
    """CROWN boxes of every case, of the nodes that relaxations read, and CROWN bounds [R, S] of all atoms.

    All in float64: these boxes carry every later proof.
    """
    of, ledger, roots = run.problem, run.ledger, run.problem.roots
    if not len(ledger.roots_open()):
        return {}, torch.zeros_like(roots.threshold)
    found: list[dict[str, Interval]] = []
    atoms = torch.zeros_like(roots.threshold)
    for piece in pieces(roots.region.groups, AT_ONCE):
        inside = (roots.within >= piece.start) & (roots.within < piece.stop)
        here = inside.nonzero().squeeze(1)
        with torch.no_grad(), ledger.charge("bound", here.numpy(), "crown"):
            region = roots.region.take(torch.arange(piece.start, piece.stop))
            ctx = replace(of.context(region, torch.float64), alive=alarm(ledger, here.numpy()))
            try:
                boxes = boxes_of(ctx, {}, (BY_WALK,))
            except OutOfTime as error:
                ledger.end(here.numpy(), Unknown(str(error), "timeout"))
                boxes = boxes_of(ctx, {}, ())
            boxes = {name: boxes[name] for name in of.plan.operands}
            found.append(boxes)
            for part in pieces(len(here), 4 * AT_ONCE):
                at = here[part]
                within = roots.within[at] - piece.start
                local = {name: Interval(box.lower[within], box.upper[within]) for name, box in boxes.items()}
                own = of.context(roots.region.take(roots.within[at]), torch.float64)
                lower = walked_lower(own, local, of.output, Dense(of.spec(at, torch.float64)))
                atoms[at] = lower - roots.threshold[at]
                margin = roots.best(atoms[at], at)
                proven = confirmed(margin)
                ledger.close(at.numpy()[proven], margin.numpy()[proven])
    boxes = {
        name: Interval(torch.cat([b[name].lower for b in found]), torch.cat([b[name].upper for b in found]))
        for name in of.plan.operands
    }
    return boxes, atoms


def attack(run: Run) -> None:
    """Projected gradient descent on every open root; the best points are replayed."""
    of, ledger, config = run.problem, run.ledger, run.config
    generator = torch.Generator().manual_seed(config.seed)
    activations = sum(step.site.node.numel for step in of.plan.steps.values())
    restarts = max(config.descent.restarts, min(MOST_RESTARTS, ATTACK // max(1, activations)))
    for piece in pieces(len(open_ := ledger.roots_open()), AT_ONCE):
        here = open_[piece]
        here = here[ledger.undecided(here)]
        if not len(here):
            continue
        region = run.problem.roots.region.take(run.problem.roots.within[torch.from_numpy(here)]).to(torch.float32)
        middle = ((region.lower + region.upper) / 2).unsqueeze(1)
        starts = torch.cat([middle, region.sample(restarts, generator)], 1)
        with ledger.charge("attack", here, "pgd"):
            descend(run, here, region, starts, config.descent)


def descend(run: Run, here: NDArray[np.int64], region: Region, starts: Tensor, descent: Descent) -> None:
    """Gradient descent from starts [len(here), n, *shape] of the given roots, and a replay of the best points."""
    of, ledger, roots = run.problem, run.ledger, run.problem.roots
    at = torch.from_numpy(here)
    spec, threshold, real = roots.spec[at].float(), roots.threshold[at].float(), roots.real[at]
    deadline = time.monotonic() + ledger.left(here)
    points, distances = pgd(
        of.network,
        region,
        lambda outputs: hinge(outputs, spec, threshold, real),
        lambda outputs: worst_row(outputs, spec, threshold, real),
        starts,
        descent,
        lambda: time.monotonic() > deadline,
    )
    replay_near(run, here, points[torch.arange(len(at)), distances.argmin(1)], distances.amin(1))


def try_points(run: Run, roots: NDArray[np.int64], points: Tensor) -> NDArray[np.float64]:
    """Evaluate one point per sub-problem; the nearest to a violation are refined by a short descent.

    Returns the points' distances from a violation, [N].
    """
    of = run.problem
    points = points.float()
    at = torch.from_numpy(np.asarray(roots, np.int64))
    with torch.no_grad():
        outputs = of.network(points).unsqueeze(1)
        spec, threshold = of.roots.spec[at].float(), of.roots.threshold[at].float()
        distance = worst_row(outputs, spec, threshold, of.roots.real[at]).squeeze(1)
    nearest = distance.argsort()[:REFINED]
    here = np.asarray(roots, np.int64)[nearest.numpy()]
    if bool((distance[nearest] <= NEAR).any()):
        replay_near(run, here, points[nearest], distance[nearest])
    here_open = run.ledger.undecided(here)
    if here_open.any():
        keep = nearest[torch.from_numpy(here_open)]
        region = of.roots.region.take(of.roots.within[at[keep]]).to(torch.float32)
        descend(run, here[here_open], region, points[keep].unsqueeze(1), REFINEMENT)
    return distance.double().numpy()


def replay_near(run: Run, roots: NDArray[np.int64], points: Tensor, distances: Tensor) -> None:
    """Replay on the original network the points [N, *shape] that are nearly or truly violations."""
    of, ledger = run.problem, run.ledger
    order = distances.argsort()
    for i in order[distances[order] <= NEAR].tolist():
        root = int(roots[i])
        if not ledger.undecided(np.array([root]))[0]:
            continue
        prop, case = int(of.roots.prop[root]), int(of.roots.case[root])
        witness = replay(points[i].double(), run.properties[prop], case, run.original, of.graph.input.shape)
        if witness is not None:
            ledger.end(np.array([root]), Falsified(witness))
