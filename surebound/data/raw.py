"""One official part of a data set as its files hold it, before images become tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surebound.data.dataset import Part, in_unit
from surebound.errors import DataError

Labels = NDArray[np.int64]
Positions = NDArray[np.int64]
Images = NDArray[Any]
"""[N, C, H, W], uint8 in 0..255 or float32 in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Raw:
    """All labels, and images that are decoded when they are asked for.

    labels: int64 [N] in 0..classes-1; pixels: positions [n] -> images [n, C, H, W], a new array; indices: int64 [N],
    the positions in the source if they are not 0..N-1.
    """

    labels: Labels
    classes: int
    pixels: Callable[[Positions], Images]
    indices: Positions | None = None

    def part(self, positions: Positions, as_bytes: bool = False) -> Part:
        """The images at some positions, as float32 in [0, 1]; bytes are divided by 255, or stay what they are."""
        images = torch.from_numpy(self.pixels(positions))
        images = images if as_bytes else in_unit(images)
        indices = positions if self.indices is None else self.indices[positions]
        return Part(images, torch.from_numpy(self.labels[positions]), torch.from_numpy(indices.copy()))


def class_labels(values: object, count: int, first: int, classes: int, place: object) -> Labels:
    """Labels counted from 0, from a list of ints or an integer array [count] of labels first..first+classes-1.

    place: the file, for messages. Raises DataError for anything else.
    """
    if isinstance(values, list) and all(type(value) is int for value in values):
        values = np.array(values) if values else np.zeros(0, np.int64)
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{place}: the labels are not a list of integers; fetch or write the file again")
    if len(values) != count:
        raise DataError(f"{place}: {len(values)} labels for {count} images; fetch or write both again")
    wrong = np.flatnonzero((values < first) | (values > first + classes - 1))
    if len(wrong):
        raise DataError(
            f"{place}: label {values[wrong[0]]} of image {wrong[0]} is outside {first}..{first + classes - 1}; "
            "fetch or write the file again"
        )
    return values.astype(np.int64) - first


def joined(batches: Sequence[tuple[Images, Labels]], classes: int) -> Raw:
    """The images of several files one after the other; they stay where they are until somebody picks some."""
    starts = np.cumsum([0, *(len(labels) for _, labels in batches)])
    shape, dtype = batches[0][0].shape[1:], batches[0][0].dtype

    def pixels(positions: Positions) -> Images:
        picked = np.empty((len(positions), *shape), dtype)
        for (images, _), start, end in zip(batches, starts[:-1], starts[1:], strict=True):
            here = (positions >= start) & (positions < end)
            picked[here] = images[positions[here] - start]
        return picked

    return Raw(np.concatenate([labels for _, labels in batches]), classes, pixels)
