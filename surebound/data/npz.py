"""Any images in a numpy archive: the way to read what has no reader, or a copy that was changed on purpose.

Keys: `test_images` and `test_labels`, `train_images` and `train_labels`, or `images` and `labels` for a test part
alone; `layout` ("NCHW" or "NHWC") where the shape leaves it open; `classes`, if there are more than occur.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from surebound.data.files import PartName, Root, read
from surebound.data.raw import Images, Raw, class_labels, joined
from surebound.errors import DataError

CHANNELS = (1, 3)
MOST = 1_000_000
"""Classes that an archive may have; more is taken for a mistake."""


def read_npz(root: Root, part: PartName) -> Raw:
    """The images and labels of a part, in the archive's order.

    Images are [N, C, H, W], [N, H, W, C] or [N, H, W], uint8 in 0..255 or float in [0, 1]; labels are integers from 0.
    Raises DataError for anything else.
    """
    path = root.folder / root.argument
    if not path.is_file():
        raise DataError(f"{root.name}: there is no file {path}; write npz:FILE.npz for a FILE.npz in {root.folder}")
    arrays = _arrays(path, read(root, path))
    keys = _keys(path, arrays, part)
    images = _images(f"{path}, '{keys[0]}'", arrays[keys[0]], _layout(path, arrays))
    classes = _classes(path, arrays)
    return joined([(images, class_labels(arrays[keys[1]], len(images), 0, classes, f"{path}, '{keys[1]}'"))], classes)


def _arrays(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Every array of the archive, none of them pickled objects."""
    if not data.startswith(b"PK"):
        raise DataError(f"{path}: not an npz file: it begins with {data[:8]!r}; write it with numpy.savez")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # a broken archive may raise anything
        raise DataError(f"{path}: damaged npz file ({type(error).__name__}: {error}); write it again") from None


def _keys(path: Path, arrays: Mapping[str, np.ndarray], part: PartName) -> tuple[str, str]:
    """The names of the images and labels of a part."""
    options = [(f"{part}_images", f"{part}_labels")] + [("images", "labels")] * (part == "test")
    found = [pair for pair in options if all(key in arrays for key in pair)]
    if len(found) != 1:
        trouble = "two test parts" if found else f"no {part} part"
        wanted = " or ".join(f"'{images}' and '{labels}'" for images, labels in options)
        raise DataError(f"{path}: {trouble}; it has {sorted(arrays)}, give either {wanted}")
    return found[0]


def _layout(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """What the archive says about its axes: "NCHW", "NHWC", or an empty string for nothing."""
    if "layout" not in arrays:
        return ""
    layout = str(arrays["layout"])
    if layout not in ("NCHW", "NHWC"):
        raise DataError(f"{path}: 'layout' is {layout[:40]!r}; give 'NCHW' or 'NHWC'")
    return layout


def _classes(path: Path, arrays: Mapping[str, np.ndarray]) -> int:
    """The number of classes: as `classes` says, or one more than the largest label of all parts."""
    if "classes" in arrays:
        count = arrays["classes"]
        if count.shape != () or count.dtype.kind not in "iu" or not 1 <= int(count) <= MOST:
            raise DataError(f"{path}: 'classes' must be one integer in 1..{MOST}")
        return int(count)
    labels = [array for key, array in arrays.items() if key in ("labels", "train_labels", "test_labels")]
    largest = max((int(each.max()) for each in labels if each.size and each.dtype.kind in "iu"), default=0)
    if largest >= MOST:
        raise DataError(f"{path}: the label {largest} is too large; number the classes from 0")
    return max(largest, 0) + 1


def _images(place: str, array: np.ndarray, layout: str) -> Images:
    """The images as [N, C, H, W], bytes or float32."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        array = array if (layout or _inferred(place, array.shape)) == "NCHW" else array.transpose(0, 3, 1, 2)
    else:
        raise DataError(f"{place}: shape {array.shape}; give [N, C, H, W], [N, H, W, C] or [N, H, W]")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{place}: values of the type {array.dtype}; give uint8 in 0..255 or float in [0, 1]")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise DataError(
            f"{place}: values from {array.min()} to {array.max()}, floats must lie in [0, 1]; divide by the largest "
            "pixel value, or store uint8"
        )
    return array.astype(np.float32)


def _inferred(place: str, shape: tuple[int, ...]) -> str:
    """The layout, if exactly one of the two axes can be that of the channels."""
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first == last:
        raise DataError(
            f"{place}: shape {shape} may be [N, C, H, W] or [N, H, W, C]; add an entry layout='NCHW' or 'NHWC'"
        )
    return "NCHW" if first else "NHWC"
