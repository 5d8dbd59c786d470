"""What is known of the roots: CROWN bounds, and boxes of every case that its search starts from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.bounds.alpha import AlphaCrown, held, optimise
from surebound.bounds.climb import Rates
from surebound.bounds.crown import Context, Tighten, boxes_of, live_of, walked_lower
from surebound.bounds.memory import pieces
from surebound.errors import OutOfMemory, OutOfTime
from surebound.linear.maps import Dense, LinearMap
from surebound.ops.record import Interval
from surebound.regions.box import outward
from surebound.search.crown_boxes import DEAR, crown_boxes
from surebound.search.engine import confirmed
from surebound.search.ledger import Ledger
from surebound.search.problem import Problem
from surebound.search.run import Run
from surebound.search.verdict import Unknown

TIGHTENED = "alpha-crown, float64"
"""How tightened boxes are called."""

AT_ONCE, TOGETHER = 32, 1 << 20
"""Cases whose root boxes are computed in one pass; more while they have at most TOGETHER inputs and neurons."""

STEPS = 12
"""Steps of alpha-CROWN for boxes that are tightened; intermediate rows get a quarter."""

SAMPLES = 32
"""Random points per root that tell how far its atoms' bounds are from what the network does."""


def alarm(ledger: Ledger, roots: NDArray[np.int64]) -> Callable[[], None]:
    """Raises OutOfTime once the properties of `roots` have used up what they may spend together."""
    deadline = time.monotonic() + ledger.left(roots)

    def check() -> None:
        if time.monotonic() > deadline:
            raise OutOfTime(ledger.too_late)

    return check


def bound_roots(run: Run) -> Tensor:
    """CROWN boxes of every case, and CROWN bounds [R, S] of all atoms, in float64."""
    of, ledger, roots = run.problem, run.ledger, run.problem.roots
    atoms = torch.zeros_like(roots.threshold)
    if not len(ledger.roots_open()):
        return atoms
    most = max(AT_ONCE, TOGETHER // (of.neurons + of.graph.input.numel))
    for piece in pieces(roots.region.groups, most):
        here = ((roots.within >= piece.start) & (roots.within < piece.stop)).nonzero().squeeze(1)
        here = here[torch.from_numpy(ledger.undecided(here.numpy()))]
        if not len(here):
            continue
        cases = torch.arange(piece.start, piece.stop)
        with torch.no_grad(), ledger.charge("bound", here.numpy(), "crown"):
            ctx = replace(of.context(roots.region.take(cases), torch.float64), alive=alarm(ledger, here.numpy()))
            try:
                boxes = crown_boxes(ctx, DEAR)
            except OutOfTime as error:
                ledger.end(here.numpy(), Unknown(str(error), "timeout"))
                boxes = boxes_of(ctx, {}, ())
            run.boxes.put(cases, {name: boxes[name] for name in of.plan.operands}, "crown, float64")
            for part in pieces(len(here), 4 * most):
                at = here[part]
                own = of.context(roots.region.take(roots.within[at]), torch.float64)
                local = run.boxes.take(roots.within[at], torch.float64)
                lower = walked_lower(own, local, of.output, Dense(of.spec(at, torch.float64)))
                atoms[at] = lower - roots.threshold[at]
                margin = roots.best(atoms[at], at)
                proven = confirmed(margin)
                ledger.close(at.numpy()[proven], margin.numpy()[proven])
    return atoms


def tighten_boxes(run: Run, roots: NDArray[np.int64]) -> None:
    """Tighten the boxes of the cases of some roots by alpha-CROWN, in float64, unless they have been already.

    Where time or memory does not suffice, they stay as they are.
    """
    if not len(roots):
        return
    of, within = run.problem, run.problem.roots.within
    roots = roots[[run.boxes.methods[case] != TIGHTENED for case in within[torch.from_numpy(roots)].tolist()]]
    if not len(roots):
        return
    for cases in within[torch.from_numpy(roots)].unique().split(AT_ONCE):
        theirs = roots[torch.isin(within[torch.from_numpy(roots)], cases).numpy()]
        with torch.no_grad(), run.ledger.charge("bound", theirs):
            ctx = of.context(of.roots.region.take(cases), torch.float64)
            ctx = replace(ctx, alive=alarm(run.ledger, theirs))
            known = run.boxes.take(cases, torch.float64)
            try:
                boxes = boxes_of(ctx, known, (Tighten(partial(raised_in_single, of), held),))
            except (OutOfTime, OutOfMemory):
                continue
            run.boxes.put(cases, {name: boxes[name] for name in of.plan.operands}, TIGHTENED)


def raised_in_single(of: Problem, ctx: Context, boxes: Mapping[str, Interval], start: str, rows: LinearMap) -> Tensor:
    """Optimised bounds of intermediate rows [G, 2 U] in float64, with free values that were found in float32."""
    live = live_of(ctx, boxes, start, rows)
    single = replace(of.context(ctx.regions[of.input], torch.float32), alive=ctx.alive)
    near = {name: Interval(*outward(*boxes[name], torch.float32)) for name in of.plan.operands if name in boxes}
    found = AlphaCrown(STEPS).raised(single, near, start, rows.holding(rows.coefficients.float()), live, remember=True)
    free = {name: value.double() for name, value in found.free.items()}
    return optimise(ctx, boxes, start, rows, free, 0, Rates(), remember=False, live=live).lower


def gaps(run: Run, atoms: Tensor) -> Tensor:
    """How far each atom's bound [R, S] is below the least value found in a sample, for open roots; positive, 1 for
    others and for padding.
    """
    of, roots = run.problem, run.problem.roots
    generator = torch.Generator().manual_seed(run.config.seed)
    found = torch.ones_like(atoms)
    for at in torch.from_numpy(run.ledger.roots_open()).split(AT_ONCE):
        points = roots.region.take(roots.within[at]).sample(SAMPLES, generator).float()
        with torch.no_grad():
            outputs = of.network(points.flatten(0, 1)).reshape(len(at), SAMPLES, -1).double()
        least = torch.einsum("gnm,gsm->gns", outputs, roots.spec[at]).amin(1) - roots.threshold[at]
        gap = (least - atoms[at]).clamp(min=1e-6)
        found[at] = torch.where(roots.real[at] & torch.isfinite(gap), gap, torch.ones_like(gap))
    return found
