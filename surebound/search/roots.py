"""The roots of a search: one per (property, case, disjunct), with their data stacked and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.errors import SpecError
from surebound.properties import Property
from surebound.regions import Box, LpBall, Region


@dataclass(frozen=True)
class Roots:
    """R roots that share C cases (input regions).

    region: of the C cases. prop, case, disjunct [R]: where each root comes from; within [R]: its position
    among the C cases. spec [R, S, m] and threshold [R, S]: rows c y - t, padded; real [R, S] marks the rows
    that exist. A root is refuted when one of its real rows has a lower bound above 0.
    """

    region: Region
    prop: Tensor
    case: Tensor
    disjunct: Tensor
    within: Tensor
    spec: Tensor
    threshold: Tensor
    real: Tensor

    @property
    def count(self) -> int:
        """R."""
        return len(self.prop)

    def best(self, rows: Tensor, at: Tensor) -> Tensor:
        """The bound [N] that counts for roots `at`, from the bounds [N, S] of all rows: the best real one.

        Padded rows and NaN never count.
        """
        usable = self.real[at] & ~torch.isnan(rows)
        return torch.where(usable, rows, torch.full_like(rows, -torch.inf)).amax(-1)


def stack_regions(regions: Sequence[Region], shape: tuple[int, ...]) -> Region:
    """One region value for several single ones of the same kind."""
    first = regions[0]
    if len({type(region) for region in regions}) > 1 or len({r.p for r in regions if isinstance(r, LpBall)}) > 1:
        raise SpecError("the regions of one call must be of one kind: all boxes, or all balls of one norm")
    if isinstance(first, LpBall):
        balls = [region for region in regions if isinstance(region, LpBall)]
        parts = (torch.cat([getattr(ball, name).reshape(1, *shape) for ball in balls]) for name in
                 ("centre", "lower", "upper"))  # fmt: skip
        centre, lower, upper = parts
        return LpBall(centre, torch.cat([ball.radius for ball in balls]), first.p, lower, upper)
    lower = torch.cat([region.lower.reshape(1, *shape) for region in regions])
    return Box(lower, torch.cat([region.upper.reshape(1, *shape) for region in regions]))


def roots_of(properties: Sequence[Property], shape: tuple[int, ...]) -> Roots:
    """Stack the properties' cases and disjuncts; all regions must be of one kind."""
    regions: list[Region] = []
    origin: list[tuple[int, int, int, int]] = []
    specs: list[Tensor] = []
    limits: list[Tensor] = []
    for p, prop in enumerate(properties):
        for c, case in enumerate(prop.cases):
            for d, disjunct in enumerate(case.disjuncts):
                origin.append((p, c, d, len(regions)))
                specs.append(disjunct.C)
                limits.append(disjunct.t)
            regions.append(case.region)
    rows = max(len(t) for t in limits)
    spec = torch.zeros(len(specs), rows, specs[0].shape[1], dtype=torch.float64)
    threshold = torch.zeros(len(specs), rows, dtype=torch.float64)
    real = torch.zeros(len(specs), rows, dtype=torch.bool)
    for r, (matrix, limit) in enumerate(zip(specs, limits, strict=True)):
        spec[r, : len(limit)], threshold[r, : len(limit)], real[r, : len(limit)] = matrix, limit, True
    prop_, case_, disjunct_, within = (torch.tensor(column) for column in zip(*origin, strict=True))
    return Roots(stack_regions(regions, shape), prop_, case_, disjunct_, within, spec, threshold, real)
