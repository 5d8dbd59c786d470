"""A graph built by hand is its own original."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.graph.ir import Graph, evaluate


@dataclass(frozen=True)
class GraphOriginal:
    """Runs a graph in the dtype of its parameters (float32 where it has none)."""

    graph: Graph

    @property
    def dtype(self) -> torch.dtype:
        kinds = {t.dtype for t in self.graph.parameters().values() if t.is_floating_point()}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            values = self.graph.values(self.dtype, x.device)
            return evaluate(self.graph, values, x.to(self.dtype))[self.graph.output.name]
