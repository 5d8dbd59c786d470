"""What the losses of one training step share: the images, the forward passes, the moments, the bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from surebound.bounds.crown import BY_WALK, Context, loose, tightened
from surebound.bounds.ibp import sound, unperturbed
from surebound.bounds.memory import Memory
from surebound.bounds.walk import lines_at, lines_of, walk
from surebound.linear.maps import Dense, LinearMap
from surebound.ops.record import Interval, Lines
from surebound.regions import Box
from surebound.training.balls import Ball, Chords, balls
from surebound.training.trainee import Moments, Trainee, moments_of


def images_within(images: Tensor, eps: float) -> Interval:
    """The box of all images within `eps` in l-infinity: [max(x - eps, 0), min(x + eps, 1)]."""
    return Interval((images - eps).clamp(min=0), (images + eps).clamp(max=1))


def margin_rows(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Rows label minus every other class, in ascending order of the others: [B, K - 1, K]."""
    others = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels.unsqueeze(1))
    rows = torch.zeros(len(labels), classes - 1, classes, dtype=like.dtype, device=like.device)
    rows.scatter_(2, others.unsqueeze(2), -1.0)
    return rows.scatter_(2, labels.reshape(-1, 1, 1).expand(-1, classes - 1, 1), 1.0)


@dataclass
class Bounded:
    """The network's bounds over one box, with fixed moments; everything is differentiable in the weights.

    shrink: factor on the upper ends of unstable ReLUs (SABR); below 1 the intervals are no bounds any more.
    """

    trainee: Trainee
    values: Mapping[str, Tensor]
    box: Interval
    shrink: float = 1.0

    @cached_property
    def fixed(self) -> dict[str, Tensor]:
        """Values of the nodes that nothing perturbs."""
        return unperturbed(self.trainee.plan, self.values)

    @cached_property
    def balls(self) -> dict[str, Ball]:
        """IBP of every node."""
        return balls(self.trainee.plan, self.fixed, self.box, self.shrink)

    @property
    def pre_activations(self) -> dict[str, Ball]:
        """IBP of the nodes that activations read, by activation, in order."""
        return {step.site.node.name: self.balls[step.site.node.inputs[0]] for step in self.trainee.plan.relaxed}

    def ibp(self, rows: Tensor) -> Tensor:
        """Lower bounds [B, S] of rows [B, S, K] of the logits, merged with what is affine behind activations."""
        walked = walk(self.trainee.plan, self.fixed, self.trainee.graph.output.name, Dense(rows), None)
        bound = walked.constant
        for name, left in walked.roots.items():
            ends = self.balls[name].ends
            bound = bound + Box(ends.lower, torch.maximum(ends.lower, ends.upper)).minimise(left)
        return bound

    @cached_property
    def context(self) -> Context:
        """What backward walks need."""
        plan = self.trainee.plan
        root = Box(self.box.lower, torch.maximum(self.box.lower, self.box.upper))
        return Context(plan, self.fixed, {plan.roots[0]: root}, Memory())

    @cached_property
    def boxes(self) -> dict[str, Interval]:
        """IBP of the nodes that activations read."""
        names = (step.site.node.inputs[0] for step in self.trainee.plan.relaxed)
        return {name: self.balls[name].ends for name in names}

    def crown(self, rows: Tensor) -> Tensor:
        """CROWN lower bounds [B, S] of rows of the logits, with intermediate bounds by IBP (Zhang et al. 2020)."""
        plan, start = self.trainee.plan, self.trainee.graph.output.name
        return walk(plan, self.fixed, start, Dense(rows), self.lines).minimise(self.context.regions)

    def lines(self, name: str, rows: LinearMap) -> Lines:
        """CROWN's lines of an activation over its operand's ball."""
        step = self.trainee.plan.steps[name]
        over = self.balls[step.site.node.inputs[0]]
        if step.site.node.op == "relu":
            below, slope, intercept = (part.unsqueeze(1) for part in Chords.apply(*over))  # pyright: ignore
            return lines_at(rows, Lines(below, None, slope, intercept))
        return lines_at(rows, lines_of(step, self.fixed, over.ends, None))

    def crown_boxes(self) -> dict[str, Interval]:
        """CROWN bounds of the nodes that activations read, each on boxes by IBP; unstable neurons only are walked."""
        known = {name: sound(box) for name, box in self.boxes.items()}
        masks = {name: loose(self.context, name, box) for name, box in known.items()}
        return {name: tightened(self.context, known, name, known[name], masks[name], BY_WALK) for name in known}


@dataclass
class Scene:
    """One step: images [B, C, H, W] in [0, 1], labels [B], the radius now and the radius aimed at.

    The network arrives in training mode. Its norms use the moments of the last `forward` (what is passed last in
    training mode wins); losses that need moments before anything was passed pass the clean images.
    """

    trainee: Trainee
    images: Tensor
    labels: Tensor
    eps: float
    target: float
    generator: torch.Generator
    _clean: Tensor | None = None
    _given: Mapping[str, Tensor] | None = None
    _moments: Moments | None = None
    _bounded: dict[tuple[object, ...], Bounded] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The module."""
        return self.trainee.network

    @property
    def ramp(self) -> float:
        """The radius now as a part of the radius aimed at; 1 when there is none."""
        return self.eps / self.target if self.target > 0 else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits in training mode; bounds from now on use this pass's moments."""
        logits, self._given = self.trainee.forward(x)
        self._moments = None
        self._bounded.clear()
        return logits

    @property
    def clean(self) -> Tensor:
        """Logits of the images, passed once."""
        if self._clean is None:
            self._clean = self.forward(self.images)
        return self._clean

    @property
    def moments(self) -> Moments:
        """Moments of the last pass."""
        if self._given is None:
            _ = self.clean
        assert self._given is not None
        if self._moments is None:
            self._moments = moments_of(self._given)
        return self._moments

    def over(self, box: Interval, shrink: float = 1.0, scales: bool = True) -> Bounded:
        """The bounds over a box, with the moments there are now. scales False: norms' scales get no gradient, not
        even through the moments of later norms, which are held fixed.
        """
        if scales:
            values = self.trainee.values(self.moments)
        else:
            still = {name: value.detach() for name, value in self.moments.items()}
            values = self.trainee.values(still, self.trainee.scales.values())
        return Bounded(self.trainee, values, box, shrink)

    def within(self, eps: float, scales: bool = True) -> Bounded:
        """The bounds over all images within `eps`, computed once per pass."""
        key = (eps, scales)
        if key not in self._bounded:
            self._bounded[key] = self.over(images_within(self.images, eps), scales=scales)
        return self._bounded[key]

    @property
    def bounded(self) -> Bounded:
        """The bounds over all images within the radius now."""
        return self.within(self.eps)

    @property
    def margins(self) -> Tensor:
        """Rows of the margins [B, K - 1, K]."""
        return margin_rows(self.labels, self.trainee.graph.output.numel, self.images)
