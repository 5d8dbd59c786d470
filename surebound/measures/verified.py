"""Verified accuracy: for how many images is it proven that no allowed change alters the right answer?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surebound.data.dataset import Part
from surebound.errors import DataError
from surebound.graph.ir import Graph
from surebound.properties import robust
from surebound.search.verdict import Falsified, Outcome, Unknown, Verified
from surebound.search.verify import Progress, VerifyConfig, verify

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
    progress: Callable[[Progress], None] | None = None,
) -> list[Judged]:
    """Decide l-infinity robustness with radius eps (in units of pixels) for each image, all in one search.

    The graph's original network answers first; images that it gets wrong count as "wrong".
    """
    answers = predictions(graph, part.images)
    right = (answers == part.labels).nonzero().squeeze(1).tolist()
    classes = graph.output.numel
    asked = [robust(part.images[i], int(part.labels[i]), eps, classes) for i in right]
    outcomes = dict(zip(right, verify(graph, asked, config, progress), strict=True))
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
