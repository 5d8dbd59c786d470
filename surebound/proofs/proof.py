"""A proof as a file: the split tree of every disjunct, and how the boxes of its root were obtained.

The form is described in docs/proofs.md. Bounds are not evidence but a record: whoever checks a proof bounds the leaves
anew (`surebound.proofs.replay`).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surebound.errors import InvalidProof
from surebound.graph.ir import Graph
from surebound.graph.prepare import prepare
from surebound.rowfile import replace_file
from surebound.search.tree import Tree

FORM = "surebound-proof"
VERSION = 1

COLUMNS = {
    "parent": np.int64,
    "node": np.int16,
    "index": np.int32,
    "threshold": np.float64,
    "sign": np.int8,
    "lower": np.float64,
}
"""The columns of all trees, one tree after the other; `parent` counts from the tree's own first row."""


@dataclass(frozen=True)
class Proof:
    """trees: one for each case and disjunct, in the property's order. origins: where the nodes that are split come from
    in the network's file, by their names in the trees. sources: the files it is about, sha256 by role.
    """

    trees: tuple[Tree, ...]
    origins: Mapping[str, str]
    sources: Mapping[str, str]

    @property
    def whole(self) -> bool:
        """Is no leaf open? What an unfinished search leaves is not whole."""
        return not any(len(tree.open) for tree in self.trees)


def proof_of(graph: Graph, trees: Sequence[Tree], sources: Mapping[str, str] | None = None) -> Proof:
    """What is known after a search of a property of `graph`: its trees, in the property's order."""
    names = dict.fromkeys(name for tree in trees for name in tree.names)
    prepared = prepare(graph)
    return Proof(tuple(trees), {name: prepared[name].origin for name in names}, dict(sources or {}))


def save_proof(proof: Proof, path: str | Path) -> None:
    """Write a proof; an existing file is replaced at once."""
    header = {
        "form": FORM,
        "version": VERSION,
        "nodes": [{"name": name, "origin": origin} for name, origin in proof.origins.items()],
        "sources": dict(proof.sources),
        "roots": [tree.root_bound for tree in proof.trees],
    }
    number = {name: k for k, name in enumerate(proof.origins)}
    trees = [replace(tree, node=renumbered(tree, number)) for tree in proof.trees]
    columns = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in COLUMNS}
    rows = np.array([len(tree.parent) for tree in trees], np.int64)
    file = io.BytesIO()
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    arrays: dict[str, Any] = {"header": text, "rows": rows, **columns}
    np.savez_compressed(file, **arrays)
    replace_file(Path(path), file.getvalue())


def renumbered(tree: Tree, number: Mapping[str, int]) -> NDArray[np.int16]:
    """The nodes of a tree's rows, numbered as in the file."""
    return np.array([number[name] for name in tree.names], np.int16)[tree.node]


def load_proof(path: str | Path) -> Proof:
    """Read a proof; InvalidProof for anything that is none."""
    try:
        data = io.BytesIO(Path(path).read_bytes())
        if not zipfile.is_zipfile(data):
            raise ValueError("it is no archive; give one that was written as a proof, or another path")
        data.seek(0)
        with np.load(data, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("header", "rows", *COLUMNS)}
        header: dict[str, Any] = json.loads(arrays.pop("header").tobytes())
        found = header["form"], header["version"]
        names = tuple(node["name"] for node in header["nodes"])
        origins = {node["name"]: str(node["origin"]) for node in header["nodes"]}
        sources, roots = dict(header["sources"]), [str(root) for root in header["roots"]]
    except FileNotFoundError:
        raise InvalidProof(f"there is no proof at {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidProof(f"{path} is no proof that can be read: {error}") from error
    if found != (FORM, VERSION):
        raise InvalidProof(f"{path} has the form {found[0]!r}, version {found[1]!r}; this reads {FORM!r}, {VERSION}")
    rows = arrays.pop("rows")
    check_columns(path, rows, arrays, len(roots))
    ends = np.cumsum(rows)
    parts = {name: np.split(arrays[name], ends[:-1]) for name in COLUMNS}
    trees = tuple(Tree(names, *(parts[name][k] for name in COLUMNS), root_bound=root) for k, root in enumerate(roots))
    return Proof(trees, origins, sources)


def check_columns(path: str | Path, rows: NDArray[Any], columns: Mapping[str, NDArray[Any]], roots: int) -> None:
    """Every column holds what it should, as many as the rows say."""
    if rows.dtype != np.int64 or rows.shape != (roots,) or (rows < 1).any():
        raise InvalidProof(f"{path}: 'rows' has to say for each of {roots} trees how many rows it has, at least one")
    for name, kind in COLUMNS.items():
        column = columns[name]
        if column.dtype != kind or column.shape != (int(rows.sum()),):
            raise InvalidProof(
                f"{path}: column '{name}' is {column.dtype} {list(column.shape)}, not {np.dtype(kind)} [{rows.sum()}]"
            )
