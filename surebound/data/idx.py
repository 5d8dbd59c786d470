"""MNIST and Fashion-MNIST: the idx format, plain or gzipped.

A file is 0, 0, 8 (bytes), the number of axes, the length of each axis as a big-endian uint32, and the bytes.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np

from surebound.data.files import Layout, PartName, Root, located, read
from surebound.data.raw import Images, Raw, class_labels, joined
from surebound.errors import DataError

CLASSES = 10
SIDE = 28


def _layout(name: str, origin: str) -> Layout:
    files: dict[PartName, tuple[str, ...]] = {
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    }
    return Layout((f"{name}/raw", name, "."), MappingProxyType(files), origin, ("", ".gz"))


MNIST = _layout("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/")
FASHION = _layout("FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist")

MNIST_SUMS = MappingProxyType(
    {
        "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    }
)
FASHION_SUMS = MappingProxyType(
    {
        "train-images-idx3-ubyte": "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "md5:9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "md5:8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "md5:15d484375f8d13e6eb1aabb0c3f46965",
    }
)


def read_mnist(root: Root, part: PartName) -> Raw:
    """MNIST, images [N, 1, 28, 28], in the order of the files."""
    return _read(root, part, MNIST)


def read_fashion(root: Root, part: PartName) -> Raw:
    """Fashion-MNIST, images [N, 1, 28, 28], in the order of the files."""
    return _read(root, part, FASHION)


def _read(root: Root, part: PartName, layout: Layout) -> Raw:
    _, (image_file, label_file) = located(root, part, layout)
    images = parse_idx(image_file, read(root, image_file), axes=3)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{image_file}: images of {images.shape[1:]} pixels, expected {(SIDE, SIDE)}; fetch it again")
    values = parse_idx(label_file, read(root, label_file), axes=1)
    labels = class_labels(values, len(images), 0, CLASSES, f"{label_file} (of {image_file.name})")
    return joined([(images[:, None], labels)], CLASSES)


def parse_idx(path: Path, data: bytes, axes: int) -> Images:
    """The uint8 array in idx data with a known number of axes. Raises DataError for anything else."""
    magic = bytes((0, 0, 8, axes))
    if data[:4] != magic:
        raise DataError(
            f"{path}: not an idx file of bytes with {axes} axes: it begins with {data[:4].hex(' ') or 'nothing'}, "
            f"expected {magic.hex(' ')}; fetch it again"
        )
    header = 4 + 4 * axes
    if len(data) < header:
        raise DataError(f"{path}: the file ends after {len(data)} bytes, within its header; fetch it again")
    shape = struct.unpack(f">{axes}I", data[4:header])
    if len(data) != header + prod(shape):
        kind = "short" if len(data) < header + prod(shape) else "long"
        raise DataError(
            f"{path}: too {kind}: {len(data)} bytes, but its header announces {shape}, "
            f"which is {header + prod(shape)} bytes; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
