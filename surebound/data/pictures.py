"""Image files, decoded by Pillow when they are asked for: folders of images and TinyImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np

from surebound.data.files import PartName, Root
from surebound.data.raw import Images, Positions, Raw, class_labels
from surebound.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")
_FORMATS = ("BMP", "JPEG", "PNG", "PPM")
_MODES = {1: ("L", "1"), 3: ("RGB", "L", "P", "1")}


@dataclass(frozen=True)
class Pictures:
    """Files of images of one size. channels: 1 for gray, 3 for colour, which gray images and palettes become."""

    paths: tuple[Path, ...]
    channels: int
    width: int
    height: int

    def pixels(self, positions: Positions) -> Images:
        """uint8 [n, C, H, W]. Raises DataError for a file that is damaged, or of another size or kind."""
        picked = np.empty((len(positions), self.channels, self.height, self.width), np.uint8)
        for place, position in enumerate(positions):
            picked[place] = self._decode(self.paths[position])
        return picked

    def _decode(self, path: Path) -> Images:
        pillow = _pillow(path)
        try:
            with pillow.open(path, formats=_FORMATS) as image:
                if image.size != (self.width, self.height):
                    raise DataError(
                        f"{path}: {image.size[0]} x {image.size[1]} pixels, but {self.paths[0]} sets the size of the "
                        f"data set to {self.width} x {self.height}; give all images one size"
                    )
                if image.mode not in _MODES[self.channels]:
                    kind = "gray" if self.channels == 1 else "gray or RGB"
                    raise DataError(f"{path}: pixels of the kind {image.mode}; save it as an 8-bit {kind} image")
                pixels = np.asarray(image.convert("L" if self.channels == 1 else "RGB"))
        except DataError:
            raise
        except Exception as error:  # a broken image may raise anything
            raise DataError(f"{path}: damaged image ({type(error).__name__}: {error}); fetch it again") from None
        return pixels.reshape(self.height, self.width, self.channels).transpose(2, 0, 1)


def _pillow(path: Path) -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{path}: images are decoded by Pillow, which is not installed: pip install 'surebound[data]'; {error}"
        ) from error
    return Image


def like_the_first(paths: Sequence[Path]) -> Pictures:
    """Pictures of the size of the first one; one channel if it is gray, else three. Raises DataError."""
    pillow = _pillow(paths[0])
    try:
        with pillow.open(paths[0], formats=_FORMATS) as image:
            width, height = image.size
            channels = 1 if image.mode in _MODES[1] else 3
    except Exception as error:  # a broken image may raise anything
        raise DataError(f"{paths[0]}: damaged image ({type(error).__name__}: {error}); fetch it again") from None
    return Pictures(tuple(paths), channels, width, height)


def read_folder(root: Root, part: PartName) -> Raw:
    """A folder of images: [train/ and test/ with] a sub-folder for each class.

    Without train/ and test/ all images are the test part. Classes are the sub-folders' names, sorted, those of train/
    and test/ together; the order is that of the classes, then of the files' names, compared as text. Raises DataError.
    """
    top = root.folder / root.argument
    if not top.is_dir():
        raise DataError(f"{root.name}: there is no folder {top}; write folder:NAME for a folder NAME in {root.folder}")
    divided = (top / "train").is_dir() or (top / "test").is_dir()
    if not divided and part == "train":
        raise DataError(f"{top}: no training part; put training images into {top / 'train'}, the others into 'test'")
    source = top / part if divided else top
    if not source.is_dir():
        raise DataError(f"{top}: no {part} part; put its images into {source}, in one sub-folder for each class")
    tops = [top / name for name in ("train", "test") if (top / name).is_dir()] if divided else [top]
    classes = sorted({folder.name for each in tops for folder in _entries(each) if folder.is_dir()})
    stray = [entry for entry in _entries(source) if not entry.is_dir()]
    if stray or not classes:
        what = f"{stray[0].name} is not in a sub-folder" if stray else "no sub-folders"
        raise DataError(f"{source}: {what}; put the images of each class into a sub-folder of its own")
    paths = [image_files(source / name) if (source / name).is_dir() else [] for name in classes]
    return of_classes(paths, source)


def of_classes(paths: Sequence[Sequence[Path]], source: Path) -> Raw:
    """Files by class, class 0 first, decoded like the first of them. Raises DataError if there are none."""
    labels = np.repeat(np.arange(len(paths)), [len(each) for each in paths])
    files = tuple(chain.from_iterable(paths))
    if not files:
        raise DataError(f"{source}: no images ({', '.join(SUFFIXES)}) in its sub-folders; add some")
    return Raw(class_labels(labels, len(files), 0, len(paths), source), len(paths), like_the_first(files).pixels)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder by name. Raises DataError if there is anything else; hidden files do not count."""
    found = _entries(folder)
    other = [entry for entry in found if entry.suffix.lower() not in SUFFIXES or not entry.is_file()]
    if other:
        raise DataError(f"{other[0]}: not an image file ({', '.join(SUFFIXES)}); move it elsewhere")
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from None
