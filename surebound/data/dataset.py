"""Data sets as values: images in [0, 1] with labels, in three parts that never mix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from surebound.errors import DataError


@dataclass(frozen=True, eq=False)
class Part:
    """images [N, C, H, W] float32 in [0, 1], or uint8 in 0..255, a quarter of that, for `in_unit` to convert;
    labels int64 [N]; indices int64 [N]: positions in the source.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        sizes = {len(self.images), len(self.labels), len(self.indices)}
        if len(sizes) != 1:
            raise DataError(f"images, labels and indices must be equally many, got {sorted(sizes)}")
        if self.images.dtype != torch.uint8 and not bool((self.images >= 0).all() and (self.images <= 1).all()):
            raise DataError("images must have values in [0, 1]; divide by the largest pixel value (255 for bytes)")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Part:
        """The images at some positions."""
        return Part(self.images[index], self.labels[index], self.indices[index])

    def first(self, count: int) -> Part:
        """The first `count` images, or all if there are fewer."""
        return self.take(torch.arange(min(count, len(self))))


def in_unit(images: Tensor) -> Tensor:
    """Images as numbers in [0, 1]: bytes divided by 255, as float32; others as they are."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test images of one source. `classes`: number of labels, which are 0..classes-1."""

    name: str
    train: Part
    validation: Part
    test: Part
    classes: int


def stratified_split(labels: Tensor, shares: tuple[float, ...], seed: int) -> tuple[Tensor, ...]:
    """Disjoint positions for each share, every class divided alike, in an order fixed by `seed`.

    shares: fractions that sum to 1; the first part gets what rounding leaves over. Each part is shuffled.
    Raises DataError for shares that make no sense.
    """
    if any(share <= 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise DataError(f"the shares of a split must be positive and sum to 1, got {shares}")
    random = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels.numpy()):
        members = random.permutation(np.flatnonzero(labels.numpy() == label))
        sizes = [round(len(members) * share) for share in shares[1:]]
        ends = np.cumsum([len(members) - sum(sizes), *sizes])
        for part, piece in zip(parts, np.split(members, ends[:-1]), strict=True):
            part.append(piece)
    return tuple(torch.from_numpy(random.permutation(np.concatenate(part))) for part in parts)
