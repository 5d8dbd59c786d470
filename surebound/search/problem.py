"""Everything a search knows about its network and its roots, made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from surebound.bounds.crown import Context
from surebound.bounds.ibp import unperturbed
from surebound.bounds.memory import Memory
from surebound.bounds.plan import Plan, plan
from surebound.graph.ir import Graph, evaluate
from surebound.linear.maps import merged
from surebound.linear.sparse import know_fixed
from surebound.regions import Region
from surebound.search.needed import needed
from surebound.search.roots import Roots


@dataclass(frozen=True)
class Problem:
    """A prepared graph with one input, its plan, its tensors by dtype, the roots, their cases' regions by dtype, the
    memory to use, and which intermediate values the roots' rows need.
    """

    graph: Graph
    plan: Plan
    params: Mapping[torch.dtype, Mapping[str, Tensor]]
    values: Mapping[torch.dtype, Mapping[str, Tensor]]
    roots: Roots
    regions: Mapping[torch.dtype, Region]
    memory: Memory
    dtype: torch.dtype
    needed: Mapping[str, Tensor]

    @property
    def input(self) -> str:
        """Name of the input node."""
        return self.graph.input.name

    @property
    def output(self) -> str:
        """Name of the output node."""
        return self.graph.output.name

    def context(self, region: Region, dtype: torch.dtype) -> Context:
        """A bounding context for the given region."""
        regions = {self.input: region.to(dtype)}
        return Context(self.plan, self.values[dtype], regions, self.memory, needed=self.needed)

    def network(self, x: Tensor) -> Tensor:
        """Outputs [N, m] for inputs [N, *shape], in the inputs' dtype."""
        return merged(evaluate(self.graph, self.params[x.dtype], x)[self.output], 1)

    def spec(self, at: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of roots `at` over the output node, [N, S, *output shape]."""
        spec = self.roots.spec[at].to(dtype)
        return spec.reshape(*spec.shape[:2], *self.graph.output.shape)

    @property
    def widest(self) -> int:
        """Values of the widest perturbed node per sample."""
        return max(prod(self.graph[name].shape) for name in self.plan.order(self.output))

    @property
    def neurons(self) -> int:
        """Neurons of non-affine ops per sample."""
        return sum(step.site.node.numel for step in self.plan.relaxed)


def problem(graph: Graph, roots: Roots, dtype: torch.dtype, memory: Memory) -> Problem:
    """Fetch the parameters once per dtype and plan the passes."""
    of = plan(graph, (graph.input.name,))
    params = {kind: detached(graph.values(kind)) for kind in {dtype, torch.float32, torch.float64}}
    values = {kind: unperturbed(of, tensors) for kind, tensors in params.items()}
    for tensors in values.values():
        know_fixed(tensors.values())
    wide = values[torch.float64]
    spec = roots.spec.reshape(*roots.spec.shape[:2], *graph.output.shape)
    regions = {kind: roots.region.to(kind) for kind in params}
    return Problem(graph, of, params, values, roots, regions, memory, dtype, needed(of, wide, graph.output.name, spec))


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without gradient history: a search never differentiates by parameters."""
    return {name: tensor.detach() for name, tensor in tensors.items()}
