"""Where the files of a data set are, and their contents: found, unzipped and compared with known checksums."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from surebound.errors import DataError

PartName = Literal["train", "test"]


@dataclass(frozen=True)
class Root:
    """The place where one data set is looked for.

    name: the data set's, for messages; data_dir: the folder that the user named, None for none; argument: what followed
    the colon of the name; checksums: file name -> "md5:HEX" or "sha1:HEX" of the unzipped contents. A file without a
    checksum is read unchecked. images: how many training images are wanted, from the first on; 0 for all.
    """

    name: str
    data_dir: Path | None
    argument: str = ""
    images: int = 0
    checksums: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def folder(self) -> Path:
        """The data folder. Raises DataError if none was named."""
        if self.data_dir is None:
            raise DataError(
                f"{self.name} is read from files: name the folder they are in (--data-dir, SUREBOUND_DATA or data_dir=)"
            )
        return self.data_dir


@dataclass(frozen=True)
class Layout:
    """Files that stand together in one folder.

    folders: under the data folder, the usual one first; files: per part, relative to that folder; origin: where they
    come from, for messages; endings: what may follow the name of a file; batches: each file has images and labels of
    its own, so that the first ones do where only some images are wanted.
    """

    folders: tuple[str, ...]
    files: Mapping[PartName, tuple[str, ...]]
    origin: str
    endings: tuple[str, ...] = ("",)
    batches: bool = False


def located(root: Root, part: PartName, *layouts: Layout) -> tuple[Layout, tuple[Path, ...]]:
    """The first layout all of whose files for `part` are there, and their paths, in the layout's order.

    Where only the first images are wanted, the first batches will do. Raises DataError, listing what is missing and
    where to put it. Files of the other part are not looked at.
    """
    tried: list[tuple[Layout, list[Path], list[Path]]] = []
    for layout in layouts:
        for folder in layout.folders:
            wanted = [root.folder / folder / file for file in layout.files[part]]
            found = [path for path in (_existing(want, layout.endings) for want in wanted) if path is not None]
            if len(found) == len(wanted):
                return layout, tuple(found)
            missing = [want for want in wanted if _existing(want, layout.endings) is None]
            tried.append((layout, found, missing))
    layout, found, missing = max(tried, key=lambda attempt: len(attempt[1]))
    first = [path for path, file in zip(found, layout.files[part], strict=False) if path.name == file]
    if root.images and part == "train" and layout.batches and first:
        return layout, tuple(first)
    raise DataError(_missing(root, part, layout, missing, [other for other in layouts if other is not layout]))


def _existing(path: Path, endings: tuple[str, ...]) -> Path | None:
    options = (path.with_name(path.name + ending) for ending in endings)
    return next((option for option in options if os.path.exists(option)), None)


def _missing(root: Root, part: PartName, layout: Layout, missing: list[Path], others: list[Layout]) -> str:
    """What is missing, where it belongs, where it comes from, and what would do instead."""
    ending = "".join(f" (or {end})" for end in layout.endings if end)
    listed = ", ".join(f"{path}{ending}" for path in missing)
    state = "" if os.path.isdir(root.folder) else f"there is no folder {root.folder}; "
    instead = "".join(f", or {', '.join(other.files[part])} in {other.folders[0]} ({other.origin})" for other in others)
    return (
        f"{root.name}: {state}missing for the {part} part: {listed}. Put them there ({layout.origin}){instead}, "
        "or name another folder (--data-dir, SUREBOUND_DATA or data_dir=)"
    )


def read(root: Root, path: Path) -> bytes:
    """The contents of a file, unzipped if it is gzipped.

    Raises DataError if it cannot be read, is a damaged gzip file, or has another checksum than the official file.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    expected = root.checksums.get(path.name.removesuffix(".gz"))
    if expected is not None:
        algorithm, _, official = expected.partition(":")
        found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
        if found != official:
            raise DataError(
                f"{path}: its {algorithm} is {found}, but the official file of {root.name} has {official}: damaged or "
                "changed. Fetch it again; images changed on purpose can be read from npz:FILE (see docs/data.md)"
            )
    return data
