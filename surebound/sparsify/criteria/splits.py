"""What the verifier had to split on: the neurons that stand in the way of a proof."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.data.dataset import Part, in_unit
from surebound.errors import UsageError
from surebound.graph.torch_export import trace
from surebound.measures.verified import EvaluateConfig, evaluate
from surebound.search.run import VerifyConfig
from surebound.sparsify.basis import Basis
from surebound.sparsify.criteria.instability import BOUNDS, bounded_form, by_site, unstable


@dataclass(frozen=True)
class Splits:
    """How often a neuron was split in the search for proofs of the images.

    Each split counts as one; the fraction of images on which CROWN leaves the neuron unstable, halved, orders those
    that were split equally often. timeout: seconds that an image may take at most.
    """

    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise UsageError(f"splits: the timeout must be more than 0 seconds, got {self.timeout}")

    def __call__(self, network: nn.Module, basis: Basis) -> dict[str, Tensor]:
        data = Part(in_unit(basis.data.images), basis.data.labels, basis.data.indices)
        search = VerifyConfig(timeout=self.timeout, attack="none", seed=basis.seed)
        with evaluating(network):
            graph = trace(network, basis.example)
            nodes = bounded_form(graph)[1]
            judged = evaluate(graph, data, basis.eps, config=EvaluateConfig(("clean", "complete"), search=search))
            flags = unstable(graph, data.images, basis.eps, BOUNDS["crown"]())
        counts = {node.inputs[0]: torch.zeros(node.numel, dtype=torch.float64) for node in nodes}
        for outcome in (each.outcome for each in judged):
            for name, places in ({} if outcome is None else outcome.splits).items():
                if name in counts:  # an input may be split, too
                    counts[name] += torch.bincount(torch.from_numpy(places), minlength=len(counts[name]))
        values = [
            counts[node.inputs[0]] + flag.double().mean(0).flatten() / 2
            for node, flag in zip(nodes, flags, strict=True)
        ]
        return by_site(network, graph, basis.example, values)
