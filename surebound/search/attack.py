"""The search for witnesses: gradient descent from many points, and from those at which bounds are attained."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.attacks.pgd import Descent, hinge, pgd, worst_row
from surebound.bounds.memory import pieces
from surebound.regions import Region
from surebound.search.run import Run
from surebound.search.verdict import Falsified
from surebound.witness import replay

AT_ONCE, TOGETHER = 32, 1 << 21
"""Roots attacked in one pass; more while they have at most TOGETHER activations."""

MOST_RESTARTS = 1000
"""Starting points per root where the network is small enough for that many."""

ATTACK, SHARED = 1 << 18, 16
"""Activations per root and step that the starting points may have together, beyond the fewest; where more than SHARED
roots of a property are open, they share what SHARED of them may have.
"""

QUICK = Descent(steps=20, stride=0.5, final=0.01, restarts=3)
"""What is spent on a root before its search; the whole attack comes when that gets long."""

COVERED = 64
"""Random points cover a region of so few inputs well enough for many of them to be worth their time at the start."""

REFINED = 32
"""Points per batch that are descended from."""

CLOSER = 0.9
"""Of the distance of the nearest point so far, for a point to be descended from."""

REFINEMENT = Descent(steps=20, stride=0.1, final=0.001, restarts=1)

PATIENCE, HOPELESS = 4, 0.5
"""After a PATIENCE-th of its steps a descent is given up where it is still farther from a violation than HOPELESS times
what it started from.
"""

NEAR = 1e-4
"""Candidates whose float32 distance from a violation is at most this are replayed on the original."""


def attack(run: Run, roots: NDArray[np.int64], descent: Descent, most: int = MOST_RESTARTS) -> None:
    """Projected gradient descent on the open ones among some roots; the best points are replayed.

    most: starting points per root, where the network is small enough for more than the fewest.
    """
    of, ledger = run.problem, run.ledger
    generator = torch.Generator().manual_seed(run.config.seed)
    activations = sum(step.site.node.numel for step in of.plan.steps.values())
    alike = int(np.bincount(ledger.prop_of[roots], minlength=1).max()) if len(roots) else 1
    each = ATTACK * SHARED // max(SHARED, alike)
    restarts = max(descent.restarts, descent.points // alike, min(most, each // max(1, activations)))
    together = max(AT_ONCE, TOGETHER // max(1, activations * (restarts + 1)))
    for piece in pieces(len(roots), together):
        here = roots[piece]
        here = here[ledger.undecided(here)]
        if not len(here):
            continue
        region = of.roots.region.take(of.roots.within[torch.from_numpy(here)]).to(torch.float32)
        middle = ((region.lower + region.upper) / 2).unsqueeze(1)
        starts = torch.cat([middle, region.sample(restarts, generator)], 1)
        with ledger.charge("attack", here, "pgd"):
            descend(run, here, region, starts, descent)


def quick_attack(run: Run) -> None:
    """`attack` on all open roots, as much as is spent before the search."""
    most = MOST_RESTARTS if run.problem.graph.input.numel <= COVERED else 0
    attack(run, run.ledger.roots_open(), QUICK, most)


def descend(run: Run, here: NDArray[np.int64], region: Region, starts: Tensor, descent: Descent) -> None:
    """Gradient descent from starts [len(here), n, *shape] of the given roots, and a replay of the best points."""
    of, ledger, roots = run.problem, run.ledger, run.problem.roots
    at = torch.from_numpy(here)
    spec, threshold, real = roots.spec[at].float(), roots.threshold[at].float(), roots.real[at]
    points, distances = pgd(
        of.network,
        region,
        lambda outputs, at: hinge(outputs, spec[at], threshold[at], real[at]),
        lambda outputs, at: worst_row(outputs, spec[at], threshold[at], real[at]),
        starts,
        descent,
        hopeful(torch.from_numpy(ledger.prop_of[here]), descent.steps, time.monotonic() + ledger.left(here)),
    )
    replay_near(run, here, points[torch.arange(len(at)), distances.argmin(1)], distances.amin(1))


def hopeful(prop: Tensor, steps: int, deadline: float) -> Callable[[int, Tensor], Tensor]:
    """Which roots a descent goes on for, [G]: those without a violation, whose property [G] has no clear one, and that
    come nearer to one; none after the deadline.
    """
    first = torch.full(prop.shape, torch.inf)

    def goes_on(step: int, distance: Tensor) -> Tensor:
        nonlocal first
        first = distance if step == 0 else first
        done = (distance <= 0) | torch.isin(prop, prop[distance <= -NEAR])
        far = distance > HOPELESS * first if step >= max(1, steps // PATIENCE) else torch.zeros_like(done)
        return ~done & ~far if time.monotonic() <= deadline else torch.zeros_like(done)

    return goes_on


def try_points(run: Run, roots: NDArray[np.int64], points: Tensor) -> NDArray[np.float64]:
    """Evaluate one point per sub-problem; a short descent starts from those nearer to a violation than any before.

    Returns the points' distances from a violation, [N].
    """
    of = run.problem
    points = points.float()
    at = torch.from_numpy(np.asarray(roots, np.int64))
    with torch.no_grad():
        outputs = of.network(points).unsqueeze(1)
        spec, threshold = of.roots.spec[at].float(), of.roots.threshold[at].float()
        distance = worst_row(outputs, spec, threshold, of.roots.real[at]).squeeze(1)
    nearer = distance < CLOSER * torch.from_numpy(run.nearest)[at]
    np.minimum.at(run.nearest, roots, distance.numpy())
    nearest = distance.argsort()[:REFINED]
    nearest = nearest[nearer[nearest]]
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
