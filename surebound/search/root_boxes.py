"""Boxes of the cases' intermediate values, from which every sub-problem's are made."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from surebound.ops.record import Interval
from surebound.regions.box import outward


class RootBoxes:
    """Boxes [C, *shape] in float64 by node that relaxations read, and by case how they were obtained.

    They carry every proof. They may be replaced by tighter ones while a search runs.
    """

    def __init__(self, cases: int) -> None:
        self.boxes: dict[str, Interval] = {}
        self.methods = ["none"] * cases

    def put(self, cases: Tensor, boxes: Mapping[str, Interval], method: str) -> None:
        """The boxes of some cases [c]."""
        for name, box in boxes.items():
            assert box.lower.dtype == torch.float64
            if name not in self.boxes:
                lower = torch.full((len(self.methods), *box.lower.shape[1:]), -torch.inf, dtype=torch.float64)
                self.boxes[name] = Interval(lower, -lower)
            for kept, now in zip(self.boxes[name], box, strict=True):
                kept[cases] = now
        for case in cases.tolist():
            self.methods[case] = method

    def take(self, cases: Tensor, dtype: torch.dtype) -> dict[str, Interval]:
        """Those of some cases, repeated as the index says, rounded outward when cast down."""
        different, place = cases.unique(return_inverse=True)
        taken = {}
        for name, box in self.boxes.items():
            lower, upper = box.lower[different], box.upper[different]
            if dtype != torch.float64:
                lower, upper = outward(lower, upper, dtype)
            taken[name] = Interval(lower[place], upper[place])
        return taken
