"""The contract of a region."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor

from surebound.linear.maps import LinearMap

RegionT = TypeVar("RegionT", bound="Region")


def copy_of(region: RegionT, change: Callable[[Tensor], Tensor]) -> RegionT:
    """A region with its tensors changed; they are known to be valid, so nothing is checked again."""
    made = copy(region)
    for name, value in vars(region).items():
        object.__setattr__(made, name, change(value) if isinstance(value, Tensor) else value)
    return made


class Region(ABC):
    """A closed set of inputs for each of G groups.

    All regions know an enclosing box `lower`, `upper` [G, *shape]; they are values.
    """

    lower: Tensor
    upper: Tensor

    @abstractmethod
    def minimise(self, rows: LinearMap) -> Tensor:
        """min over the region of A x, [G, S] (exact up to rounding; never above the true minimum by more)."""

    @abstractmethod
    def minimiser(self, rows: LinearMap) -> Tensor:
        """A point of the region at which A x is (nearly) minimal, [G, S, *shape]."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """A point of the region near x [G, n, *shape] (each group's n points into its own region)."""

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Random points of the region, [G, count, *shape]."""

    @abstractmethod
    def take(self, groups: Tensor) -> Region:
        """The regions of some groups, repeated as the index says."""

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Region:
        """The same region in another dtype or on another device; a box only ever grows by the rounding."""

    def detach(self) -> Region:
        """The same region without gradient history."""
        return copy_of(self, lambda value: value.detach())

    @property
    def groups(self) -> int:
        """G."""
        return self.lower.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return tuple(self.lower.shape[1:])
