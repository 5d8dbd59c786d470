"""One call of `verify`: what is to be decided and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from surebound.attacks.pgd import Descent
from surebound.bounds.climb import Rates
from surebound.errors import UsageError
from surebound.graph.ir import Original
from surebound.properties import Property
from surebound.search.ledger import Ledger
from surebound.search.problem import Problem
from surebound.search.root_boxes import RootBoxes


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
    descent: Descent = Descent(points=48)
    steps: int = 6
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UsageError(f"the timeout must be more than 0 seconds, got {self.timeout}")


@dataclass(frozen=True)
class Run:
    """One call of `verify`: what is decided and how. The stages fill the ledger, the root boxes and `nearest` [R]: how
    near to a violation of each root a point of the search has come.
    """

    problem: Problem
    properties: Sequence[Property]
    original: Original
    config: VerifyConfig
    ledger: Ledger
    boxes: RootBoxes
    nearest: NDArray[np.float64]
