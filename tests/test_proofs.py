"""Proofs: what is kept can be replayed, comes back from its file, and is refused when it does not cover the region."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from proof_cases import proven, search_by

from surebound.errors import InvalidProof
from surebound.graph.prepare import prepare
from surebound.proofs.proof import load_proof, proof_of, save_proof
from surebound.proofs.replay import replay
from surebound.properties import Property
from surebound.search.run import VerifyConfig
from surebound.search.tree import Tree
from surebound.search.verdict import Verified
from surebound.search.verify import verify


@pytest.mark.parametrize("how", ["inputs", "neurons"])
def test_a_proof_is_replayed_from_its_file(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    graph, prop, verdict = proven(how)
    assert [len(tree.parent) > 3 for tree in verdict.trees] == [False, True]
    save_proof(proof_of(graph, verdict.trees, {"network": "12ab"}), tmp_path / "proof")
    proof = load_proof(tmp_path / "proof")
    assert proof.sources == {"network": "12ab"}
    assert {name: prepare(graph)[name].origin for name in proof.origins} == dict(proof.origins)
    for kept, made in zip(proof.trees, verdict.trees, strict=True):
        assert kept.root_bound == made.root_bound
        for name in ("parent", "index", "threshold", "sign", "lower"):
            assert np.array_equal(getattr(kept, name), getattr(made, name)), name
        assert [kept.names[node] for node in kept.node[1:]] == [made.names[node] for node in made.node[1:]]
    found = replay(graph, prop, proof.trees)
    assert found.holds and found.margin > 0
    assert found.leaves == sum(len(tree.leaves) for tree in verdict.trees)


def test_a_tree_that_splits_neurons_is_replayed_by_them_also_where_inputs_would_be_split() -> None:
    graph, prop, verdict = proven("neurons")
    found = replay(graph, prop, verdict.trees)
    assert found.holds and found.margin > 0
    easy, hard = verdict.trees
    lower = hard.lower.copy()
    lower[hard.leaves[len(hard.leaves) // 2 :]] = -np.inf
    begun = {0: (easy, replace(hard, lower=lower))}
    (again,) = verify(graph, [prop], VerifyConfig(timeout=60.0, attack="none"), begun=begun)
    assert isinstance(again.verdict, Verified) and again.engine.startswith("beta-crown")


@pytest.mark.parametrize("how", ["inputs", "neurons"])
def test_what_was_not_split_enough_is_split_further(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof cut back to its first split."""
    search_by(how, monkeypatch)
    graph, prop, verdict = proven(how)
    easy, hard = verdict.trees
    columns = {name: getattr(hard, name)[:3] for name in ("parent", "node", "index", "threshold", "sign", "lower")}
    found = replay(graph, prop, [easy, replace(hard, **columns)])
    assert found.holds and found.leaves == 3 and found.more > 0
    assert replay(graph, prop, verdict.trees).more < found.more


@pytest.mark.parametrize("how", ["inputs", "neurons"])
def test_a_proof_of_something_false_does_not_hold(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    graph, prop, verdict = proven(how)
    easy, hard = prop.cases[0].disjuncts
    false = replace(hard, t=hard.t + 0.05)
    case = replace(prop.cases[0], disjuncts=(easy, false))
    found = replay(graph, Property((case,)), verdict.trees, timeout=1.0)
    assert not found.holds
    assert found.reason in ("not decided within 1 s", "a sub-problem cannot be split any further")
    late = replay(graph, Property((case,)), verdict.trees, timeout=1e-9)
    assert not late.holds and late.reason == "not decided within 1e-09 s"


def changed(tree: Tree, **changes: tuple[int, float]) -> Tree:
    """A tree with single entries changed: column=(row, value)."""
    columns = {}
    for name, (row, value) in changes.items():
        columns[name] = getattr(tree, name).copy()
        columns[name][row] = value
    return replace(tree, **columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent": (0, 0)}, "tree 1, row 0: the first row has to be the root, with parent -1"),
        ({"parent": (2, 5)}, "row 2: its parent 5 does not come before it"),
        ({"parent": (3, -1)}, "row 3: its parent -1 does not come before it"),
        ({"sign": (1, 1)}, "row 1: it and the next are not the two sides of one split, -1 first"),
        ({"sign": (2, 0)}, "row 1: it and the next are not the two sides"),
        ({"threshold": (2, 0.125)}, "row 1: it and the next are not the two sides"),
        ({"index": (4, 15)}, "row 3: it and the next are not the two sides"),
        ({"threshold": (3, float("nan"))}, "row 3: its threshold is not finite"),
        ({"node": (3, 9)}, "row 3: node 9 is not one of the 3 named"),
        ({"index": (3, 99)}, "row 3: '.*' has no position 99, but 16"),
        ({"index": (3, -1)}, "row 3: '.*' has no position -1, but 16"),
    ],
)
def test_a_tree_that_does_not_cover_the_region_is_refused(
    changes: dict[str, tuple[int, float]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_by("neurons", monkeypatch)
    graph, prop, verdict = proven("neurons")
    easy, hard = verdict.trees
    with pytest.raises(InvalidProof, match=message):
        replay(graph, prop, [easy, changed(hard, **changes)])


def test_rows_missing_twice_split_or_of_other_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    search_by("neurons", monkeypatch)
    graph, prop, verdict = proven("neurons")
    easy, hard = verdict.trees
    with pytest.raises(InvalidProof, match="the proof has 1 trees, the property 2 cases and disjuncts"):
        replay(graph, prop, [hard])
    columns = {name: getattr(hard, name)[:-1] for name in ("parent", "node", "index", "threshold", "sign", "lower")}
    with pytest.raises(InvalidProof, match="rows after the first come in pairs"):
        replay(graph, prop, [easy, replace(hard, **columns)])
    twice = hard.parent.copy()
    twice[3:5] = 0
    with pytest.raises(InvalidProof, match="tree 1, row 0: it is split more than once"):
        replay(graph, prop, [easy, replace(hard, parent=twice)])
    with pytest.raises(InvalidProof, match="'other' is no value of this network that can be split"):
        replay(graph, prop, [easy, replace(hard, names=tuple("other" for _ in hard.names))])


def test_files_that_are_no_proofs_are_refused(tmp_path: Path) -> None:
    graph, _, verdict = proven("neurons")
    path = tmp_path / "proof"
    with pytest.raises(InvalidProof, match="there is no proof at"):
        load_proof(path)
    save_proof(proof_of(graph, verdict.trees), path)
    whole = path.read_bytes()
    for part in (b"", b"text", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(InvalidProof, match="is no proof that can be read"):
            load_proof(path)
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    header = json.loads(arrays["header"].tobytes())

    def saved(**changes: object) -> None:
        with path.open("wb") as file:
            np.savez(file, **{**arrays, **changes})

    for wrong, message in (
        ({"header": np.frombuffer(json.dumps({**header, "version": 2}).encode(), np.uint8)}, "version 2"),
        ({"header": np.frombuffer(b"[]", np.uint8)}, "is no proof that can be read"),
        ({"sign": arrays["sign"].astype(np.int32)}, r"column 'sign' is int32 \[\d+\], not int8"),
        ({"index": arrays["index"][:-1]}, "column 'index' is int32"),
        ({"rows": arrays["rows"] * 0}, "'rows' has to say for each of 2 trees how many rows it has"),
        ({"rows": np.array([object()])}, "is no proof that can be read"),
    ):
        saved(**wrong)
        with pytest.raises(InvalidProof, match=message):
            load_proof(path)
