"""Element-wise work in pieces that stay in a processor's cache from one operation to the next.

A pass over memory costs several times what its arithmetic does. Several operations in a row on one piece, then on the
next, read and write memory once instead of once per operation.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

AT_ONCE = 1 << 21
"""Numbers in a piece: 8 MB in float32."""

Cut = tuple[slice, slice]


def cached(value: Tensor) -> Iterator[Cut]:
    """Cuts of the first two axes of a value [G, S, ...] that cover it: few rows of one group, or few groups.

    All at once where it is small, or lives on a device that hides the way to its memory.
    """
    groups, rows = value.shape[:2]
    if value.numel() <= AT_ONCE or value.device.type != "cpu":
        yield slice(None), slice(None)
        return
    each = max(1, value.numel() // (groups * rows))
    some = min(rows, max(1, AT_ONCE // each))
    many = max(1, AT_ONCE // (each * some))
    for group in range(0, groups, many):
        for row in range(0, rows, some):
            yield slice(group, group + many), slice(row, row + some)


def cut(value: Tensor, at: Cut) -> Tensor:
    """The part of a value [G or 1, S or 1, ...] that goes with a piece."""
    return value[at[0] if value.shape[0] > 1 else slice(None), at[1] if value.shape[1] > 1 else slice(None)]
