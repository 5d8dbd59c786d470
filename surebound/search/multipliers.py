"""Warm-start values of open sub-problems, packed into one growing table."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surebound.bounds.work import Free
from surebound.linear.maps import merged
from surebound.search.slots import Slots, grown


class Multipliers(Slots):
    """Free values, betas and boxes of inputs by slot.

    Free values are kept only for the neurons unstable at the root of their case (positions `unstable`
    [C, U] per relaxed node, padded with 0) and in half precision: any value in [0, 1] is sound.
    """

    def __init__(self, unstable: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.unstable = dict(unstable)
        self.free: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.boxes = torch.zeros(0, 2, 0, dtype=torch.float64)
        self.beta = torch.zeros(0, 1, 0)
        self.logits = torch.zeros(0, 1)
        self.depth = torch.zeros(0, dtype=torch.long)

    def store(
        self,
        case: Tensor,
        free: Free,
        beta: Tensor,
        logits: Tensor,
        depth: NDArray[np.int32],
        boxes: Tensor | None = None,
    ) -> NDArray[np.int32]:
        """Keep the values of N sub-problems of a depth [N]; free [K, N, S, *shape], beta [N, S, D] deepest split first,
        logits [N, K], and boxes of their inputs [N, 2, n] where these are not their case's.
        """
        slots = self.reserve(len(case))
        at = torch.from_numpy(slots).long()
        if boxes is not None:
            self.boxes = grown(self.boxes, (self.capacity, *boxes.shape[1:]), torch.float64)
            self.boxes[at] = boxes
        for name, value in free.items():
            index = self.unstable[name][case]
            kinds, groups, rows = value.shape[:3]
            self.shapes[name] = tuple(value.shape[3:])
            packed = merged(value, 3).gather(3, index[None, :, None].expand(kinds, groups, rows, -1)).half()
            self.free[name] = grown(self.free.get(name), (self.capacity, kinds, rows, index.shape[1]), torch.half)
            self.free[name][at] = packed.transpose(0, 1)
        rows, own = beta.shape[1], beta.shape[2]
        wide = max(own, self.beta.shape[2])
        self.beta = grown(self.beta, (self.capacity, rows, wide), torch.float32)
        self.beta[at] = 0
        self.beta[at, :, :own] = beta.float()
        self.logits = grown(self.logits, (self.capacity, logits.shape[1]), torch.float32)
        self.logits[at] = logits.float()
        self.depth = grown(self.depth, (self.capacity,), torch.long)
        self.depth[at] = torch.from_numpy(depth).long()
        return slots

    def load(
        self, slots: Tensor, case: Tensor, depth: NDArray[np.int32], dtype: torch.dtype
    ) -> tuple[Free, Tensor, Tensor]:
        """Values for sub-problems of a depth [N] below those in `slots`: the splits between first, with multiplier 0.

        Free values of stable neurons, which have no choice, are not kept; they come back as 0.
        """
        free: Free = {}
        for name, kept in self.free.items():
            packed = kept[slots].transpose(0, 1).to(dtype)
            index = self.unstable[name][case][None, :, None].expand(packed.shape)
            zeros = torch.zeros(*packed.shape[:3], prod(self.shapes[name]), dtype=dtype)
            free[name] = zeros.scatter(3, index, packed).reshape(*packed.shape[:3], *self.shapes[name])
        own = torch.from_numpy(depth).long()
        place = torch.arange(int(own.max())) - (own - self.depth[slots]).unsqueeze(1)
        held = nn.functional.pad(self.beta[slots], (0, 1))
        last = held.shape[2] - 1
        at = torch.where((place >= 0) & (place < last), place, last)
        beta = held.gather(2, at.unsqueeze(1).expand(-1, held.shape[1], -1))
        return free, beta, self.logits[slots]
