"""Training objectives: one frozen dataclass each, by the name that recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from surebound.training.objectives.adversarial import Fgsm, NFgsm, Pgd, Trades
from surebound.training.objectives.certified import CrownIbp, Ibp
from surebound.training.objectives.expressive import CcIbp, ExpIbp, MtlIbp, Sabr
from surebound.training.objectives.regularisers import (
    CrownStability,
    FastIbp,
    Gates,
    L1Activations,
    L1Scales,
    L1Weights,
    NrsLoss,
    NrsReleased,
    RsLoss,
)
from surebound.training.objectives.standard import Standard

OBJECTIVES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "standard": Standard,
        "fgsm": Fgsm,
        "n-fgsm": NFgsm,
        "pgd": Pgd,
        "trades": Trades,
        "ibp": Ibp,
        "crown-ibp": CrownIbp,
        "sabr": Sabr,
        "cc-ibp": CcIbp,
        "mtl-ibp": MtlIbp,
        "exp-ibp": ExpIbp,
    }
)
"""What can be trained for."""

TERMS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "l1-weights": L1Weights,
        "l1-activations": L1Activations,
        "l1-scales": L1Scales,
        "fast-ibp": FastIbp,
        "gates": Gates,
        "rs": RsLoss,
        "nrs": NrsLoss,
        "nrs-released": NrsReleased,
        "crown-stability": CrownStability,
    }
)
"""What can be added, each with a weight."""
