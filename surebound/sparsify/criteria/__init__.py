"""What decides which neurons, weights or channels go: one frozen dataclass each, by the name that recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from surebound.sparsify.criteria.channels import Filters, Nrs, RandomChannels, Refill, Slimming
from surebound.sparsify.criteria.hydra import Hydra
from surebound.sparsify.criteria.instability import Unstable
from surebound.sparsify.criteria.significance import Gap, RandomNeurons, Sap, Vap
from surebound.sparsify.criteria.splits import Splits
from surebound.sparsify.criteria.weights import Magnitude, RandomWeights, Snip, SnipTrained, Taylor

SIGNIFICANCE: Mapping[str, type[Any]] = MappingProxyType({"gap": Gap, "sap": Sap, "vap": Vap, "random": RandomNeurons})
"""How much a neuron matters; grafting spares those that matter."""

INSTABILITY: Mapping[str, type[Any]] = MappingProxyType({"bounds": Unstable, "splits": Splits})
"""How much a neuron stands in the way of proofs; grafting takes those that do."""

WEIGHTS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "magnitude": Magnitude,
        "random": RandomWeights,
        "snip": Snip,
        "snip-trained": SnipTrained,
        "taylor": Taylor,
        "hydra": Hydra,
    }
)
"""How much a weight matters."""

CHANNELS: Mapping[str, type[Any]] = MappingProxyType(
    {"slimming": Slimming, "filters": Filters, "refill": Refill, "nrs": Nrs, "random-channels": RandomChannels}
)
"""How much a channel matters."""
