"""Verified accuracy: stages, what the command writes, and runs that end early."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tiny_files import W1, write_model
from torch import Tensor, nn
from typer.testing import CliRunner

from surebound.bounds.crown import Ibp
from surebound.bounds.query import Bounds, Query
from surebound.cli.app import app
from surebound.cli.evaluate import COLUMNS, Budget
from surebound.data.dataset import Part
from surebound.data.digits import load_digits
from surebound.data.readers import load_part
from surebound.errors import DataError, OutOfMemory, SpecError, TraceMismatch, UsageError
from surebound.graph.ir import Graph
from surebound.graph.torch_export import trace
from surebound.measures import verified
from surebound.measures.verified import METHODS, EvaluateConfig, Judged, evaluate, summary
from surebound.nets.small import digits_cnn
from surebound.search.run import VerifyConfig

EPS = 0.02
FACTORY = "surebound.nets.small:digits_cnn"
INDICES = load_digits().test.indices.tolist()[:40]
SUMMARY = [
    "schema", "n", "clean", "attacked", "verified_ibp", "verified_crown", "verified_alpha", "verified", "unknown",
    "errors", "wall_s", "config", "model_sha256",
]  # fmt: skip


def trained() -> nn.Module:
    """A network that knows the digits a little: a few steps on a few images."""
    data = load_digits().train
    net = digits_cnn(0)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.images[:500]), data.labels[:500]).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def weights(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def graph(net: nn.Module) -> Graph:
    return trace(net, part(1).images)


def part(count: int) -> Part:
    return load_digits().test.take(torch.arange(count))


def config(*methods: str, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(methods or METHODS, search=VerifyConfig(timeout=20.0), **changes)


def command(weights: Path, out: Path, *more: object) -> list[str]:
    words = (
        "evaluate", FACTORY, "--weights", weights, "--data", "digits", "--eps", EPS, "--n", 12, "--timeout", 20,
        "--threads", 1, "--out", out, *more,
    )  # fmt: skip
    return [str(word) for word in words]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "rows.csv").open() as file:
        return list(csv.DictReader(file))


def in_order(*places: int) -> list[str]:
    return [str(index) for index in sorted(INDICES[k] for k in places)]


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "charged_s"} for row in rows]


# ---------------------------------------------------------------- what is decided


@pytest.fixture(scope="module")
def found(graph: Graph) -> list[Judged]:
    return evaluate(graph, part(40), EPS, config=config())


def test_every_image_is_decided_once_and_in_order(found: list[Judged]) -> None:
    assert [item.index for item in found] == INDICES
    assert {item.status for item in found} == {"wrong", "falsified", "verified"}


def test_verified_images_withstand_every_change_that_is_tried(found: list[Judged], net: nn.Module) -> None:
    images = dict(zip(INDICES, part(40).images, strict=True))
    generator = torch.Generator().manual_seed(1)
    for item in found:
        x = images[item.index]
        noise = (2 * torch.rand(500, *x.shape, generator=generator) - 1).sign() * EPS
        answers = net((x + noise).clamp(0, 1)).argmax(1)
        if item.status == "verified":
            assert bool((answers == item.label).all())


def test_falsified_images_have_a_witness_inside_the_region(found: list[Judged], net: nn.Module) -> None:
    images = dict(zip(INDICES, part(40).images, strict=True))
    for item in found:
        if item.status != "falsified":
            continue
        assert item.outcome is not None
        x = torch.tensor([float(v) for v in item.outcome.verdict.witness.x]).reshape(1, 1, 8, 8)  # pyright: ignore[reportAttributeAccessIssue]
        assert bool(((x - images[item.index]).abs() <= EPS + 1e-6).all())
        logits = net(x)[0]
        assert logits[item.label] <= logits[torch.arange(10) != item.label].max() + 1e-5


def test_wrong_answers_are_the_networks_own(found: list[Judged], net: nn.Module) -> None:
    answers = net(part(40).images).argmax(1).tolist()
    assert [item.prediction for item in found] == answers
    assert [item.status == "wrong" for item in found] == [item.prediction != item.label for item in found]


def test_each_method_proves_at_least_as_much_as_cheaper_ones(found: list[Judged]) -> None:
    told = summary(found)
    order = ("verified_ibp", "verified_crown", "verified_alpha", "verified", "attacked", "clean")
    values = [told[name] for name in order]
    assert values == sorted(values) and told["verified_crown"] > told["verified_ibp"]
    assert told["unknown"] == 0 and told["n"] == 40


def test_bounds_of_later_methods_are_no_worse(found: list[Judged]) -> None:
    for item in found:
        for a, b in (("ibp", "crown"), ("crown", "alpha-crown")):
            if a in item.lower and b in item.lower:
                assert item.lower[a] <= item.lower[b] + 1e-5


def test_one_image_at_a_time_gives_the_same_statuses(graph: Graph, found: list[Judged]) -> None:
    alone = evaluate(graph, part(40), EPS, config=config(pool=1))
    assert [item.status for item in alone] == [item.status for item in found]


def test_methods_that_are_left_out_leave_images_open(graph: Graph) -> None:
    found = evaluate(graph, part(12), EPS, config=config("clean", "ibp"))
    open_ones = [item for item in found if item.status == "unknown"]
    assert open_ones and {item.reason for item in open_ones} == {"left open by clean, ibp"}


def test_a_norm_of_two(graph: Graph) -> None:
    found = evaluate(graph, part(10), 0.05, 2, config())
    assert "verified" in {item.status for item in found}


class Scaled(nn.Module):
    """Two logits; `scale` is no tensor, so a graph keeps the one it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.0

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return torch.cat([1 + self.scale * (0.5 - first), 0 * first], 1)


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "complete"])
def test_a_module_that_has_changed_since_is_not_proven_by_its_old_graph(method: str) -> None:
    net, images = Scaled().eval(), torch.full((1, 1, 2, 2), 0.5)
    graph = trace(net, images)
    net.scale = 100.0
    some = Part(images, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(TraceMismatch, match="has changed since it was traced"):
        evaluate(graph, some, 0.1, config=config("clean", method))


def test_logits_that_are_not_finite_are_an_error() -> None:
    images = torch.ones(1, 1, 8, 8)
    told = verified.predictions(
        trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), images), images * torch.nan
    )
    assert told.tolist() == [-1]


def test_too_little_memory_leaves_images_open_with_the_reason(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(*arguments: Any) -> None:
        raise OutOfMemory("3 GB wanted")

    monkeypatch.setattr(verified, "STAGES", {"crown": stage})
    found = evaluate(graph, part(6), EPS, config=config("clean", "crown"))
    reasons = {item.reason for item in found if item.status == "unknown"}
    assert reasons == {"crown: 3 GB wanted"}


def test_an_image_is_charged_little_more_than_it_may_be(graph: Graph) -> None:
    asked = EvaluateConfig(("clean", "complete"), search=VerifyConfig(timeout=0.5))
    began = time.monotonic()
    found = evaluate(graph, part(6), 0.2, config=asked)
    assert time.monotonic() - began < 6 * 0.5 * 1.02 + 5
    assert {item.reason for item in found if item.status == "unknown"} <= {"not decided within 0.5 s"}


def test_cheap_methods_keep_to_the_timeout_too(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def slow(name: str) -> Callable[..., None]:
        def stage(task: Any, at: torch.Tensor, tell: Any, show: Any) -> None:
            tried.append(name)
            verified.bounded(lambda *_: Slow())(task, at, tell, show)

        return stage

    monkeypatch.setattr(verified, "STAGES", {name: slow(name) for name in ("ibp", "crown")})
    monkeypatch.setattr(verified, "AT_ONCE", 1)
    asked = EvaluateConfig(("clean", "ibp", "crown"), search=VerifyConfig(timeout=0.02))
    found = evaluate(graph, part(40), 0.3, config=asked)
    late = [item for item in found if item.status == "unknown"]
    assert tried == ["ibp"] and late
    assert {item.reason for item in late} == {"not decided within 0.02 s"}
    assert all(0.02 <= item.seconds < 0.04 for item in late)
    assert sum("ibp" in item.lower for item in late) < len(late) / 2


@pytest.mark.parametrize(("method", "looks"), [("crown", 2), ("alpha-crown", 2), ("alpha-crown", 9)])
def test_a_bound_ends_between_two_walks_when_the_time_is_over(
    method: str, looks: int, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage looks at the clock once, and every walk, and every step of alphas, looks again."""
    counts: list[Iterator[int]] = []

    def late(task: object, images: int) -> Callable[[], bool]:
        counts.append(itertools.count())
        return lambda: next(counts[-1]) >= looks

    monkeypatch.setattr(verified.Task, "late", late)
    found = evaluate(graph, part(6), EPS, config=config("clean", method))
    assert next(counts[0]) == looks + 1  # nobody went on after the time was over
    assert {item.status for item in found} <= {"wrong", "unknown"} and not any(item.lower for item in found)


class Slow:
    """Interval arithmetic that takes its time."""

    def bound(self, query: Query, warm: Mapping[str, Tensor] | None = None) -> Bounds:
        time.sleep(0.1)
        return Ibp().bound(query, warm)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EvaluateConfig(("clean", "crwon")), UsageError, "there is no method 'crwon'; choose among clean, pgd"),
        (lambda: EvaluateConfig(pool=0), UsageError, "a pool needs at least one image, got 0"),
        (lambda: summary([]), DataError, "needs at least one image"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_images_of_another_size_are_refused(graph: Graph) -> None:
    images = Part(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="the images have 16 values each .* input has 64"):
        evaluate(graph, images, EPS, config=config())


def test_an_infinite_bound_proves_nothing() -> None:
    lower = {"crown": math.inf, "alpha-crown": 0.5}
    told = summary([Judged(0, 1, 1, "verified", lower=lower)])
    assert [told[name] for name in ("verified_crown", "verified_alpha", "verified")] == [0, 1, 1]


def test_images_with_their_axes_in_another_order_are_refused() -> None:
    last = trace(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval(), torch.zeros(1, 4, 4, 3))
    images = Part(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(DataError, match="as many values in another order"):
        evaluate(last, images, EPS, config=config())
    flat = trace(nn.Linear(48, 10).eval(), torch.zeros(1, 48))
    assert len(evaluate(flat, images, EPS, config=config("clean"))) == 1


def test_labels_that_the_network_does_not_know_are_refused() -> None:
    net = trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval(), part(1).images)
    with pytest.raises(SpecError, match=r"label 9 is not one of the 5 classes 0\.\.4"):
        evaluate(net, part(12), EPS, config=config("clean"))


# ---------------------------------------------------------------- the command


def test_what_is_written(weights: Path, tmp_path: Path) -> None:
    result = run(*command(weights, tmp_path / "out", "--json"))
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["config"]["norm"] == "inf"
    assert list(told) == SUMMARY and told == json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = rows_of(tmp_path / "out")
    assert (tmp_path / "out" / "rows.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [int(row["index"]) for row in rows] == load_part("digits", None, "test").indices.tolist()[:12]
    assert told["n"] == 12 and told["verified"] == sum(row["status"] == "verified" for row in rows) / 12
    for row in rows:
        assert row["status"] in ("wrong", "falsified", "verified", "unknown", "error")
        assert (row["attack_margin"] == "") == (row["status"] in ("wrong", "error"))
        assert row["seed"] == "0" and int(row["nodes"]) >= 0 and float(row["charged_s"]) >= 0


def test_for_people(weights: Path, tmp_path: Path) -> None:
    result = run(*command(weights, tmp_path / "out"))
    assert "verified" in result.stdout and "%" in result.stdout and "images" in result.stdout


def test_the_same_command_twice_decides_nothing_twice(weights: Path, tmp_path: Path) -> None:
    run(*command(weights, tmp_path / "out"))
    before = (tmp_path / "out" / "rows.csv").read_bytes()
    result = run(*command(weights, tmp_path / "out"))
    assert result.exit_code == 0 and (tmp_path / "out" / "rows.csv").read_bytes() == before


def test_two_runs_write_the_same_but_for_times(weights: Path, tmp_path: Path) -> None:
    for name in "ab":
        run(*command(weights, tmp_path / name))
    assert timeless(rows_of(tmp_path / "a")) == timeless(rows_of(tmp_path / "b"))


def test_a_torn_row_is_decided_again(weights: Path, tmp_path: Path) -> None:
    run(*command(weights, tmp_path / "out"))
    whole, path = rows_of(tmp_path / "out"), tmp_path / "out" / "rows.csv"
    path.write_bytes(path.read_bytes()[:-20])
    assert run(*command(weights, tmp_path / "out")).exit_code == 0
    assert [row["status"] for row in rows_of(tmp_path / "out")] == [row["status"] for row in whole]


def test_more_images_later(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps({"mine": [INDICES[k] for k in (2, 1, 5)]}))
    (tmp_path / "more.txt").write_text("\n".join(str(INDICES[k]) for k in (1, 2, 5, 0)))
    words = ["evaluate", FACTORY, "--weights", str(weights), "--data", "digits", "--eps", str(EPS), "--timeout", "20"]
    out = str(tmp_path / "out")
    assert run(*words, "--indices", f"{tmp_path}/some.json:mine", "--out", out).exit_code == 0
    assert [row["index"] for row in rows_of(tmp_path / "out")] == in_order(1, 2, 5)
    result = run(*words, "--indices", str(tmp_path / "more.txt"), "--out", out, "--json")
    assert json.loads(result.stdout)["n"] == 4
    assert [row["index"] for row in rows_of(tmp_path / "out")] == in_order(0, 1, 2, 5)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGINT, signal.SIGTERM))]
)
def test_a_run_that_is_stopped_goes_on(weights: Path, tmp_path: Path, how: signal.Signals) -> None:
    out, words = tmp_path / "out", command(weights, tmp_path / "out", "--pool", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", START, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}
    )
    path = out / "rows.csv"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == (130 if how != signal.SIGKILL else -signal.SIGKILL), said
    if how != signal.SIGKILL:
        assert f"what was decided so far is in {out}" in said.decode()
    half = rows_of(out)
    assert 2 < len(half) < 12
    assert run(*words).exit_code == 0
    assert rows_of(out)[: len(half)] == half and len(rows_of(out)) == 12


START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from surebound.cli import main; main()"
)
"""A background process may have interrupts ignored."""


def test_two_runs_do_not_share_a_folder(weights: Path, tmp_path: Path) -> None:
    from surebound.rowfile import claimed

    with claimed(tmp_path / "out"):
        result = run(*command(weights, tmp_path / "out"))
    assert result.exit_code == 2 and "another run is writing to it" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--eps", "8/0"], "--eps must be a number or a fraction such as 8/255, got '8/0'"),
        (["--eps", "8/"], "--eps must be a number or a fraction such as 8/255, got '8/'"),
        (["--eps", "-0.1"], "eps"),
        (["--eps", "nan"], "eps must be a finite number"),
        (["--norm", "3"], "norm"),
        (["--n", "0"], "--n must be from 1 to 359, the number of test images, got 0"),
        (["--indices", "nowhere.txt"], "give --n or --indices, not both"),
        (["--methods", "clean,magic"], "there is no method 'magic'"),
        (["--pool", "0"], "a pool needs at least one image"),
        (["--data", "digts"], "digits"),
        (["--weights", "nowhere.safetensors"], "the weights in nowhere.safetensors cannot be read"),
    ],
)
def test_messages(weights: Path, tmp_path: Path, change: list[str], message: str) -> None:
    result = run(*command(weights, tmp_path / "out", *change))
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert result.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\ntwo\n", "holds no list of indices"),
        ("3\n3\n", "names an image twice"),
        ("[]", "must hold a list of image indices"),
        ("[-1]", "must hold a list of image indices"),
        ("[999999]", "999999"),
    ],
)
def test_indices_that_are_none(weights: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "some").write_text(text)
    words = ["evaluate", FACTORY, "--weights", str(weights), "--data", "digits", "--eps", "0.1"]
    result = run(*words, "--indices", str(tmp_path / "some"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2 and message in result.stderr, result.stderr


def test_other_settings_do_not_mix(weights: Path, tmp_path: Path) -> None:
    run(*command(weights, tmp_path / "out"))
    before = (tmp_path / "out" / "rows.csv").read_bytes()
    result = run(*command(weights, tmp_path / "out", "--seed", "1"))
    assert result.exit_code == 2 and "holds results with another seed; choose another --out" in result.stderr
    (tmp_path / "out" / "config.json").write_text("[]")
    result = run(*command(weights, tmp_path / "out"))
    assert result.exit_code == 2 and "config.json is not one of ours" in result.stderr
    assert (tmp_path / "out" / "rows.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("verified", "great"), "rows.csv:3: a damaged row (there is no status 'great')"),
        ((",0,0.", ",0,x,0."), "rows.csv:3: not a row of results of this version"),
        (("verified,,", "verified,,x"), "rows.csv:3: a damaged row (could not convert string to float"),
        (("18,8,8", "18,3,8"), "has the label 3 there and 8 in the data"),
        (("18,8,8", "2,2,1"), "rows.csv:3: image 2 again"),
    ],
)
def test_rows_that_were_changed_are_not_counted(
    weights: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    words, path = command(weights, tmp_path / "out", "--methods", "clean,crown"), tmp_path / "out" / "rows.csv"
    assert run(*words).exit_code == 0
    lines = path.read_text().splitlines()
    assert change[0] in lines[2]
    lines[2] = lines[2].replace(*change)
    path.write_text("\n".join([*lines, ""]))
    before = (tmp_path / "out" / "summary.json").read_bytes()
    result = run(*words)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


def test_other_data_of_the_same_name_do_not_mix(weights: Path, tmp_path: Path) -> None:
    images = part(2).images.numpy()
    for name, labels in (("a", [2, 8]), ("b", [8, 2])):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "mine.npz", images=images, labels=labels)
    words = ["evaluate", FACTORY, "--weights", str(weights), "--data", "npz:mine.npz", "--eps", "0", "--threads", "1"]
    for name, code in (("a", 0), ("b", 2), ("a", 0)):
        result = run(*words, "--data-dir", str(tmp_path / name), "--out", str(tmp_path / "out"))
        assert result.exit_code == code, result.stderr
        assert code == 0 or "holds results with another data_dir" in result.stderr


def test_weights_beside_an_onnx_file_are_part_of_the_model(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((4, 1, 1, 2)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", images=images, labels=[0, 1, 0, 1])
    words = ["evaluate", str(tmp_path / "net.onnx"), "--data", "npz:mine.npz", "--data-dir", str(tmp_path)]
    words += ["--eps", "0", "--threads", "1", "--out", str(tmp_path / "out")]
    for scale, code in ((1, 0), (-1, 2)):
        model = onnx.load(write_model(tmp_path / "net.onnx", w1=(W1 * scale).astype(np.float32)))
        (tmp_path / "w.bin").unlink(missing_ok=True)
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        result = run(*words)
        assert result.exit_code == code, result.stderr
        assert code == 0 or "holds results with another model_sha256" in result.stderr


def test_weights_go_with_a_factory_only(weights: Path, tmp_path: Path) -> None:
    result = run(*(str(tmp_path) if word == FACTORY else word for word in command(weights, tmp_path / "out")))
    assert result.exit_code == 2 and "--weights goes with a factory" in result.stderr


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "raise ValueError('no')", "import sys; sys.path.clear()"])
def test_factories_that_fail_are_bad_input(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "homemade.py").write_text(f"def make():\n    {body}\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "homemade", raising=False)
    words = command(weights, tmp_path / "out")
    result = run(*("homemade:make" if word == FACTORY else word for word in words))
    assert result.exit_code == 2 and "homemade:make" in result.stderr, result.stderr


def test_how_long_it_takes_at_most() -> None:
    now = [100.0]
    budget = Budget(4, 30.0, lambda: now[0])
    assert budget.words() == "4 open, at most 2:00 to go"
    now[0] += 8.0
    assert budget.words() == "4 open, at most 1:52 to go"
    budget.decided(2.0)
    assert budget.words() == "3 open, at most 1:24 to go"
    for _ in range(3):
        budget.decided(2.0)
    assert budget.words() == "0 open, at most 0:00 to go"
