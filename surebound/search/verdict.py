"""Verdicts are typed values with their evidence; nothing else counts as an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from surebound.search.tree import Tree
from surebound.witness import Witness


@dataclass(frozen=True)
class Verified:
    """The property holds. margin: the least float64 lower bound over all leaves, finite and positive; where boxes of
    inputs were clipped, over what was left of them (elsewhere some atom is just positive). Leaves whose splits
    cannot be met have none.

    trees: one per case and disjunct of the property, its splits and how its root was bounded.
    """

    margin: float
    trees: tuple[Tree, ...] = ()
    name = "unsat"
    reason = "every sub-problem is bounded above zero in float64"


@dataclass(frozen=True)
class Falsified:
    """The property is violated by a witness that the original network confirmed."""

    witness: Witness
    name = "sat"
    reason = "the network itself confirms the counterexample"


@dataclass(frozen=True)
class Unknown:
    """Not decided. kind: what ended the work; reason: in words."""

    reason: str
    kind: Literal["unknown", "timeout", "memory"] = "unknown"

    @property
    def name(self) -> str:
        """As printed."""
        return self.kind


Verdict = Verified | Falsified | Unknown


@dataclass(frozen=True)
class Outcome:
    """What `verify` answers for one property.

    nodes: sub-problems bounded. engine: what decided it. seconds: wall time by stage ("attack", "bound",
    "search"). charged: this instance's share of the batches it took part in, in seconds. splits: by the name of the
    node whose value was split the flat positions, one for each split.
    """

    verdict: Verdict
    nodes: int
    engine: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    charged: float = 0.0
    splits: Mapping[str, NDArray[np.int64]] = field(default_factory=dict, repr=False)
