"""Reads properties in VNN-LIB: 1.0, a subset of SMT-LIB, by a strict grammar, and 2.0 with the package `vnnlib`.

X_i is entry i of the network's flattened input, Y_i of its output, and an assignment that satisfies ALL assertions,
those after an `or` included, is a counterexample.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from surebound.errors import SpecError
from surebound.properties import Property
from surebound.vnnlib import version1, version2
from surebound.vnnlib.cases import cases_of
from surebound.vnnlib.source import Atom, Source, forms_of


def load_vnnlib(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> Property:
    """Read a VNN-LIB file; it may be gzipped, also when only `path` + ".gz" exists.

    shape: of the regions, without the sample axis; default: one flat axis. Raises SpecError, naming the file
    and the line, for anything that is missing, damaged, not understood or contradictory; of VNN-LIB 2.0 UnsupportedSpec
    for queries that are not about real arithmetic or one network, and UsageError where the package vnnlib is missing.
    """
    return parse_vnnlib(read(Path(path)), os.fspath(path), shape)


def parse_vnnlib(text: str, file: str = "<text>", shape: Sequence[int] | None = None) -> Property:
    """Read VNN-LIB text; `file` is the name that messages give. See `load_vnnlib`."""
    source = Source(text, file)
    forms = tuple(forms_of(source))
    newer = bool(forms) and forms[0].items[:1] == (Atom("vnnlib-version", forms[0].start + 1),)
    asserted, inputs, outputs = version2.read_query(source) if newer else version1.read_commands(source, forms)
    shape = (inputs,) if shape is None else tuple(shape)
    if math.prod(shape) != inputs:
        raise SpecError(f"the property has {inputs} inputs, which do not fill the input shape {shape}", file)
    return Property(cases_of(source, asserted, inputs, outputs, shape))


def read(path: Path) -> str:
    zipped = Path(f"{path}.gz")
    found = zipped if zipped.is_file() and not path.exists() else path
    try:
        data = found.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError("no such file, also not with .gz appended; check the path", str(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SpecError(f"damaged gzip file ({error}); fetch it again", str(found)) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"not a text file ({error}); give a VNN-LIB file", str(found)) from None
    except OSError as error:
        raise SpecError(f"cannot be read ({error.strerror or error})", str(found)) from None
