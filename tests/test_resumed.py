"""Searches that are interrupted and go on: nothing that was proven is bounded again, and nothing open is forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from nets import tiny
from proof_cases import proven, search_by
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.errors import InvalidProof
from surebound.graph.ir import Graph
from surebound.graph.onnx_export import export
from surebound.proofs.proof import load_proof, save_proof
from surebound.proofs.replay import replay
from surebound.properties import Property
from surebound.search.pool import Pool
from surebound.search.run import VerifyConfig
from surebound.search.tree import Forest, Tree
from surebound.search.verdict import Unknown, Verified
from surebound.search.verify import Progress, verify

HOW = pytest.mark.parametrize("how", ["inputs", "neurons"])
CONFIG = VerifyConfig(timeout=60.0, attack="none")
Trees = tuple[Tree, ...]


def interrupted(graph: Graph, prop: Property, after: int, begun: Trees | None = None) -> tuple[Trees, int]:
    """What an interrupted search leaves, and how many sub-problems it bounded."""
    left: list[Trees] = []
    nodes = 0

    def stop(now: Progress) -> None:
        nonlocal nodes
        nodes = now.nodes
        if now.nodes >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(
            graph,
            [prop],
            CONFIG,
            stop,
            unfinished=lambda _, trees: left.append(trees),
            begun={0: begun} if begun else None,
        )
    (trees,) = left
    return trees, nodes


def closed(tree: Tree) -> set[tuple[tuple[str, int, float, int], ...]]:
    """The proven leaves, each by the splits that lead to it."""
    found = set()
    for leaf in np.setdiff1d(tree.leaves, tree.open).tolist():
        path, row = [], leaf
        while row > 0:
            path.append(
                (tree.names[tree.node[row]], int(tree.index[row]), float(tree.threshold[row]), int(tree.sign[row]))
            )
            row = int(tree.parent[row])
        found.add(tuple(path))
    return found


@HOW
def test_an_interrupted_search_goes_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice interrupted: what was proven stays a leaf of the proof, and is not bounded again."""
    search_by(how, monkeypatch)
    monkeypatch.setattr("surebound.search.neurons.SMALL", 0)
    monkeypatch.setattr("surebound.search.neurons.AT_ONCE", 8)
    monkeypatch.setattr("surebound.search.inputs.InputEngine.batch", 8)
    graph, prop, _ = proven(how)
    first, nodes = interrupted(graph, prop, 30 if how == "inputs" else 40)
    second, more = interrupted(graph, prop, 8, first)
    (found,) = verify(graph, [prop], CONFIG, begun={0: second})
    assert isinstance(found.verdict, Verified)
    for earlier, later in ((first, second), (second, found.verdict.trees)):
        assert closed(earlier[1]) and closed(earlier[1]) < closed(later[1])
    rows = sum(len(tree.parent) for tree in found.verdict.trees)
    assert nodes + more + found.nodes <= rows + 3 * 8 + 3, "only batches that were cut off are bounded again"
    assert found.verdict.margin == min(tree.lower[tree.leaves].min() for tree in found.verdict.trees)
    assert replay(graph, prop, found.verdict.trees).holds


@HOW
def test_what_ends_by_time_can_go_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    graph, prop, _ = proven(how)
    left: list[Trees] = []
    short = replace(CONFIG, timeout=1e-9)
    (late,) = verify(graph, [prop], short, unfinished=lambda _, trees: left.append(trees))
    assert isinstance(late.verdict, Unknown) and late.verdict.kind == "timeout"
    (found,) = verify(graph, [prop], CONFIG, unfinished=lambda _, trees: left.append(trees), begun={0: left[0]})
    assert isinstance(found.verdict, Verified)
    assert len(left) == 1, "what is decided is not unfinished"


@HOW
def test_what_was_begun_survives_an_end_before_the_search(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work ends while roots are bounded: the trees come back as they were given."""
    search_by(how, monkeypatch)
    graph, prop, _ = proven(how)
    first, _ = interrupted(graph, prop, 30)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    left: list[Trees] = []
    for place in ("bound_roots", "first_rows"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"surebound.search.verify.{place}", stop)
            verify(graph, [prop], CONFIG, unfinished=lambda _, trees: left.append(trees), begun={0: first})
        assert left[-1][1] is first[1]


@HOW
def test_a_false_property_is_never_proven_by_going_on(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_by(how, monkeypatch)
    graph, prop, _ = proven(how)
    easy, hard = prop.cases[0].disjuncts
    false = Property((replace(prop.cases[0], disjuncts=(easy, replace(hard, t=hard.t + 0.05))),))
    trees, _ = interrupted(graph, false, 60)
    for _ in range(3):
        left: list[Trees] = []
        (found,) = verify(
            graph,
            [false],
            replace(CONFIG, timeout=0.5),
            unfinished=lambda _, trees, left=left: left.append(trees),
            begun={0: trees},
        )
        assert isinstance(found.verdict, Unknown)
        (trees,) = left
        assert len(trees[1].open)


def test_leaves_without_a_finite_bound_are_open() -> None:
    _, _, verdict = proven("neurons")
    tree = verdict.trees[1]
    assert not len(tree.open)
    for value in (0.0, -1.0, np.nan, np.inf, -np.inf):
        lower = tree.lower.copy()
        lower[tree.leaves[3]] = value
        assert replace(tree, lower=lower).open.tolist() == [tree.leaves[3]]


def test_bounds_that_were_not_confirmed_close_nothing() -> None:
    """Children wait with their parent's bound, which may be positive before float64 says otherwise."""
    forest = Forest(["x"])
    (root,) = forest.append(parent=np.array([-1]), slot=-1, lower=-np.inf)
    children = forest.append(parent=np.full(2, root), sign=np.array([-1, 1], np.int8), depth=1)
    pool = cast(Pool, SimpleNamespace(forest=forest))
    Pool.wait(pool, children, np.array([0.25]), np.zeros(1), np.zeros(1, np.int32))
    assert forest.tree(0, "").open.tolist() == [1, 2]


def test_trees_of_another_property_are_refused() -> None:
    graph, prop, verdict = proven("neurons")
    with pytest.raises(InvalidProof, match="1 trees were begun, the property has 2 cases and disjuncts"):
        verify(graph, [prop], CONFIG, begun={0: verdict.trees[:1]})
    with pytest.raises(InvalidProof, match=r"tree 1, row \d+: 'z1' has no position 8, but 3"):
        other = tiny(1, (2, 3, 2))
        verify(other, [prop], CONFIG, begun={0: verdict.trees})


def test_one_of_several_properties_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    search_by("neurons", monkeypatch)
    graph, prop, _ = proven("neurons")
    trees, _ = interrupted(graph, prop, 30)
    other = replace(prop, cases=(replace(prop.cases[0], disjuncts=prop.cases[0].disjuncts[:1]),))
    found = verify(graph, [other, prop], CONFIG, begun={1: trees})
    assert all(isinstance(outcome.verdict, Verified) for outcome in found)
    assert torch.isfinite(torch.tensor([outcome.verdict.margin for outcome in found])).all()


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The network and the property that take a search, in small batches."""
    search_by("inputs", monkeypatch)
    monkeypatch.setattr("surebound.search.inputs.InputEngine.batch", 8)
    graph, prop, _ = proven("inputs")
    export(graph, tmp_path / "model.onnx")
    declared = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    box = "".join(f"(assert (>= X_{k} -4.0))\n(assert (<= X_{k} 4.0))\n" for k in range(2))
    limit = Decimal(float(prop.cases[0].disjuncts[1].t))
    (tmp_path / "spec.vnnlib").write_text(f"{declared}{box}(assert (<= (- Y_0 Y_1) {limit}))\n")
    return tmp_path / "model.onnx", tmp_path / "spec.vnnlib"


def test_the_same_command_goes_on(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = tmp_path / "proof.npz"
    arguments = (*files, "--attack", "none", "--proof", proof, "--json")
    done = command(*arguments)
    whole = json.loads(done.stdout)
    assert f"the proof is in {proof}" in done.stderr
    assert (whole["verdict"], whole["recheck"]) == ("unsat", "float64")
    leaves = len(load_proof(proof).trees[0].leaves)
    proof.unlink()

    step = Pool.step
    count = iter(range(1000))

    def interrupted(self: Pool, batch: np.ndarray) -> np.ndarray:
        if next(count) == 5:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Pool, "step", interrupted)
        ended = command(*arguments)
    assert ended.exit_code == 130 and json.loads(ended.stdout)["verdict"] == "unknown"
    begun = load_proof(proof)
    assert not begun.whole and (proven_before := len(closed(begun.trees[0])))
    kept = f"{proven_before} proven and {len(begun.trees[0].open)} open sub-problems are kept in {proof}"
    assert f"{kept}; the same command goes on from there" in ended.stderr
    found = json.loads(command(*arguments).stdout)
    assert (found["verdict"], found["recheck"]) == ("unsat", None) and found["margin"] > 0
    assert f"{proven_before} of them by the run that wrote {proof} first" in found["reason"]
    assert found["nodes"] < whole["nodes"]
    assert load_proof(proof).whole and abs(len(load_proof(proof).trees[0].leaves) - leaves) <= 0.2 * leaves
    save_proof(begun, proof)
    assert json.loads(command(*arguments, "--recheck").stdout)["recheck"] == "float64"


def test_files_that_cannot_be_gone_on_from_are_refused_and_left(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, spec = files
    proof = tmp_path / "proof.npz"
    proof.write_text("text")
    result = command(model, spec, "--proof", proof)
    assert result.exit_code == 2 and "is no proof that can be read: it is no archive; give one that" in result.stderr
    assert proof.read_text() == "text"
    proof.unlink()
    assert command(model, spec, "--proof", proof).exit_code == 0
    before = proof.read_bytes()
    spec.write_text(spec.read_text() + "; another\n")
    result = command(model, spec, "--proof", proof)
    assert result.exit_code == 2
    assert f"the proof {proof} is of another network, property or version; choose another path" in result.stderr
    assert proof.read_bytes() == before
    for path in (tmp_path, tmp_path / "missing" / "proof.npz"):
        result = command(model, spec, "--proof", path)
        assert result.exit_code == 2 and f"the proof {path} cannot be written; choose another path" in result.stderr
