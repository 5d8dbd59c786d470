"""CIFAR-10, as python pickles or in the binary version, and CIFAR-100 (python pickles, fine labels)."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np

from surebound.data.files import Layout, PartName, Root, located, read
from surebound.data.pickles import pickled_images
from surebound.data.raw import Images, Labels, Raw, class_labels, joined
from surebound.errors import DataError

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes of an image in the binary version: its label, then the pixels by channel, row, column."""

BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))

PYTHON = Layout(
    ("cifar-10-batches-py", "."),
    MappingProxyType({"train": BATCHES, "test": ("test_batch",)}),
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    batches=True,
)
BINARY = Layout(
    ("cifar-10-batches-bin", "."),
    MappingProxyType({"train": tuple(f"{name}.bin" for name in BATCHES), "test": ("test_batch.bin",)}),
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    batches=True,
)
HUNDRED = Layout(
    ("cifar-100-python", "."),
    MappingProxyType({"train": ("train",), "test": ("test",)}),
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)

CIFAR10_SUMS = MappingProxyType(
    {
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
    }
)
CIFAR100_SUMS = MappingProxyType(
    {"train": "md5:16019d7e3df5f24257cddd939b257f8d", "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc"}
)


def read_cifar10(root: Root, part: PartName) -> Raw:
    """CIFAR-10, images [N, 3, 32, 32], in the order of the batches; of two complete versions the pickles are read."""
    layout, paths = located(root, part, PYTHON, BINARY)
    if layout is BINARY:
        return joined([parse_binary(path, read(root, path)) for path in paths], 10)
    return joined([pickled_images(path, read(root, path), "labels", SIDE, 0, 10) for path in paths], 10)


def read_cifar100(root: Root, part: PartName) -> Raw:
    """CIFAR-100 with its 100 fine labels, images [N, 3, 32, 32], in the order of the file."""
    _, paths = located(root, part, HUNDRED)
    return joined([pickled_images(path, read(root, path), "fine_labels", SIDE, 0, 100) for path in paths], 100)


def parse_binary(path: Path, data: bytes) -> tuple[Images, Labels]:
    """Images uint8 [N, 3, 32, 32] and labels of a file of the binary version. Raises DataError for anything else."""
    if not data or len(data) % RECORD:
        raise DataError(f"{path}: {len(data)} bytes are not a number of images of {RECORD} bytes each; fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), class_labels(records[:, 0], len(records), 0, 10, path)
