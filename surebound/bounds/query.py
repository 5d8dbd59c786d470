"""What is asked of a bounding method and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor

from surebound.graph.ir import Graph
from surebound.ops.record import Interval
from surebound.regions import Region


def nothing() -> None:
    """Nobody is waiting."""


@dataclass(frozen=True)
class Query:
    """Lower bounds are asked of spec rows C y, for G groups at once.

    graph, params: the network and its tensors (`graph.values(dtype)`). regions: by root node, any node may
    be a root. spec: [G or 1, S, *output shape] over the node `start` (default: the output).
    known: element-wise boxes [G, *shape] already established, by node; they are intersected.
    alive: called before every walk; it may raise OutOfTime to end the work.
    """

    graph: Graph
    params: Mapping[str, Tensor]
    regions: Mapping[str, Region]
    spec: Tensor
    start: str | None = None
    known: Mapping[str, Interval] = field(default_factory=dict)
    alive: Callable[[], None] = nothing


class Stats(NamedTuple):
    """Counts a method reports: neurons of non-affine ops, and those left unstable in each group [G]."""

    neurons: int
    unstable: Tensor


@dataclass(frozen=True)
class Bounds:
    """lower [G, S]; boxes [G, *shape] by node; warm: free values by relaxed node, to start from again.

    count: counts what `stats` says.
    """

    lower: Tensor
    boxes: Mapping[str, Interval]
    warm: Mapping[str, Tensor]
    count: Callable[[], Stats]

    @cached_property
    def stats(self) -> Stats:
        """Counts, made when first asked for."""
        return self.count()


class Method(Protocol):
    """A bounding method: a frozen configuration with one function."""

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        """Sound lower bounds of the query's rows."""
        ...
