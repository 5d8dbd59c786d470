"""SVHN, format 2 (cropped digits): MATLAB 5 files with X uint8 [32, 32, 3, N] and y [N, 1], where 10 means 0."""

from __future__ import annotations

import io
from pathlib import Path
from types import MappingProxyType

import numpy as np

from surebound.data.files import Layout, PartName, Root, located, read
from surebound.data.raw import Images, Labels, Raw, class_labels, joined
from surebound.errors import DataError

CLASSES = 10
SIDE = 32

FILES = Layout(
    (".", "SVHN"),
    MappingProxyType({"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}),
    "http://ufldl.stanford.edu/housenumbers/",
)
SUMS = MappingProxyType(
    {
        "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
    }
)


def read_svhn(root: Root, part: PartName) -> Raw:
    """SVHN, images [N, 3, 32, 32], in the order of the file, labels 0..9. Raises DataError without scipy."""
    _, (path,) = located(root, part, FILES)
    return joined([parse_mat(path, read(root, path))], CLASSES)


def parse_mat(path: Path, data: bytes) -> tuple[Images, Labels]:
    """Images uint8 [N, 3, 32, 32] and labels 0..9 of a MATLAB 5 file. Raises DataError for anything else."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{path}: MATLAB files are read by scipy, which is not installed: pip install 'surebound[data]'; {error}"
        ) from error
    if not data.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path}: not a MATLAB 5 file: it begins with {data[:10]!r}; fetch it again")
    try:
        found = loadmat(io.BytesIO(data))
    except Exception as error:  # a broken file may raise anything
        raise DataError(f"{path}: damaged MATLAB file ({type(error).__name__}: {error}); fetch it again") from None
    images, labels = (_array(found.get(name)) for name in ("X", "y"))
    if images.dtype != np.uint8 or images.shape[:3] != (SIDE, SIDE, 3) or images.ndim != 4:
        raise DataError(
            f"{path}: X is {images.dtype} {images.shape}, expected uint8 ({SIDE}, {SIDE}, 3, N); fetch format 2"
        )
    if labels.ndim != 2 or labels.shape[1] != 1:
        raise DataError(f"{path}: y has the shape {labels.shape}, expected (N, 1); fetch format 2 of SVHN")
    digits = class_labels(labels[:, 0], images.shape[3], 1, CLASSES, f"{path}, y")
    return images.transpose(3, 2, 0, 1), (digits + 1) % 10


def _array(value: object) -> np.ndarray:
    """The variable, or an array that is not one of a data set if it is absent or something else."""
    return value if isinstance(value, np.ndarray) else np.zeros((0, 0))
