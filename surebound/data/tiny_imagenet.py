"""TinyImageNet: 200 classes of JPEG files of 64 x 64 pixels, in the folders of tiny-imagenet-200.zip.

Classes are numbered by sorted WordNet id, as torchvision's ImageFolder does, which is not the order of wnids.txt. The
validation images are the test part, because the test images have no public labels; their order is that of
val_annotations.txt (val_0.JPEG, val_1.JPEG, ...). No checksums of the single files are published.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import numpy as np

from surebound.data.files import Layout, PartName, Root, located, read
from surebound.data.pictures import Pictures, image_files
from surebound.data.raw import Raw
from surebound.errors import DataError

CLASSES = 200
SIDE = 64

FILES = Layout(
    ("tiny-imagenet-200", "."),
    MappingProxyType({"train": ("wnids.txt", "train"), "test": ("wnids.txt", "val/val_annotations.txt", "val/images")}),
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
)


def read_tiny_imagenet(root: Root, part: PartName) -> Raw:
    """TinyImageNet, images [N, 3, 64, 64]; gray ones get three equal channels. Raises DataError without Pillow."""
    _, paths = located(root, part, FILES)
    classes = _classes(root, paths[0])
    files = _training(paths[1], classes) if part == "train" else _annotated(root, paths[1], paths[2], classes)
    labels = np.array([label for _, label in files], np.int64)
    return Raw(labels, CLASSES, Pictures(tuple(path for path, _ in files), 3, SIDE, SIDE).pixels)


def _lines(root: Root, path: Path) -> list[str]:
    try:
        return read(root, path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}); fetch it again") from None


def _classes(root: Root, path: Path) -> dict[str, int]:
    """The label of each WordNet id."""
    names = [line.strip() for line in _lines(root, path) if line.strip()]
    if len(names) != CLASSES or len(set(names)) != CLASSES:
        raise DataError(
            f"{path}: {len(set(names))} different classes in {len(names)} lines, expected {CLASSES} of each"
        )
    return {name: label for label, name in enumerate(sorted(names))}


def _training(folder: Path, classes: dict[str, int]) -> list[tuple[Path, int]]:
    """Files and labels by class, then by name, compared as text."""
    missing = [name for name in classes if not (folder / name / "images").is_dir()]
    if missing:
        raise DataError(f"{folder}: no folder {missing[0]}/images ({len(missing)} such); unpack the archive again")
    return [(path, label) for name, label in classes.items() for path in image_files(folder / name / "images")]


def _annotated(root: Root, path: Path, folder: Path, classes: dict[str, int]) -> list[tuple[Path, int]]:
    """Files and labels in the order of the lines `FILE<tab>ID<tab>x<tab>y<tab>w<tab>h`."""
    found: dict[Path, int] = {}
    for number, line in enumerate(_lines(root, path), 1):
        name, identity = (line.split("\t") + [""])[:2]
        if identity not in classes:
            raise DataError(f"{path}:{number}: '{identity[:40]}' is not a class of wnids.txt; fetch it again")
        file = folder / Path(name).name
        if file in found or not file.is_file():
            trouble = "is named twice" if file in found else f"is not in {folder}"
            raise DataError(f"{path}:{number}: '{name[:40]}' {trouble}; unpack the archive again")
        found[file] = classes[identity]
    extra = sorted(set(image_files(folder)) - set(found))
    if extra:
        raise DataError(f"{path}: no line for {extra[0]} ({len(extra)} such); unpack the archive again")
    return list(found.items())
