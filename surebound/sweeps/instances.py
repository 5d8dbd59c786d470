"""From a list of instances to jobs: reading INSTANCES.csv, hashing contents, dropping duplicates."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

from surebound.errors import UsageError
from surebound.sweeps.jobs import Job, Settings, key_of

CHUNK = 1 << 20


@dataclass(frozen=True)
class Instance:
    """A line `onnx,vnnlib,timeout`: names as written, relative to `folder`, and seconds."""

    onnx: str
    vnnlib: str
    timeout_s: float
    folder: Path


def read_instances(path: Path, timeout: float | None = None) -> list[Instance]:
    """The lines of INSTANCES.csv; `timeout` replaces theirs. Empty lines are skipped.

    Raises UsageError, with file and line, when the file is missing, empty, or a line is malformed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(_lines(path, file, timeout))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give a CSV file of instances") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file ({error}); give a CSV file of instances") from None
    if not found:
        raise UsageError(f"{path}: it has no instances; write lines such as net.onnx,prop.vnnlib,60")
    return found


def _lines(path: Path, file: TextIO, timeout: float | None) -> Iterator[Instance]:
    reader, line = csv.reader(file, strict=True), 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield _instance(f"{path}:{line}", [field.strip() for field in fields], path.parent, timeout)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}:{line}: not CSV ({error}); write onnx,vnnlib,timeout") from None


def _instance(place: str, fields: Sequence[str], folder: Path, timeout: float | None) -> Instance:
    if len(fields) != 3 or not all(fields):
        raise UsageError(f"{place}: expected the 3 fields onnx,vnnlib,timeout, found '{','.join(fields)}'")
    onnx, vnnlib, text = fields
    try:
        seconds = float(text)
    except ValueError:
        hint = "; the file has no header" if text == "timeout" else ""
        raise UsageError(f"{place}: the timeout '{text}' is not a number of seconds{hint}") from None
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"{place}: the timeout must be a finite number of seconds above 0, got {text}")
    return Instance(onnx, vnnlib, seconds if timeout is None else timeout, folder)


def jobs_of(instances: Sequence[Instance], settings: Settings) -> list[Job]:
    """One job per content and timeout, in order of first appearance."""
    onnx_hash, vnnlib_hash = cache(onnx_sha256), cache(sha256)
    jobs = (_job(instance, settings, onnx_hash, vnnlib_hash) for instance in instances)
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.key, job)
    return list(first.values())


def _job(
    instance: Instance, settings: Settings, onnx_hash: Callable[[str], str], vnnlib_hash: Callable[[str], str]
) -> Job:
    onnx, vnnlib = (os.path.abspath(instance.folder / name) for name in (instance.onnx, instance.vnnlib))
    hashes = onnx_hash(onnx), vnnlib_hash(vnnlib)
    key = key_of(hashes[0] or onnx, hashes[1] or vnnlib, instance.timeout_s, settings)
    return Job(key, instance.onnx, instance.vnnlib, onnx, vnnlib, *hashes, instance.timeout_s, settings)


# ---------------------------------------------------------------- contents
def sha256(path: str) -> str:
    """The hash of a file's content, unpacked; "" when it cannot be read. NAME.gz serves where NAME is missing."""
    data = _content(Path(path))
    return "" if data is None else hashlib.sha256(data).hexdigest()


def onnx_sha256(path: str) -> str:
    """The hash of a network: of its file, unpacked, followed by the files in which it keeps weights; "" if missing."""
    data = _content(Path(path))
    if data is None:
        return ""
    digest = hashlib.sha256(data)
    for other in _weight_files(data, Path(path).parent):
        with other.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _content(path: Path) -> bytes | None:
    packed = path.with_name(path.name + ".gz")
    try:
        data = (packed if packed.is_file() and not path.exists() else path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error):
        return None


def _weight_files(data: bytes, folder: Path) -> list[Path]:
    """The files beside an ONNX file that hold some of its tensors; none for what is no ONNX."""
    if b"location" not in data:
        return []
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        tensors = onnx.load_from_string(data).graph.initializer
    except DecodeError:
        return []
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)})
    return [folder / name for name in names if (folder / name).is_file()]
