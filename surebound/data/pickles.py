"""Reads the pickles in which CIFAR and downsampled ImageNet are published, without running what is in them.

A pickle is a program: it may name any function of any module and call it. Here a name stands for one of the four that
the published files use (`numpy.ndarray`, `numpy.dtype`, `_reconstruct`, `_codecs.encode`), and none of them reaches the
real one: numpy believes what a pickle says about a data type, and a false one would let bytes pass for pointers. What
stands in for them builds arrays of plain numbers only.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from surebound.data.raw import Images, Labels, class_labels
from surebound.errors import DataError

PLAIN = frozenset(("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"))
"""Data types that an array may have."""

_ARRAY_TYPE = "numpy.ndarray"


def read_pickle(path: Path, data: bytes) -> dict[str, object]:
    """The dictionary in a pickle of any protocol: strings, bytes, numbers, lists, tuples, dicts, arrays of numbers.

    path: for messages. Keys become str, arrays among the values numpy arrays. Raises DataError for a pickle that is
    damaged, that has bytes left over, that names anything else, or that is no dictionary.
    """
    stream = io.BytesIO(data)
    try:
        found = _Unpickler(stream, path).load()
    except DataError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error}); fetch it again") from None
    if stream.tell() != len(data):
        raise DataError(f"{path}: {len(data) - stream.tell()} bytes follow the end of the pickle; fetch it again")
    if not isinstance(found, dict):
        raise DataError(f"{path}: the pickle holds {type(found).__name__}, not a dictionary; fetch the original file")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): item.value if isinstance(item, _Array) else item
        for key, item in found.items()
    }


def pickled_images(path: Path, data: bytes, key: str, side: int, first: int, classes: int) -> tuple[Images, Labels]:
    """Images uint8 [N, 3, side, side] and labels of a pickled batch: "data" [N, 3 side^2] by channel, row, column.

    key: where the labels are, which count from `first`. Raises DataError for anything else.
    """
    batch = read_pickle(path, data)
    absent = [name for name in ("data", key) if name not in batch]
    if absent:
        raise DataError(f"{path}: no {' and '.join(absent)} in it, only {sorted(batch)}; fetch the original file")
    pixels = batch["data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * side * side,):
        what = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{path}: 'data' is {what}, expected uint8 (N, {3 * side * side}); fetch the original file")
    labels = class_labels(batch[key], len(pixels), first, classes, f"{path}, '{key}'")
    return pixels.reshape(-1, 3, side, side), labels


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C allocates a table as long as the largest index a file names."""

    def __init__(self, stream: io.BytesIO, path: Path) -> None:
        super().__init__(stream, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
            return _Stand(_reconstruct)
        if full == "numpy.dtype":
            return _Stand(_Dtype)
        if full == "_codecs.encode":
            return _Stand(_encode)
        if full == "numpy.ndarray":
            return _ARRAY_TYPE
        raise DataError(
            f"{self.path}: refused: this pickle names {full}, which the original files never do; it may be made to run "
            "code here. Fetch the file from its original source"
        )

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Stand:
    """A function that a pickle may call, and do nothing else with."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Dtype:
    """What numpy.dtype(name, align, copy) and its state say: a plain number type and its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, name: object, *_: object) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text not in PLAIN:
            raise pickle.UnpicklingError(f"an array of type {name!r}; only plain numbers are read")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), b"|" | "|" | b"<" | "<" | b"=" | "=", None, None, None, *_):
                order = "<"
            case (int(), b">" | ">", None, None, None, *_):
                order = ">"
            case _:
                raise pickle.UnpicklingError("a number type with a state that is not one")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """What _reconstruct makes; `value` is the array once its state is there."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray = np.zeros(0, np.uint8)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Dtype() as kind, bool() | int() as fortran, bytes() as content):
                pass
            case _:
                raise pickle.UnpicklingError("an array with a state that is not one")
        if not all(type(length) is int and length >= 0 for length in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape}")
        if prod(shape) * kind.dtype.itemsize != len(content):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(content)} bytes")
        self.value = np.frombuffer(content, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: object, *_: object) -> _Array:
    if kind is not _ARRAY_TYPE:
        raise pickle.UnpicklingError("an array that is not a numpy.ndarray")
    return _Array()


def _encode(text: object, encoding: object = "utf-8") -> bytes:
    """Bytes as python 3 writes them for python 2: characters in latin1."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("bytes in an encoding other than latin1")
    return text.encode("latin1")
