"""Random crops and flips of whole batches, on the batch's device, for float images and bytes alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surebound.errors import UsageError

Border = Literal["zero", "edge"]
"""What stands around an image: zeros, or its outermost pixels repeated."""


@dataclass(frozen=True)
class Augment:
    """A random crop of the padded image, then for every second image a flip from left to right.

    pad: pixels on each side; border: what they are; size: height and width of the crop, None for the image's own;
    flip: whether there are flips. Raises UsageError for numbers that make no sense.
    """

    pad: int = 4
    border: Border = "zero"
    size: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if self.pad < 0 or (self.size is not None and self.size < 1):
            raise UsageError(f"augmentation needs pad >= 0 and size >= 1, got {self.pad} and {self.size}")
        if self.border not in ("zero", "edge"):
            raise UsageError(f"unknown border '{self.border}'; give 'zero' or 'edge'")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """New images [B, C, h, w] from images [B, C, H, W] of any dtype, each changed by itself.

        generator: where the random numbers come from; it may live on another device.
        Raises UsageError when the crop is larger than the padded image.
        """
        cropped = random_crops(images, self.pad, generator, self.border, self.size)
        return random_flips(cropped, generator) if self.flip else cropped


def random_crops(
    images: Tensor, pad: int, generator: torch.Generator, border: Border = "zero", size: int | None = None
) -> Tensor:
    """A window [B, C, h, w] of each padded image [B, C, H + 2 pad, W + 2 pad], at a place of its own.

    Arguments as in `Augment`.
    """
    height, width = images.shape[2:]
    rows = windows(images, height, pad, generator, size)
    columns = windows(images, width, pad, generator, size)
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    near = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    crops = images[samples, :, near[0], near[1]].permute(0, 3, 1, 2).contiguous()
    if border == "edge":
        return crops
    inside = within(rows, height)[:, :, None] & within(columns, width)[:, None, :]
    return crops.masked_fill(~inside[:, None], 0)


def centred(images: Tensor, size: int) -> Tensor:
    """The middle of images [B, C, H, W], `size` high and wide; all of it for 0. UsageError for more than there is."""
    if not size:
        return images
    if size > min(images.shape[2:]):
        raise UsageError(f"a crop of {size} x {size} pixels does not fit into images of {list(images.shape[1:])}")
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def random_flips(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W], each flipped from left to right with probability 1/2."""
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(flipped.to(images.device) == 1, images.flip(3), images)


def windows(images: Tensor, length: int, pad: int, generator: torch.Generator, size: int | None) -> Tensor:
    """Places [B, size] along an axis of `length` pixels, from -pad to length + pad - 1, in a row for each image."""
    wanted = length if size is None else size
    room = length + 2 * pad - wanted
    if room < 0:
        raise UsageError(f"a crop of {wanted} pixels does not fit into {length} pixels with padding {pad}")
    offsets = torch.randint(room + 1, (len(images), 1), generator=generator, device=generator.device)
    return offsets.to(images.device) - pad + torch.arange(wanted, device=images.device)


def within(places: Tensor, length: int) -> Tensor:
    """Which places are those of pixels."""
    return (places >= 0) & (places < length)
