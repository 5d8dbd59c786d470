"""Axis-parallel boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.errors import SpecError
from surebound.linear.maps import LinearMap
from surebound.linear.relaxed import least
from surebound.regions.region import Region


def outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cast a box to `dtype`, rounding down below and up above, so that nothing is lost."""
    low, high = lower.to(dtype), upper.to(dtype)
    inf = torch.full((), torch.inf, dtype=dtype, device=lower.device)
    low = torch.where(low.to(lower.dtype) > lower, torch.nextafter(low, -inf), low)
    return low, torch.where(high.to(upper.dtype) < upper, torch.nextafter(high, inf), high)


@dataclass(frozen=True)
class Box(Region):
    """{x : lower <= x <= upper}; tensors [G, *shape]."""

    lower: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    upper: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise SpecError(
                f"a box needs limits of one shape, got {tuple(self.lower.shape)} and {tuple(self.upper.shape)}"
            )
        if not bool((self.lower <= self.upper).all()):
            bad = int((~(self.lower <= self.upper)).flatten().nonzero()[0])
            raise SpecError(
                f"the region is empty: at flat position {bad} the lower limit "
                f"{float(self.lower.flatten()[bad])!r} is not at most the upper limit "
                f"{float(self.upper.flatten()[bad])!r}; correct the limits (NaN counts as empty)"
            )

    @property
    def centre(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    def minimise(self, rows: LinearMap) -> Tensor:
        """max(A, 0) lower + min(A, 0) upper  (auto_LiRPA, Xu et al. 2020, section 3.2 with p = inf)."""
        return least(rows, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def minimiser(self, rows: LinearMap) -> Tensor:
        return torch.where(rows.dense() > 0, self.lower.unsqueeze(1), self.upper.unsqueeze(1))

    def project(self, x: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(x, self.upper.unsqueeze(1)), self.lower.unsqueeze(1))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        unit = torch.rand(self.groups, count, *self.shape, dtype=self.lower.dtype, generator=generator)
        unit = unit.to(self.lower.device)
        return self.project(self.lower.unsqueeze(1) + unit * (self.upper - self.lower).unsqueeze(1))

    def take(self, groups: Tensor) -> Box:
        return Box(self.lower[groups], self.upper[groups])

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Box:
        if dtype == self.lower.dtype:
            return self if device is None else Box(self.lower.to(device), self.upper.to(device))
        low, high = outward(self.lower, self.upper, dtype)
        return Box(low.to(device), high.to(device)) if device is not None else Box(low, high)
