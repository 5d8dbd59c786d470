"""Linear maps from a node's value to bound rows.

A map stands for A of shape [G, S, *shape]: G groups (samples, or packed rows), S rows per group, and the
shape of the node it reads. It stores `coefficients` [G, S, *support] at those entries of the node that a
row may read; `at` brings any value of the node onto the same entries, so that all arithmetic is
element-wise on the support, whatever the form. Maps are values: no operation writes into its operands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


def merged(value: Tensor, lead: int) -> Tensor:
    """All axes from `lead` on as one, of size 1 for a scalar: [*lead sizes, numel]."""
    return value.reshape(*value.shape[:lead], -1)


def contract(a: Tensor, v: Tensor) -> Tensor:
    """Sum over the last axis of a [G, S, n] times v [G or 1, S or 1, n or 1]: [G, S]."""
    if v.shape[2] != a.shape[2]:
        v = v.expand(*v.shape[:2], a.shape[2])
    if v.shape[1] > 1:
        return torch.linalg.vecdot(a, v)
    return a @ v[0, 0] if v.shape[0] == 1 else torch.bmm(a, v.transpose(1, 2)).squeeze(-1)


def picked(value: Tensor, groups: Tensor, rows: Tensor, lead: int = 0) -> Tensor:
    """Of a value [*lead, G or 1, S or 1, ...] the groups [g, 1] and their rows [g, s]: [*lead, g or 1, s or 1, ...].

    A whole axis of size 1 stands for every group or row and stays.
    """
    before = (slice(None),) * lead
    if value.shape[lead] == 1 and value.shape[lead + 1] == 1:
        return value
    if value.shape[lead + 1] == 1:
        return value[(*before, groups.squeeze(1))]
    return value[(*before, groups if value.shape[lead] > 1 else torch.zeros_like(groups), rows)]


class LinearMap(ABC):
    """A[g, s, :] applied to a node's value; a form defines its support and what follows from it."""

    coefficients: Tensor
    shape: tuple[int, ...]

    @abstractmethod
    def at(self, value: Tensor) -> Tensor:
        """A value [G or 1, S or 1, *shape] of the node on the support, [G or 1, S or 1, *support].

        Axes of the node may have size 1 (broadcast). Where the support hangs over the node's edge, 0.
        """

    @abstractmethod
    def holding(self, coefficients: Tensor) -> LinearMap:
        """Other coefficients on the same support."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The coefficients [G, S, *shape]."""

    @abstractmethod
    def reshaped(self, shape: tuple[int, ...]) -> LinearMap:
        """The same coefficients for the node's value in another shape."""

    @abstractmethod
    def pick(self, groups: Tensor, rows: Tensor) -> LinearMap:
        """Only groups [g, 1] and their rows [g, s]."""

    def take(self, rows: Tensor) -> LinearMap:
        """Only the given rows (indices into S) of every group."""
        return self.pick(torch.arange(self.rows[0], device=self.device).unsqueeze(1), rows.unsqueeze(0))

    def groups(self, at: Tensor) -> LinearMap:
        """Only the groups [g]."""
        return self.pick(at.unsqueeze(1), torch.arange(self.rows[1], device=self.device).unsqueeze(0))

    def plus(self, other: LinearMap) -> LinearMap | None:
        """The sum where this form can hold it, else None."""
        return None

    @property
    def rows(self) -> tuple[int, int]:
        """(G, S)."""
        return self.coefficients.shape[0], self.coefficients.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the coefficients."""
        return self.coefficients.numel() * self.coefficients.element_size()

    @property
    def dtype(self) -> torch.dtype:
        """Of the coefficients."""
        return self.coefficients.dtype

    @property
    def device(self) -> torch.device:
        """Of the coefficients."""
        return self.coefficients.device

    def dot(self, value: Tensor) -> Tensor:
        """A v, [G, S]; value [G or 1, S or 1, *shape]."""
        return contract(merged(self.coefficients, 2), self.flat(value))

    def absdot(self, radius: Tensor) -> Tensor:
        """|A| r, [G, S]."""
        return contract(merged(self.coefficients.abs(), 2), self.flat(radius))

    def flat(self, value: Tensor) -> Tensor:
        """A value on the support with one axis for all entries."""
        here = self.at(value)
        if here.shape[2:] != self.coefficients.shape[2:]:
            here = here.expand(*here.shape[:2], *self.coefficients.shape[2:])
        return merged(here, 2)

    def scaled(self, factor: Tensor) -> LinearMap:
        """A times a value of the node, element-wise."""
        return self.holding(self.coefficients * self.at(factor))

    def negated(self) -> LinearMap:
        """-A."""
        return self.holding(-self.coefficients)

    def __add__(self, other: LinearMap) -> LinearMap:
        total = self.plus(other)
        if total is None:
            total = other.plus(self)
        return Dense(self.dense() + other.dense()) if total is None else total


@dataclass(frozen=True)
class Dense(LinearMap):
    """Every coefficient stored: [G, S, *shape]."""

    coefficients: Tensor

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(self.coefficients.shape[2:])

    def at(self, value: Tensor) -> Tensor:
        return value

    def holding(self, coefficients: Tensor) -> Dense:
        return Dense(coefficients)

    def dense(self) -> Tensor:
        return self.coefficients

    def reshaped(self, shape: tuple[int, ...]) -> Dense:
        return Dense(self.coefficients.reshape(*self.rows, *shape))

    def pick(self, groups: Tensor, rows: Tensor) -> Dense:
        return Dense(self.coefficients[groups, rows])


@dataclass(frozen=True)
class Rows(LinearMap):
    """One coefficient per row: A[g, s, :] = coefficients[g, s] at flat position index[g, s], zero elsewhere."""

    index: Tensor
    coefficients: Tensor
    shape: tuple[int, ...]

    def at(self, value: Tensor) -> Tensor:
        groups, rows = self.rows
        if value.shape[2:] != self.shape:
            value = value.expand(*value.shape[:2], *self.shape)
        entries = merged(value, 2)
        if entries.shape[1] == 1:
            return entries[:, 0].expand(groups, -1).gather(1, self.index)
        return entries.expand(groups, rows, -1).gather(2, self.index.unsqueeze(-1)).squeeze(-1)

    def holding(self, coefficients: Tensor) -> Rows:
        return Rows(self.index, coefficients, self.shape)

    def dense(self) -> Tensor:
        zeros = torch.zeros(*self.rows, prod(self.shape), dtype=self.dtype, device=self.device)
        filled = zeros.scatter(2, self.index.unsqueeze(-1), self.coefficients.unsqueeze(-1))
        return filled.reshape(*self.rows, *self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> Rows:
        return Rows(self.index, self.coefficients, shape)

    def plus(self, other: LinearMap) -> LinearMap | None:
        if not isinstance(other, Rows) or other.index is not self.index or other.shape != self.shape:
            return None
        return self.holding(self.coefficients + other.coefficients)

    def pick(self, groups: Tensor, rows: Tensor) -> Rows:
        return Rows(self.index[groups, rows], self.coefficients[groups, rows], self.shape)


@dataclass(frozen=True)
class Columns(LinearMap):
    """The same entries for all rows of a group: A[g, s, :] = coefficients[g, s, k] at flat position index[g, k]."""

    index: Tensor
    coefficients: Tensor
    shape: tuple[int, ...]

    def at(self, value: Tensor) -> Tensor:
        if value.shape[2:] != self.shape:
            value = value.expand(*value.shape[:2], *self.shape)
        entries = merged(value, 2)
        index = self.index.unsqueeze(1).expand(-1, entries.shape[1], -1)
        return entries.expand(self.rows[0], -1, -1).gather(2, index)

    def holding(self, coefficients: Tensor) -> Columns:
        return Columns(self.index, coefficients, self.shape)

    def dense(self) -> Tensor:
        zeros = torch.zeros(*self.rows, prod(self.shape), dtype=self.dtype, device=self.device)
        filled = zeros.scatter(2, self.index.unsqueeze(1).expand(self.coefficients.shape), self.coefficients)
        return filled.reshape(*self.rows, *self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> Columns:
        return Columns(self.index, self.coefficients, shape)

    def plus(self, other: LinearMap) -> LinearMap | None:
        if not isinstance(other, Columns) or other.index is not self.index or other.shape != self.shape:
            return None
        return self.holding(self.coefficients + other.coefficients)

    def pick(self, groups: Tensor, rows: Tensor) -> Columns:
        return Columns(self.index[groups.squeeze(1)], self.coefficients[groups, rows], self.shape)


def identity(numel: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Rows:
    """The identity on a node's value, one group."""
    index = torch.arange(numel, device=device).unsqueeze(0)
    return Rows(index, torch.ones(1, numel, dtype=dtype, device=device), shape)
