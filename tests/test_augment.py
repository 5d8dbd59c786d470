"""Crops and flips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.data.augment import Augment, random_crops, random_flips
from surebound.errors import UsageError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, height: int = 5, width: int = 6) -> Tensor:
    """Images in which no pixel value occurs twice, and none is 0."""
    return torch.arange(1, count * 2 * height * width + 1, dtype=torch.float32).reshape(count, 2, height, width)


@pytest.mark.parametrize("border", ["zero", "edge"])
@pytest.mark.parametrize("size", [None, 3])
def test_each_crop_is_a_window_of_its_padded_image_and_all_places_occur(border: Any, size: int | None) -> None:
    images, pad = numbered(400), 2
    crops = random_crops(images, pad, generator(), border, size)
    height, width = crops.shape[2:]
    assert crops.shape[:2] == images.shape[:2] and (height, width) == ((5, 6) if size is None else (3, 3))
    padded = F.pad(images, (pad,) * 4, mode="constant" if border == "zero" else "replicate")
    views = padded.unfold(2, height, 1).unfold(3, width, 1)
    found = (views == crops[:, :, None, None]).all(1).flatten(3).all(3)
    assert bool(found.flatten(1).any(1).all()) and bool(found.any(0).all())


def test_without_padding_and_flips_nothing_changes() -> None:
    images = numbered(7)
    assert torch.equal(Augment(pad=0, flip=False)(images, generator()), images)


def test_each_image_is_flipped_or_not_and_about_half_are() -> None:
    images = numbered(400)
    flipped = random_flips(images, generator())
    same, turned = ((flipped == each).flatten(1).all(1) for each in (images, images.flip(3)))
    assert bool((same ^ turned).all()) and 150 < int(turned.sum()) < 250


def test_the_generator_decides_and_the_images_are_left_alone() -> None:
    images, state = numbered(20), torch.get_rng_state()
    before = images.clone()
    first, again, other = (Augment()(images, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("border", ["zero", "edge"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_bytes_stay_bytes_and_are_augmented_as_floats_are(border: Any, dtype: torch.dtype) -> None:
    images = torch.randint(256, (9, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    found = Augment(3, border)(images.to(dtype), generator(5))
    assert found.dtype == dtype and found.is_contiguous()
    assert torch.equal(found, Augment(3, border)(images, generator(5)).to(dtype))


def test_no_images_are_no_images() -> None:
    assert Augment()(numbered(0), generator()).shape == (0, 2, 5, 6)


def test_messages() -> None:
    with pytest.raises(UsageError, match="pad >= 0 and size >= 1, got -1 and None"):
        Augment(pad=-1)
    with pytest.raises(UsageError, match="unknown border 'mirror'; give 'zero' or 'edge'"):
        Augment(border="mirror")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a crop of 9 pixels does not fit into 5 pixels with padding 1"):
        Augment(1, size=9)(numbered(2), generator())
