"""Verified accuracy: for how many images is it proven that no allowed change alters the right answer?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surebound.attacks.adversarial import Pgd
from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.graph.ir import Graph, evaluate
from surebound.properties import Property, robust
from surebound.search.verdict import Falsified, Outcome, Unknown, Verified
from surebound.search.verify import Progress, VerifyConfig, verify
from surebound.witness import replay

Status = Literal["wrong", "falsified", "verified", "unknown"]


@dataclass(frozen=True)
class Judged:
    """One image: its position in the source, label, the network's answer, and what was decided about it.

    outcome is None for images that the network gets wrong to begin with: they are not searched.
    """

    index: int
    label: int
    prediction: int
    status: Status
    outcome: Outcome | None = None

    @property
    def seconds(self) -> float:
        """Charged time, 0 for images that were not searched."""
        return 0.0 if self.outcome is None else self.outcome.charged

    @property
    def nodes(self) -> int:
        """Sub-problems bounded."""
        return 0 if self.outcome is None else self.outcome.nodes

    @property
    def reason(self) -> str:
        """Why it is undecided, or ""."""
        return self.outcome.verdict.reason if self.outcome and isinstance(self.outcome.verdict, Unknown) else ""


def judge(
    graph: Graph,
    part: Part,
    eps: float,
    config: VerifyConfig,
    attack: Pgd | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Judged]:
    """Decide l-infinity robustness with radius eps (in units of pixels) for each image.

    The graph's original network answers first; images that it gets wrong count as "wrong". attack: run on all
    others at once, and what it finds and the original network confirms is not searched: one descent per image
    costs less than the search's own, which is one per wrong class. What is left is decided in one search.
    """
    answers = predictions(graph, part.images)
    right = (answers == part.labels).nonzero().squeeze(1)
    asked = {int(i): robust(part.images[i], int(part.labels[i]), eps, graph.output.numel) for i in right}
    outcomes = {} if attack is None else falsified(graph, part.take(right), list(asked.items()), eps, attack)
    left = [i for i in asked if i not in outcomes]
    outcomes |= dict(zip(left, verify(graph, [asked[i] for i in left], config, progress), strict=True))
    return [
        Judged(
            int(part.indices[i]),
            int(part.labels[i]),
            int(answers[i]),
            status_of(outcomes[i]) if i in outcomes else "wrong",
            outcomes.get(i),
        )
        for i in range(len(part))
    ]


def falsified(
    graph: Graph, part: Part, asked: Sequence[tuple[int, Property]], eps: float, attack: Pgd
) -> dict[int, Outcome]:
    """Outcomes of the images for which the attack finds a witness, by the number given with each property."""
    if graph.original is None or not len(part):
        return {}
    params = {name: value.detach() for name, value in graph.values(part.images.dtype).items()}
    began = time.monotonic()
    points = attack(lambda x: evaluate(graph, params, x)[graph.output.name], part.images, part.labels, eps)
    share = (time.monotonic() - began) / len(part)
    found: dict[int, Outcome] = {}
    for point, (number, prop) in zip(points, asked, strict=True):
        witness = replay(point, prop, 0, graph.original, graph.input.shape)
        if witness is not None:
            found[number] = Outcome(Falsified(witness), 0, "pgd", {"attack": share}, share)
    return found


def predictions(graph: Graph, images: Tensor) -> Tensor:
    """The original network's answers [N] (the first of equal logits; -1 where a logit is not finite)."""
    if graph.original is None:
        raise DataError("the graph has no original network to ask; trace a module or load a file")
    with torch.no_grad():
        logits = graph.original(images).flatten(1)
    return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)


def status_of(outcome: Outcome) -> Status:
    """What a verdict means for an image."""
    if isinstance(outcome.verdict, Verified):
        return "verified"
    return "falsified" if isinstance(outcome.verdict, Falsified) else "unknown"


def shares(judged: Sequence[Judged]) -> dict[str, float]:
    """The fraction of images by status; raises DataError without images."""
    if not judged:
        raise DataError("verified accuracy needs at least one image")
    counts = Counter(item.status for item in judged)
    return {status: counts[status] / len(judged) for status in ("verified", "unknown", "falsified", "wrong")}
