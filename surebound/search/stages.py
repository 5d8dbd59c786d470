"""A search from its roots on: which engine bounds what, and what is done besides when it gets long.

Choices depend on counts and bounds, never on the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surebound.errors import OutOfTime
from surebound.linear.maps import merged
from surebound.regions import Box
from surebound.search.attack import attack, try_points
from surebound.search.collapse import can_collapse, cost
from surebound.search.collapsed import collapsed_engine
from surebound.search.crown_boxes import FEW_DIMENSIONS
from surebound.search.engine import Engine
from surebound.search.envelopes import EnvelopeEngine, has_one_layer
from surebound.search.inputs import InputEngine, Left
from surebound.search.neurons import NeuronEngine
from surebound.search.pool import Pool
from surebound.search.problem import Problem
from surebound.search.root_bounds import alarm, gaps, tighten_boxes
from surebound.search.roots import Roots
from surebound.search.run import Run
from surebound.search.tree import Forest

REFRESH = 300
"""Networks with at most this many neurons get new intermediate boxes in every sub-problem."""

CLIPPED = 64
"""Of those, networks with at most so many inputs get their boxes of inputs clipped."""

LONG, MEDIUM, LONGER, LONGEST = 0, 32, 512, 4096
"""From so many sub-problems on, beyond two for each of the property's roots, boxes are tightened, cases collapsed (or
networks of one hidden layer bounded by envelopes), the attack is made, and made again from many points.
"""

FAR, HOPELESS = 0.25, 0.6
"""Where CROWN's bound of a root misses a proof by between these parts of the distance to what the network does, boxes
are tightened before the first sub-problem: less is mostly gained by that one's multipliers, and more may be no proof.
"""

DEAR = 4 << 20
"""Where a walk through the network costs so much, boxes cost more than the attack, which then comes before them."""


class Search:
    """The search of a run: engines by name, and by root which of them bounds its sub-problems.

    atoms [R, S]: CROWN's bounds at the roots.
    """

    def __init__(self, run: Run, forest: Forest, atoms: Tensor) -> None:
        of, config = run.problem, run.config
        self.run, self.forest = run, forest
        refreshes = of.neurons <= REFRESH
        clips = refreshes and isinstance(of.roots.region, Box) and of.graph.input.numel <= CLIPPED
        self.within = of.roots.within.numpy()
        by_inputs = (few_dimensions(of) & ~splits_neurons(of, forest))[self.within]
        self.engine_of = np.where(by_inputs, InputEngine.name, NeuronEngine.name).astype(object)
        distances = gaps(run, atoms)
        roots = run.ledger.roots_open()
        tighten_boxes(run, roots[far(of.roots, -atoms / distances)[roots] & ~by_inputs[roots]])
        self.neurons = NeuronEngine(of, forest, run.boxes, distances, config.steps, config.rates, refreshes, clips)
        self.inputs = InputEngine(of, forest, Left(of.graph.input.numel))
        self.engines: dict[str, Engine] = {InputEngine.name: self.inputs, NeuronEngine.name: self.neurons}
        if clips and has_one_layer(of):
            self.engines[EnvelopeEngine.name] = EnvelopeEngine(of, forest)
        self.collapses, self.dear = can_collapse(of.plan), cost(of.plan, of.output) > DEAR
        self.roots_of = np.bincount(run.ledger.prop_of, minlength=len(run.properties))
        self.passed = {limit: np.zeros(len(run.properties), bool) for limit in (LONG, MEDIUM, LONGER, LONGEST)}

    def go(self, waiting: NDArray[np.int64], report: Callable[[int, float], None]) -> None:
        """Branch and bound from some rows of the forest, all that is open of their roots."""
        attacking = self.run.config.attack == "pgd"
        try_on_network = (lambda roots, x: try_points(self.run, roots, x)) if attacking else None
        pool = Pool(
            self.run.problem, self.forest, self.engines, self.engine_of, self.run.ledger, try_on_network, self.persist
        )
        pool.run(waiting, report)

    def persist(self, waiting: NDArray[np.int64]) -> None:
        """Work harder where the search has become long, once for each property."""
        long, medium, longer, longest = map(self.newly, (LONG, MEDIUM, LONGER, LONGEST))
        if self.run.config.attack == "pgd":
            attack(self.run, long if self.dear else longer, self.run.config.descent, 0)
            attack(self.run, longest, self.run.config.descent)
        long, medium = (roots[self.run.ledger.undecided(roots)] for roots in (long, medium))
        tighten_boxes(self.run, long[self.engine_of[long] == NeuronEngine.name])
        self.collapse_cases(long[self.engine_of[long] == InputEngine.name], waiting)
        medium = medium[self.engine_of[medium] == NeuronEngine.name]
        if EnvelopeEngine.name in self.engines:
            self.hand_over(medium, waiting)
        else:
            self.collapse_cases(medium, waiting)

    def newly(self, limit: int) -> NDArray[np.int64]:
        """Open roots of properties that have passed a limit since this was asked last."""
        ledger = self.run.ledger
        due = ~self.passed[limit] & (ledger.nodes >= limit + 2 * self.roots_of)
        if not due.any():
            return np.empty(0, np.int64)
        self.passed[limit] |= due
        roots = ledger.roots_open()
        return roots[due[ledger.prop_of[roots]]]

    def hand_over(self, roots: NDArray[np.int64], waiting: NDArray[np.int64]) -> None:
        """Give some roots to the engine for one hidden layer, which starts from nothing that was kept."""
        self.engine_of[roots] = EnvelopeEngine.name
        rows = waiting[np.isin(self.forest["root"][waiting], roots)]
        self.neurons.slots.release(self.forest["slot"][rows])
        self.forest.columns["slot"][rows] = -1

    def collapse_cases(self, roots: NDArray[np.int64], waiting: NDArray[np.int64]) -> None:
        """Give the cases of some roots engines of their own, where these are cheaper and time suffices to make them."""
        for case in np.unique(self.within[roots]).tolist() if self.collapses else []:
            here = roots[self.within[roots] == case]
            alive, smaller = alarm(self.run.ledger, here), None
            with torch.no_grad(), self.run.ledger.charge("bound", here), suppress(OutOfTime):
                if self.engine_of[here[0]] == InputEngine.name:
                    smaller = self.inputs.collapsed(case, self.run.boxes, alive)
                elif not self.neurons.clips:
                    theirs = waiting[self.within[self.forest["root"][waiting]] == case]
                    smaller = collapsed_engine(self.neurons, self.forest, case, theirs, alive)
                if smaller is not None:
                    name = f"{smaller.name}, case {case}"
                    self.engines[name], self.engine_of[self.within == case] = smaller, name


def far(roots: Roots, missing: Tensor) -> NDArray[np.bool_]:
    """By root: does its best atom miss a proof by between FAR and HOPELESS? missing [R, S]: -lower / gap."""
    least = torch.where(roots.real, missing, torch.inf).amin(1)
    return ((least > FAR) & (least < HOPELESS)).numpy()


def few_dimensions(of: Problem) -> NDArray[np.bool_]:
    """By case: a box with few dimensions that have any width."""
    region = of.roots.region
    if not isinstance(region, Box):
        return np.zeros(region.groups, bool)
    return (merged(region.upper > region.lower, 1).sum(1) <= FEW_DIMENSIONS).numpy()


def splits_neurons(of: Problem, forest: Forest) -> NDArray[np.bool_]:
    """By case: does a tree that is there from the start split something else than the input?"""
    found = np.zeros(of.roots.region.groups, bool)
    inside = (forest["parent"] >= 0) & (forest["node"] != forest.names.index(of.input))
    found[of.roots.within.numpy()[forest["root"][inside]]] = True
    return found
