"""Small data sets in the true formats of the published files, one example for every reader and version of a format."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from surebound.data.files import PartName

Bytes = NDArray[np.uint8]
Write = Callable[[Path, PartName, Bytes, Sequence[int]], list[Path]]
"""write(data folder, part, images uint8 [N, C, H, W], labels from 0) -> the files; it checks nothing."""


@dataclass(frozen=True)
class Example:
    """How to write a data set that `name` reads.

    labelled: labels are numbers in a file, so they can be wrong and too few; sealed: bytes behind its end, or a changed
    one, can be noticed; tolerance: of pixels in 0..255.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    write: Write
    labelled: bool = True
    sealed: bool = True
    tolerance: float = 0

    def images(self, count: int, seed: int = 0) -> Bytes:
        """Images that differ, each smooth, so that JPEG keeps them."""
        channels, height, width = self.shape
        random = np.random.default_rng(seed)
        ramp = np.linspace(0, 100, width)[None, None, None] * np.ones((1, 1, height, 1))
        return (ramp + random.integers(0, 155, (count, channels, 1, 1))).astype(np.uint8)


def saved(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- idx


def idx(array: Bytes) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_writer(folder: str, ending: str) -> Write:
    def write(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
        prefix = root / folder / {"train": "train", "test": "t10k"}[part]
        pack = gzip.compress if ending else bytes
        return [
            saved(Path(f"{prefix}-images-idx3-ubyte{ending}"), pack(idx(images[:, 0]))),
            saved(Path(f"{prefix}-labels-idx1-ubyte{ending}"), pack(idx(np.array(labels, np.uint8)))),
        ]

    return write


# ---------------------------------------------------------------- pickles


def old_text(text: bytes) -> bytes:
    """A string as python 2 pickled it."""
    return b"T" + struct.pack("<i", len(text)) + text


def old_number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def old_list(items: Sequence[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def old_array(array: Bytes, kind: bytes = b"u1", content: bytes | None = None) -> bytes:
    """An array as python 2 and numpy pickled it."""
    dtype = b"cnumpy\ndtype\n" + old_text(kind) + b"K\x00K\x01\x87R(K\x03" + old_text(b"|") + b"NNN"
    dtype += old_number(-1) * 2 + b"K\x00tb"
    shape = b"(" + b"".join(map(old_number, array.shape)) + b"t"
    begin = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + old_text(b"b") + b"\x87R"
    return (
        begin + b"(K\x01" + shape + dtype + b"\x89" + old_text(array.tobytes() if content is None else content) + b"tb"
    )


def old_pickle(entries: Mapping[bytes, bytes]) -> bytes:
    """A dictionary of pickled values."""
    return b"\x80\x02}(" + b"".join(old_text(key) + value for key, value in entries.items()) + b"u."


def cifar_batch(images: Bytes, labels: Sequence[int], key: bytes) -> bytes:
    rows = images.reshape(len(images), np.prod(images.shape[1:]))
    names = [old_text(b"image_%d.png" % number) for number in range(len(images))]
    entries = {b"batch_label": old_text(b"one"), key: old_list([old_number(label) for label in labels])}
    return old_pickle(entries | {b"data": old_array(rows), b"filenames": old_list(names)})


def split(count: int, parts: int) -> list[slice]:
    """Consecutive pieces, nearly equal."""
    ends = [count * piece // parts for piece in range(parts + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def write_cifar10(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    names = ["test_batch"] if part == "test" else [f"data_batch_{number}" for number in range(1, 6)]
    return [
        saved(root / "cifar-10-batches-py" / name, cifar_batch(images[piece], labels[piece], b"labels"))
        for name, piece in zip(names, split(len(images), len(names)), strict=True)
    ]


def write_cifar10_binary(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    names = ["test_batch.bin"] if part == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    rows = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
    return [
        saved(root / "cifar-10-batches-bin" / name, b"".join(rows[piece]))
        for name, piece in zip(names, split(len(images), len(names)), strict=True)
    ]


def write_cifar100(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    return [saved(root / "cifar-100-python" / part, cifar_batch(images, labels, b"fine_labels"))]


def write_imagenet64(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    """Pickles of python 3 and an early numpy."""
    names = ["val_data"] if part == "test" else [f"train_data_batch_{number}" for number in range(1, 11)]
    written = []
    for name, piece in zip(names, split(len(images), len(names)), strict=True):
        rows = images[piece].reshape(len(images[piece]), np.prod(images.shape[1:]))
        batch = {"data": rows, "labels": [label + 1 for label in labels[piece]], "mean": images.sum(0).ravel() / 6}
        content = pickle.dumps(batch, protocol=3).replace(b"numpy._core", b"numpy.core")
        written.append(saved(root / "imagenet64" / name, content))
    return written


# ---------------------------------------------------------------- the rest


def write_svhn(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    stream = io.BytesIO()
    digits = np.array([label or 10 for label in labels], np.uint8)[:, None]
    savemat(stream, {"X": images.transpose(2, 3, 1, 0), "y": digits}, do_compression=True)
    return [saved(root / f"{part}_32x32.mat", stream.getvalue())]


def encoded(image: Bytes, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, kind, **options)
    return stream.getvalue()


def jpeg(image: Bytes) -> bytes:
    return encoded(image, "JPEG", quality=100, subsampling=0)


WNIDS = tuple(f"n{number:08}" for number in range(200, 0, -1))
"""In the order of the file, which is not the sorted one."""


def write_tiny_imagenet(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    """A label outside 0..199 gets an id that is not listed."""
    top = root / "tiny-imagenet-200"
    ids = dict(enumerate(sorted(WNIDS)))
    written = [saved(top / "wnids.txt", "\n".join(WNIDS).encode() + b"\n")]
    if part == "train":
        for wnid in WNIDS:
            (top / "train" / wnid / "images").mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{ids[label]}_{number:03}.JPEG"
            written.append(saved(top / "train" / ids[label] / "images" / name, jpeg(image)))
        return written
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        lines.append(f"val_{number}.JPEG\t{ids.get(label, 'n99999999')}\t0\t0\t62\t62\n")
        written.append(saved(top / "val" / "images" / f"val_{number}.JPEG", jpeg(image)))
    return [saved(top / "val" / "val_annotations.txt", "".join(lines).encode()), *written]


def write_folder(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    """PNG files; the names of the classes are letters."""
    return [
        saved(root / "pets" / part / "abcdefgh"[label] / f"{number:03}.png", encoded(image, "PNG"))
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def write_npz(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    """Adds a part to the archive; the layout is [N, H, W, C]."""
    path = root / "mine.npz"
    entries: dict[str, Any] = dict(np.load(path)) if path.exists() else {"classes": 4}
    entries |= {f"{part}_images": images.transpose(0, 2, 3, 1), f"{part}_labels": np.array(labels)}
    np.savez(path, **entries)
    return [path]


def write_nothing(root: Path, part: PartName, images: Bytes, labels: Sequence[int]) -> list[Path]:
    return []


EXAMPLES: Mapping[str, Example] = {
    "mnist": Example("mnist", (1, 28, 28), 10, mnist_writer("MNIST/raw", ".gz")),
    "mnist, unzipped": Example("mnist", (1, 28, 28), 10, mnist_writer(".", "")),
    "fashion-mnist": Example("fashion-mnist", (1, 28, 28), 10, mnist_writer("FashionMNIST/raw", ".gz")),
    "svhn": Example("svhn", (3, 32, 32), 10, write_svhn),
    "cifar10": Example("cifar10", (3, 32, 32), 10, write_cifar10),
    "cifar10, binary": Example("cifar10", (3, 32, 32), 10, write_cifar10_binary),
    "cifar100": Example("cifar100", (3, 32, 32), 100, write_cifar100),
    "tiny-imagenet": Example(
        "tiny-imagenet", (3, 64, 64), 200, write_tiny_imagenet, labelled=False, sealed=False, tolerance=3
    ),
    "imagenet64": Example("imagenet64", (3, 64, 64), 1000, write_imagenet64),
    "folder": Example("folder:pets", (3, 6, 5), 4, write_folder, labelled=False, sealed=False),
    "npz": Example("npz:mine.npz", (3, 6, 5), 4, write_npz, sealed=False),
}
"""One or more for every row of the table of readers that reads files."""
