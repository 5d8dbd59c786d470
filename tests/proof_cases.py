"""A property that takes a search to prove, and its proof."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from nets import tiny
from torch import Tensor

from surebound.graph.ir import Graph, evaluate
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box
from surebound.search.problem import detached
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Verified
from surebound.search.verify import verify

F64 = torch.float64


def outputs(graph: Graph, x: Tensor) -> Tensor:
    return evaluate(graph, detached(graph.values(F64)), x)[graph.output.name]


def search_by(how: str, patch: pytest.MonkeyPatch) -> None:
    """Split inputs or neurons."""
    patch.setattr("surebound.search.stages.FEW_DIMENSIONS", 10 if how == "inputs" else 0)


@cache
def proven(how: str) -> tuple[Graph, Property, Verified]:
    """A network of two inputs and outputs, a property with two disjuncts of which one is easy, and its proof."""
    graph = tiny(0, (2, 16, 16, 2))
    box = Box(torch.full((1, 2), -4.0, dtype=F64), torch.full((1, 2), 4.0, dtype=F64))
    axis = torch.linspace(-4, 4, 400, dtype=F64)
    y = outputs(graph, torch.cartesian_prod(axis, axis))
    row = torch.tensor([[1.0, -1.0]], dtype=F64)
    least = (y @ row[0]).min()
    hard = Disjunct(row, (least - 0.02).reshape(1), ("",))
    easy = Disjunct(row, (least - 1e6).reshape(1), ("",))
    prop = Property((Case(box, (easy, hard), None),))
    with pytest.MonkeyPatch.context() as patch:
        search_by(how, patch)
        (found,) = verify(graph, [prop], VerifyConfig(timeout=60.0, attack="none"))
    assert isinstance(found.verdict, Verified)
    return graph, prop, found.verdict
