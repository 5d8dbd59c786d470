"""The table of data sets, and the two functions that read them. A new data set is one row."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from surebound.data import cifar, idx, svhn
from surebound.data.dataset import Dataset, Part, stratified_split
from surebound.data.digits import read_digits
from surebound.data.files import PartName, Root
from surebound.data.imagenet64 import read_imagenet64
from surebound.data.npz import read_npz
from surebound.data.pictures import read_folder
from surebound.data.raw import Positions, Raw
from surebound.data.tiny_imagenet import read_tiny_imagenet
from surebound.errors import DataError, UsageError

VALIDATION = 0.1


@dataclass(frozen=True)
class Reader:
    """How one data set is read.

    read: one official part; it must not need the files of the other. checksums: of the official files, by name, as in
    `Root`. argument: what the user writes behind the name and a colon, empty for nothing.
    """

    read: Callable[[Root, PartName], Raw]
    checksums: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    argument: str = ""


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "digits": Reader(read_digits),
        "mnist": Reader(idx.read_mnist, idx.MNIST_SUMS),
        "fashion-mnist": Reader(idx.read_fashion, idx.FASHION_SUMS),
        "svhn": Reader(svhn.read_svhn, svhn.SUMS),
        "cifar10": Reader(cifar.read_cifar10, cifar.CIFAR10_SUMS),
        "cifar100": Reader(cifar.read_cifar100, cifar.CIFAR100_SUMS),
        "tiny-imagenet": Reader(read_tiny_imagenet),
        "imagenet64": Reader(read_imagenet64),
        "npz": Reader(read_npz, argument="FILE.npz"),
        "folder": Reader(read_folder, argument="NAME"),
    }
)


def load_part(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    part: PartName = "test",
    *,
    indices: Sequence[int] | None = None,
) -> Part:
    """One official part of a data set in its official order; "train" includes what `load_dataset` keeps for validation.

    name, data_dir: as in `load_dataset`. indices: which images, by official index (`Part.indices`), in this order;
    None for all. Only these are decoded. Only the files of the part are needed. Raises UsageError for a name, a part
    or an index that does not exist, DataError for files that are missing or damaged.
    """
    if part not in ("train", "test"):
        raise UsageError(f"unknown part {part!r} of {name}; give 'train' or 'test'")
    raw = _raw(name, data_dir, part)
    return raw.part(_positions(name, part, raw, indices))


def load_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    validation: float = VALIDATION,
    seed: int = 0,
    images: int = 0,
    as_bytes: bool = False,
) -> Dataset:
    """Training, validation and test images of a data set, all in official order, float32 [N, C, H, W] in [0, 1].

    name: a row of `READERS`, with its argument, such as "mnist" or "npz:mine.npz"; data_dir: the folder of the files,
    None for the one that SUREBOUND_DATA names. validation: the share of the official training part that is kept apart,
    the same share of every class, chosen by `seed`; 0 for none. The test part is the official one for every seed.
    images: how many of the official training part, from the first on, are divided so; 0 for all. Of a data set in
    batches only those that hold them have to be there. as_bytes: training and test images stay uint8 if the source is.
    Raises UsageError for arguments that make no sense, DataError for files that are missing or damaged.
    """
    if not 0 <= validation < 1:
        raise UsageError(f"validation must be a share of the training images, at least 0 and below 1, got {validation}")
    raw, test = _raw(name, data_dir, "train", images), _raw(name, data_dir, "test")
    if not 0 <= images <= len(raw.labels):
        raise DataError(
            f"{name}: {images} training images are asked for, there are {len(raw.labels)}; ask for at most that "
            "many (0 for all), or put the other files there (docs/data.md)"
        )
    labels = torch.from_numpy(raw.labels[: images or None])
    train, kept = np.arange(len(labels)), np.arange(0)
    if validation:
        train, kept = (np.sort(each.numpy()) for each in stratified_split(labels, (1 - validation, validation), seed))
        if not len(kept) or not len(train):
            raise UsageError(f"validation={validation} of {len(labels)} images leaves a part without images")
    parts = raw.part(train, as_bytes), raw.part(kept), test.part(np.arange(len(test.labels)), as_bytes)
    shapes = [tuple(part.images.shape[1:]) for part in parts]
    if shapes[0] != shapes[2]:
        raise DataError(f"{name}: training images are {shapes[0]}, test images {shapes[2]}; give them one shape")
    return Dataset(name, *parts, test.classes)


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the files: the one given, else the one that SUREBOUND_DATA names, if any."""
    folder = data_dir if data_dir is not None else os.environ.get("SUREBOUND_DATA") or None
    return None if folder is None else Path(folder)


def _raw(name: str, data_dir: str | os.PathLike[str] | None, part: PartName, images: int = 0) -> Raw:
    """The part as its files hold it, checked not to be empty; of batches at least those there are, given `images`."""
    kind, _, argument = name.partition(":")
    if kind not in READERS:
        rows = ", ".join(f"{row}:{reader.argument}" if reader.argument else row for row, reader in READERS.items())
        raise UsageError(f"unknown data set '{name}'; give one of {rows}")
    reader = READERS[kind]
    if bool(argument) != bool(reader.argument):
        wanted = f"{kind}:{reader.argument}" if reader.argument else kind
        raise UsageError(f"'{name}' is not how this data set is named; write {wanted}")
    raw = reader.read(Root(name, data_folder(data_dir), argument, images, reader.checksums), part)
    if not len(raw.labels):
        raise DataError(f"{name}: the {part} part has no images; fetch or write its files again")
    return raw


def _positions(name: str, part: PartName, raw: Raw, indices: Sequence[int] | None) -> Positions:
    """Where the images with some official indices are."""
    known = np.arange(len(raw.labels)) if raw.indices is None else raw.indices
    if indices is None:
        return np.arange(len(known))
    place = {int(index): position for position, index in enumerate(known)}
    unknown = [index for index in indices if index not in place]
    if unknown:
        raise UsageError(
            f"{name}: no image {unknown[0]} in the {part} part, which has {len(known)} images "
            f"with indices {known.min()}..{known.max()}"
        )
    return np.array([place[index] for index in indices], np.int64)
