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
        self.cast: dict[torch.dtype, dict[str, Interval]] = {}
        self.methods = ["none"] * cases

    def put(self, cases: Tensor, boxes: Mapping[str, Interval], method: str) -> None:
        """The boxes of some cases [c]."""
        for name, box in boxes.items():
            assert box.lower.dtype == torch.float64
            shape = (len(self.methods), *box.lower.shape[1:])
            old = self.boxes.get(name)
            if old is None:
                old = Interval(
                    torch.full(shape, -torch.inf, dtype=torch.float64), torch.full(shape, torch.inf).double()
                )
            self.boxes[name] = Interval(*(was.index_copy(0, cases, now) for was, now in zip(old, box, strict=True)))
        self.cast.clear()
        for case in cases.tolist():
            self.methods[case] = method

    def take(self, cases: Tensor, dtype: torch.dtype) -> dict[str, Interval]:
        """Those of some cases, repeated as the index says, rounded outward when cast down."""
        if dtype not in self.cast:
            self.cast[dtype] = {name: Interval(*outward(*box, dtype)) for name, box in self.boxes.items()}
        return {name: Interval(box.lower[cases], box.upper[cases]) for name, box in self.cast[dtype].items()}
