"""Linear maps in which every row reads only a window of a feature map.

A row that starts at one neuron of a convolution reads a small window of its operand, a larger one of the
operand before, and so on; `Patches` stores the windows instead of the whole node. Where a window starts is
an affine function of the start neuron's position with the same integers for all rows, so that windows over
one node that come from the same start can be added entry by entry (residual joins).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.linear.maps import Dense, LinearMap, Rows

Pair = tuple[int, ...]
"""Two numbers, for the vertical axis and the horizontal."""

Shape = tuple[int, ...]


def worth(window: Shape, shape: Shape) -> bool:
    """Is a window (C, kh, kw) worth storing in place of the node (C, H, W)? Below half of its entries, yes."""
    return 2 * prod(window) < prod(shape)


@dataclass(frozen=True, eq=False)
class Anchors:
    """The neurons that rows started at: index [G, S], flat in a node of shape (C, *grid)."""

    index: Tensor
    grid: Pair

    @cached_property
    def cell(self) -> Tensor:
        """The neurons' positions [G, S], flat in the grid."""
        return self.index % prod(self.grid)

    @cached_property
    def channel(self) -> Tensor:
        """The neurons' channels [G, S]."""
        return self.index // prod(self.grid)

    def same(self, other: Anchors) -> bool:
        """Do the rows of both start at the same neurons, known from the objects alone?"""
        return self.index is other.index and self.grid == other.grid

    def pick(self, groups: Tensor, rows: Tensor) -> Anchors:
        """Only groups [g, 1] and their rows [g, s]."""
        return Anchors(self.index[groups, rows], self.grid)


@dataclass(frozen=True, eq=False)
class Windows:
    """One window of a node of shape (C, H, W) for every row.

    A row that starts at row and column (i, j) of the anchors' grid reads `size` entries of every channel from
    (i, j) * stride + offset on. Windows may hang over the node's edge.
    """

    anchors: Anchors
    shape: Shape
    size: Pair = (1, 1)
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)

    @property
    def rows(self) -> Pair:
        """(G, S)."""
        groups, count = self.anchors.index.shape
        return groups, count

    @property
    def end(self) -> Pair:
        """Offset of the first row and column behind the windows."""
        return self.offset[0] + self.size[0], self.offset[1] + self.size[1]

    def of_operand(self, shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Windows:
        """What these windows of a convolution's result read of its operand of shape (C, H, W).

        Result t reads the operand at t stride - padding + dilation (0 .. kernel - 1).
        """
        size = [(self.size[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
        offset = [self.offset[i] * stride[i] - padding[i] for i in (0, 1)]
        step = [self.stride[i] * stride[i] for i in (0, 1)]
        return Windows(self.anchors, shape, (size[0], size[1]), (step[0], step[1]), (offset[0], offset[1]))

    def around(self, other: Windows) -> Windows | None:
        """The smallest windows that contain both; None where the distance differs from row to row."""
        if not self.anchors.same(other.anchors) or self.stride != other.stride or self.shape != other.shape:
            return None
        top, left = (min(self.offset[i], other.offset[i]) for i in (0, 1))
        bottom, right = (max(self.end[i], other.end[i]) for i in (0, 1))
        return replace(self, size=(bottom - top, right - left), offset=(top, left))

    def margins(self, inner: Windows) -> tuple[int, int, int, int]:
        """Columns left and right of `inner`, rows above and below it: the widths that `F.pad` takes."""
        (top, left), (bottom, right) = self.offset, self.end
        return inner.offset[1] - left, right - inner.end[1], inner.offset[0] - top, bottom - inner.end[0]

    def lines(self, axis: int) -> Tensor:
        """Rows (axis 0) or columns (axis 1) of the node in each grid line's windows, [grid, size]."""
        device = self.anchors.index.device
        first = torch.arange(self.anchors.grid[axis], device=device) * self.stride[axis] + self.offset[axis]
        return first.unsqueeze(1) + torch.arange(self.size[axis], device=device)

    @cached_property
    def positions(self) -> Tensor:
        """Flat positions in (H, W) of every cell's window, [cells, kh kw]; those beyond the edge moved onto it."""
        height, width = self.shape[1:]
        down, across = self.lines(0).clamp(0, height - 1), self.lines(1).clamp(0, width - 1)
        return (down[:, None, :, None] * width + across[None, :, None, :]).reshape(prod(self.anchors.grid), -1)

    @cached_property
    def outside(self) -> Tensor | None:
        """bool [cells, kh kw]: entries beyond the node's edge; None when no window can hang over."""
        last = [(self.anchors.grid[i] - 1) * self.stride[i] + self.end[i] for i in (0, 1)]
        if min(self.offset) >= 0 and last[0] <= self.shape[1] and last[1] <= self.shape[2]:
            return None
        down, across = self.lines(0), self.lines(1)
        down, across = (down < 0) | (down >= self.shape[1]), (across < 0) | (across >= self.shape[2])
        return (down[:, None, :, None] | across[None, :, None, :]).reshape(prod(self.anchors.grid), -1)

    @cached_property
    def overhang(self) -> Tensor | None:
        """`outside` for every row, [G, S, 1, kh, kw]."""
        return None if self.outside is None else self.of_rows(self.outside).reshape(*self.rows, 1, *self.size)

    def of_rows(self, table: Tensor) -> Tensor:
        """A table by cell [cells, kh kw] at each row's cell, [G S, kh kw]."""
        return table.index_select(0, self.anchors.cell.flatten())

    def read(self, value: Tensor) -> Tensor:
        """The windows [G, S, C, kh, kw] of a value [G or 1, S or 1, C, H, W]; 0 beyond the edge.

        When there are more rows than cells, all windows are read once and handed to the rows.
        """
        (groups, count), (g, s, channels) = self.rows, value.shape[:3]
        cells = prod(self.anchors.grid)
        if g * s * cells <= groups * count:
            outside = None if self.outside is None else self.outside.unsqueeze(0)
            every = gathered(value.reshape(g * s, channels, -1), self.positions.unsqueeze(0), outside)
            first = torch.arange(0, g * s * cells, cells, device=value.device).reshape(g, s)
            found = every.reshape(g * s * cells, -1).index_select(0, (self.anchors.cell + first).flatten())
        else:
            if s > 1:
                value, g = value.expand(groups, *value.shape[1:]), groups
            each = (g * s, groups * count // (g * s), prod(self.size))
            outside = None if self.outside is None else self.of_rows(self.outside).reshape(each)
            found = gathered(value.reshape(g * s, channels, -1), self.of_rows(self.positions).reshape(each), outside)
        return found.reshape(groups, count, channels, *self.size)

    def placed(self, windows: Tensor) -> Tensor:
        """Windows [G, S, C, kh, kw], 0 beyond the edge, as whole nodes [G, S, C, H, W]: the transpose of `read`."""
        groups, count, channels = windows.shape[:3]
        index = self.of_rows(self.positions).reshape(groups, count, 1, -1).expand(-1, -1, channels, -1)
        empty = windows.new_zeros(groups, count, channels, prod(self.shape[1:]))
        return empty.scatter_add_(3, index, windows.flatten(3)).reshape(groups, count, *self.shape)

    def cut(self, windows: Tensor) -> Tensor:
        """Windows of finite numbers nobody else holds, multiplied with 0 beyond the edge (faster than filling)."""
        if self.outside is None:
            return windows
        inside = self.of_rows((~self.outside).to(windows.dtype))
        return windows.mul_(inside.reshape(*self.rows, 1, *self.size))


def gathered(value: Tensor, positions: Tensor, outside: Tensor | None) -> Tensor:
    """Entries of a value [L, C, n] at positions [L or 1, U, k], as [L, U, C, k]; 0 where `outside` is set."""
    leads, channels, _ = value.shape
    index = positions.flatten(1).unsqueeze(1).expand(leads, channels, -1)
    found = value.gather(2, index).reshape(leads, channels, *positions.shape[1:])
    if outside is not None:
        found.masked_fill_(outside.unsqueeze(1), 0)
    return found.transpose(1, 2)


@dataclass(frozen=True)
class Patches(LinearMap):
    """One window per row: coefficients [G, S, C, kh, kw], exactly 0 where a window hangs over the node's edge.

    The node's shape is (C, H, W) behind `ones` axes of size 1.
    """

    coefficients: Tensor
    windows: Windows
    ones: int = 0

    @property
    def shape(self) -> Shape:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (1,) * self.ones + self.windows.shape

    def at(self, value: Tensor) -> Tensor:
        value = value.reshape(*value.shape[:2], *value.shape[2 + self.ones :])
        shape = self.windows.shape[1:]
        if value.shape[3:] != shape:
            if value.shape[3:] == (1, 1):
                return value
            value = value.expand(*value.shape[:3], *shape)
        return self.windows.read(value)

    def holding(self, coefficients: Tensor) -> Patches:
        return replace(self, coefficients=coefficients)

    def dense(self) -> Tensor:
        return self.windows.placed(self.coefficients).reshape(*self.rows, *self.shape)

    def reshaped(self, shape: Shape) -> LinearMap:
        ones = len(shape) - 3
        if ones >= 0 and shape == (1,) * ones + self.windows.shape:
            return replace(self, ones=ones)
        return Dense(self.dense()).reshaped(shape)

    def pick(self, groups: Tensor, rows: Tensor) -> Patches:
        windows = replace(self.windows, anchors=self.windows.anchors.pick(groups, rows))
        return Patches(self.coefficients[groups, rows], windows, self.ones)

    def plus(self, other: LinearMap) -> LinearMap | None:
        mate = single(other) if isinstance(other, Rows) else other
        if not isinstance(mate, Patches):
            return None
        both = self.windows.around(mate.windows)
        if both is None or self.ones != mate.ones or not worth((self.windows.shape[0], *both.size), self.shape):
            return None
        return Patches(self.widened(both) + mate.widened(both), both, self.ones)

    def widened(self, windows: Windows) -> Tensor:
        """The coefficients on larger windows."""
        if windows.size == self.windows.size:
            return self.coefficients
        return F.pad(self.coefficients, windows.margins(self.windows))

    def kept(self) -> LinearMap:
        """The map, or the whole node where windows are not worth it."""
        return self if worth((self.windows.shape[0], *self.windows.size), self.shape) else Dense(self.dense())


def single_windows(rows: Rows) -> Windows:
    """The neurons of a feature map that rows read, as windows of one entry of every channel."""
    return Windows(Anchors(rows.index, rows.shape[1:]), rows.shape)


def single(rows: Rows) -> Patches | None:
    """Single neurons of a feature map as windows of one entry; None over other shapes."""
    if len(rows.shape) != 3:
        return None
    windows = single_windows(rows)
    zeros = torch.zeros(*rows.rows, rows.shape[0], dtype=rows.dtype, device=rows.device)
    filled = zeros.scatter(2, windows.anchors.channel.unsqueeze(-1), rows.coefficients.unsqueeze(-1))
    return Patches(filled[..., None, None], windows)
