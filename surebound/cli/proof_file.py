"""Where `verify --proof` keeps a proof, or how far its search came."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from surebound import __version__
from surebound.cli.output import say
from surebound.errors import UsageError
from surebound.graph.ir import Graph
from surebound.proofs.proof import load_proof, proof_of, save_proof
from surebound.search.tree import Tree
from surebound.sweeps.instances import onnx_sha256, sha256


@dataclass(frozen=True)
class ProofFile:
    """A path, what the proof is about (hashes of files) and by which version, and the trees of an unfinished search."""

    path: Path
    sources: Mapping[str, str]
    begun: Sequence[Tree]

    @staticmethod
    def at(path: Path, model: Path, spec: Path) -> ProofFile:
        """Read what is there and check that it can be replaced, before any work is done.

        Raises InvalidProof for a file that is no proof, UsageError for one of something else and for a path that
        cannot be written.
        """
        sources = {"network": onnx_sha256(str(model)), "property": sha256(str(spec)), "surebound": __version__}
        if not os.access(path.parent, os.W_OK) or path.is_dir():
            raise UsageError(f"the proof {path} cannot be written; choose another path")
        if not path.exists():
            return ProofFile(path, sources, ())
        proof = load_proof(path)
        if dict(proof.sources) != sources:
            raise UsageError(f"the proof {path} is of another network, property or version; choose another path")
        return ProofFile(path, sources, () if proof.whole else proof.trees)

    @property
    def proven(self) -> int:
        """Sub-problems that the earlier search proved."""
        return sum(len(tree.leaves) - len(tree.open) for tree in self.begun)

    def write(self, graph: Graph, trees: Sequence[Tree]) -> None:
        """Replace what the file holds; UsageError when that fails after all."""
        try:
            save_proof(proof_of(graph, trees, self.sources), self.path)
        except OSError as error:
            raise UsageError(f"the proof {self.path} could not be written: {error.strerror}") from None

    def keep(self, graph: Graph, trees: Sequence[Tree]) -> None:
        """Write how far a search came."""
        self.write(graph, trees)
        waiting = sum(len(tree.open) for tree in trees)
        proven = sum(len(tree.leaves) for tree in trees) - waiting
        kept = f"{proven:,} proven and {waiting:,} open sub-problems are kept in {self.path}"
        say(f"{kept}; the same command goes on from there")
