"""What the commands print and write, to the letter of the interface."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_files import W1, forward, write_model, write_spec
from typer.testing import CliRunner

import surebound
import surebound.demo
import surebound.search.verify
from surebound.cli.app import app
from surebound.cli.output import to_json
from surebound.cli.progress import steps_shown
from surebound.errors import OutOfMemory
from surebound.machine import TimeLimit, ending_interrupts, one_thread, parse_size, time_limit, use_threads
from surebound.proofs.replay import Replayed
from surebound.reports.table import Table
from surebound.witness import parse_witness

VERIFY_KEYS = [
    "schema", "verdict", "reason", "margin", "nodes", "seconds", "engine", "dtype", "device", "threads", "seed",
    "attack", "witness", "recheck",
]  # fmt: skip
HOLDS = ["(<= Y_0 0.0)"]
"""Y_0 is at least 0.25, so nothing satisfies this."""
FAILS = ["(>= Y_1 1.0)"]


def run(*arguments: object) -> Any:
    """One command in this process; the result has stdout, stderr and exit_code."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "net.onnx")


@pytest.fixture
def holds(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "holds.vnnlib", HOLDS)


@pytest.fixture
def fails(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "fails.vnnlib", FAILS)


def test_verify_prints_unsat(model: Path, holds: Path) -> None:
    result = run("verify", model, holds)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "unsat\n", "")


def test_a_proof_is_replayed(model: Path, holds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--recheck answers unsat when the proof replays, and unknown with the reason when it does not."""
    assert run("verify", model, holds, "--recheck").stdout == "unsat\n"
    failed = Replayed(-1.0, 1, 0, "a leaf was not bounded above zero")
    monkeypatch.setattr("surebound.proofs.replay.replay", lambda *arguments: failed)
    found = json.loads(run("verify", model, holds, "--recheck", "--json").stdout)
    assert (found["verdict"], found["margin"], found["recheck"]) == ("unknown", None, None)
    assert found["reason"] == "a proof did not replay: a leaf was not bounded above zero"


def test_verify_prints_sat_and_a_witness_that_the_network_confirms(model: Path, fails: Path) -> None:
    result = run("verify", model, fails, "--recheck")
    first, _, text = result.stdout.partition("\n")
    assert (result.exit_code, first) == (0, "sat")
    x, y = parse_witness(text)
    assert Decimal("-0.5") <= x[0] <= Decimal("0.5")
    assert Decimal("-0.25") <= x[1] <= Decimal("0.75")
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.array([[float(v) for v in x]], np.float32)})
    assert np.asarray(answer)[0, 1] >= 1.0
    assert [float(v) for v in y] == np.asarray(answer)[0].astype(float).tolist()


def test_verify_without_an_attack_still_never_says_unsat_of_a_violated_property(model: Path, fails: Path) -> None:
    result = run("verify", model, fails, "--attack", "none", "--timeout", 2)
    assert result.exit_code == 0
    assert result.stdout.split("\n")[0] in ("sat", "unknown", "timeout")


@pytest.mark.parametrize("spec", [HOLDS, FAILS])
def test_the_results_file_gets_exactly_what_stdout_shows(tmp_path: Path, model: Path, spec: list[str]) -> None:
    prop, file = write_spec(tmp_path / "p.vnnlib", spec), tmp_path / "results.txt"
    file.write_text("something old\n" * 100)
    result = run("verify", model, prop, "--results-file", file)
    assert file.read_text() == result.stdout
    assert result.exit_code == 0


def test_verify_json_of_a_proof(model: Path, holds: Path) -> None:
    result = run("verify", model, holds, "--json", "--threads", 1, "--seed", 3, "--dtype", "float64")
    found = json.loads(result.stdout)
    assert list(found) == VERIFY_KEYS
    assert list(found["seconds"]) == ["import", "load", "attack", "bound", "search"]
    assert all(isinstance(seconds, float) and seconds >= 0 for seconds in found["seconds"].values())
    assert 0 < found["margin"] <= 0.25
    assert found["nodes"] >= 1 and isinstance(found["engine"], str) and found["reason"]
    wanted = {"schema": 1, "verdict": "unsat", "dtype": "float64", "device": "cpu", "threads": 1, "seed": 3}
    wanted |= {"attack": "pgd", "witness": None, "recheck": "float64"}
    assert {key: found[key] for key in wanted} == wanted


def test_verify_json_of_a_counterexample(model: Path, fails: Path) -> None:
    found = json.loads(run("verify", model, fails, "--json").stdout)
    assert list(found) == VERIFY_KEYS
    assert (found["verdict"], found["margin"], found["recheck"]) == ("sat", None, None)
    assert list(found["witness"]) == ["X", "Y"]
    assert found["witness"]["Y"] == pytest.approx(forward(found["witness"]["X"]), abs=1e-6)
    assert found["witness"]["Y"][1] >= 1.0


def test_files_may_be_gzipped_under_the_plain_name(tmp_path: Path, model: Path, holds: Path) -> None:
    import gzip

    for path in (model, holds):
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert run("verify", model, holds).stdout == "unsat\n"
    assert run("verify", f"{model}.gz", f"{holds}.gz").stdout == "unsat\n"


def test_a_timeout_that_loading_uses_up(model: Path, holds: Path) -> None:
    result = run("verify", model, holds, "--timeout", 1e-9, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["verdict"]) == (0, "timeout")
    assert found["reason"] == "reading the files took all of 1e-09 seconds"


def raising(error: BaseException) -> Callable[..., Any]:
    def verify(*arguments: object, **named: object) -> Any:
        raise error

    return verify


@pytest.mark.parametrize(
    ("error", "code", "verdict", "message"),
    [
        (KeyboardInterrupt(), 130, "unknown", "interrupted"),
        (RuntimeError("boom"), 1, "error", "internal error: RuntimeError: boom"),
        (OutOfMemory("one row is too much"), 0, "memory", "one row is too much"),
        (MemoryError("no room"), 0, "memory", "out of memory: no room"),
    ],
)
def test_what_ends_a_run_early(
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    holds: Path,
    error: BaseException,
    code: int,
    verdict: str,
    message: str,
) -> None:
    monkeypatch.delenv("SUREBOUND_DEBUG", raising=False)
    monkeypatch.setattr(surebound.search.verify, "verify", raising(error))
    result = run("verify", model, holds)
    assert (result.exit_code, result.stdout) == (code, f"{verdict}\n")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    found = json.loads(run("verify", model, holds, "--json").stdout)
    assert list(found) == VERIFY_KEYS
    assert (found["verdict"], found["reason"]) == (verdict, message)


def test_the_traceback_of_an_internal_error_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, model: Path, holds: Path
) -> None:
    monkeypatch.setattr(surebound.search.verify, "verify", raising(RuntimeError("boom")))
    assert "Set SUREBOUND_DEBUG=1" in run("verify", model, holds).stderr
    monkeypatch.setenv("SUREBOUND_DEBUG", "1")
    assert "Traceback (most recent call last)" in run("verify", model, holds).stderr


def test_bounds_json(tmp_path: Path, model: Path) -> None:
    spec = write_spec(tmp_path / "p.vnnlib", ["(or (and (<= Y_0 0.1) (>= Y_1 4.0)) (and (<= Y_0 Y_1)))"])
    result = run("bounds", model, spec, "--method", "ibp", "--json", "--dtype", "float64")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert list(found) == ["schema", "method", "dtype", "seconds", "peak_bytes", "neurons", "boxes"]
    assert (found["schema"], found["method"], found["dtype"]) == (1, "ibp", "float64")
    assert list(found["seconds"]) == ["load", "bound"]
    assert isinstance(found["peak_bytes"], int) and found["peak_bytes"] >= 0
    assert found["neurons"] == {"total": 3, "unstable": 3}
    (box,) = found["boxes"]
    first, second = box["disjuncts"]
    assert [row["text"] for row in first["rows"]] == ["Y_0 - 0.1", "-Y_1 + 4"]
    assert [row["text"] for row in second["rows"]] == ["Y_0 - Y_1"]
    # By hand, with h = relu(z): z in [-0.75, 1.25], [-1, 1], [-0.125, 1.375]; the rows are h_0 + h_1 / 2 + 0.15,
    # 4 - h_1 - h_2, and h_0 - h_1 / 2 - h_2 + 0.25.
    lower = [row["lower"] for part in (first, second) for row in part["rows"]]
    assert lower == pytest.approx([0.15, 1.625, -1.625], abs=1e-9)
    assert (first["index"], first["refuted"], second["index"], second["refuted"]) == (0, True, 1, False)
    assert (box["index"], box["verified"]) == (0, False)


def test_bounds_of_several_boxes_keep_the_order_of_the_file(tmp_path: Path, model: Path) -> None:
    spec = tmp_path / "boxes.vnnlib"
    parts = "".join(
        f"(and (>= X_0 {low}) (<= X_0 {low}) (>= X_1 0) (<= X_1 0) (<= Y_1 {threshold}))"
        for low, threshold in ((0.25, 0), (-0.5, 0), (0.0, 9))
    )
    spec.write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
        f"(assert (or {parts}))"
    )
    found = json.loads(run("bounds", model, spec, "--method", "crown", "--dtype", "float64").stdout)
    lower = [box["disjuncts"][0]["rows"][0]["lower"] for box in found["boxes"]]
    exact = [forward([0.25, 0.0])[1], forward([-0.5, 0.0])[1], forward([0.0, 0.0])[1] - 9]
    assert lower == pytest.approx(exact, abs=1e-9)
    assert [box["index"] for box in found["boxes"]] == [0, 1, 2]
    assert [box["verified"] for box in found["boxes"]] == [True, True, False]
    assert found["neurons"]["total"] == 3


def test_bounds_get_tighter_from_method_to_method(tmp_path: Path, model: Path) -> None:
    spec = write_spec(tmp_path / "p.vnnlib", ["(<= Y_0 Y_1)"])
    minimum = min(
        float(np.subtract(*forward([a, b]))) for a in np.linspace(-0.5, 0.5, 41) for b in np.linspace(-0.25, 0.75, 41)
    )
    lower = []
    for method in (
        *(["ibp"], ["crown-ibp"], ["crown"], ["forward"], ["forward-backward"]),
        ["alpha-crown", "--steps", 50, "--intermediates", "optimised"],
    ):
        result = run("bounds", model, spec, "--dtype", "float64", "--method", *method)
        assert json.loads(result.stdout)["method"] == method[0]
        lower.append(json.loads(result.stdout)["boxes"][0]["disjuncts"][0]["rows"][0]["lower"])
    ibp, crown_ibp, crown, forward_, both, alpha = lower
    assert crown_ibp <= crown < alpha <= minimum
    assert ibp < alpha
    assert forward_ <= both <= alpha


def test_a_bound_that_is_not_finite_is_null_and_refutes_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "huge.onnx", w1=(W1 * 1e20).astype(np.float32))
    spec = write_spec(tmp_path / "p.vnnlib", HOLDS, box=((-3e38, 3e38), (-3e38, 3e38)))
    found = json.loads(run("bounds", model, spec, "--method", "ibp").stdout)
    assert found["boxes"][0]["disjuncts"][0] == {
        "index": 0,
        "rows": [{"text": "Y_0", "lower": None}],
        "refuted": False,
    }
    assert found["boxes"][0]["verified"] is False


def test_bounds_past_the_time_limit(model: Path, holds: Path) -> None:
    result = run("bounds", model, holds, "--method", "crown", "--timeout", 1e-6, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["verdict"]) == (0, "timeout")
    assert found["reason"] == "bounding did not end within 1e-06 seconds; allow more with --timeout"


def test_info(model: Path) -> None:
    found = json.loads(run("info", model, "--json").stdout)
    assert found["inputs"] == [{"name": "x", "shape": [1, 2]}]
    assert found["outputs"][0]["shape"] == [1, 2]
    assert found["parameters"] == 6 + 3 + 6 + 2
    assert found["neurons"] == {"relu": 3}
    assert {"op": "relu", "nodes": 1, "bounds": "linear bounds"} in found["ops"]
    assert {"op": "linear", "nodes": 2, "bounds": "exact"} in found["ops"]
    text = run("info", model).stdout
    assert re.search(r"parameters +17\n", text)
    assert re.search(r"neurons +3 \(3 relu\)\n", text)
    assert re.search(r"relu +1  linear bounds", text)


@pytest.mark.parametrize(("help_", "used"), [(True, 3), (False, 1)])
def test_several_threads_are_used_where_they_help(help_: bool, used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with one_thread():  # restores the number of threads afterwards
        torch.set_num_threads(3)
        monkeypatch.setattr("surebound.machine.threads_help", lambda: help_)
        assert use_threads(None) == torch.get_num_threads() == used
        assert use_threads(2) == torch.get_num_threads() == 2
        assert use_threads(1) == torch.get_num_threads() == 1


def test_help_and_version() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("verify", "bounds", "info", "demo", "--install-completion", "130"):
        assert word in result.stdout
    assert run("--version").stdout == f"surebound {surebound.__version__}\n"
    for command in ("verify", "bounds", "sweep", "info", "demo"):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        for option in ("device", "dtype", "threads", "memory", "seed", "timeout", "json", "quiet"):
            assert f"--{option}" in shown.stdout


def test_importing_the_command_line_does_not_import_torch() -> None:
    code = "import sys, surebound.cli; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(surebound.__file__).parents[1]).returncode == 0


def test_the_public_names_all_exist() -> None:
    assert surebound.__all__ == sorted(set(surebound.__all__))
    for name in surebound.__all__:
        assert getattr(surebound, name).__name__ == name
    assert set(surebound.__all__) < set(dir(surebound))
    with pytest.raises(AttributeError, match="module 'surebound' has no attribute 'bund'"):
        surebound.__getattr__("bund")


def test_an_interrupt_ends_a_search_with_130(model: Path, holds: Path) -> None:
    code = (
        "import os, signal, time, surebound.cli, surebound.search.verify as search\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell may have it ignored
        "search.verify = lambda *given, **named: os.kill(os.getpid(), signal.SIGINT) or time.sleep(20)\n"
        "surebound.cli.main()\n"
    )
    command = [sys.executable, "-c", code, "verify", str(model), str(holds)]
    done = subprocess.run(command, cwd=Path(surebound.__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "unknown\n")
    assert done.stderr == "unknown: interrupted\n"


def test_json_text_keeps_decimals_and_hides_what_is_not_finite() -> None:
    value = {"a": [Decimal("0.1000000000000000000001"), math.nan, -math.inf, 1.5], "b": {}, "c": '"', "d": True}
    wanted = '{"a": [0.1000000000000000000001, null, null, 1.5], "b": {}, "c": "\\"", "d": true}'
    assert to_json(value) == wanted
    assert json.loads(to_json(value, indent=2)) == json.loads(wanted)
    assert to_json({"a": [1]}, indent=2) == '{\n  "a": [\n    1\n  ]\n}'


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("4GB", 4 * 10**9), ("1.5 kB", 1500), ("512MiB", 512 << 20), ("2g", 2 * 10**9), ("1TiB", 1 << 40)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_time_limit_leaves_the_timer_as_it_was() -> None:
    fired: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(number))
    timer = signal.setitimer(signal.ITIMER_REAL, 50.0)
    try:
        with pytest.raises(TimeLimit, match="waiting did not end within 0.05 seconds"), time_limit(0.05, "waiting"):
            signal.pause()
        with time_limit(30, "nothing"):
            pass
        assert 40 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        os.kill(os.getpid(), signal.SIGALRM)
        assert fired == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_smallest_benchmark_instances(bench: Path) -> None:
    model, spec = bench / "test" / "test_sat.onnx", bench / "test" / "test_prop.vnnlib"
    assert run("verify", model, spec, "--recheck").stdout.startswith("sat\n((X_0 ")
    assert run("verify", bench / "test" / "test_unsat.onnx", spec).stdout == "unsat\n"
    found = json.loads(run("bounds", model, spec, "--method", "crown").stdout)
    assert found["neurons"]["total"] == 300
    assert found["boxes"][0]["verified"] is False


def faked_demo(given: dict[str, Any]) -> Callable[..., Any]:
    """A demo that takes no time: remembers what it was given, writes summary.json, returns a table."""

    def run_demo(out: Path, seed: int, progress: Callable[[str], None], config: Any) -> Any:
        given.update(out=out, seed=seed, timeout=config.timeout)
        progress("training")
        out.mkdir()
        (out / "summary.json").write_text('{"schema": 1, "n": 80}')
        table = Table(("measure", "before", "grafted"), (("verified", "3 %", "61 %"),))
        return SimpleNamespace(
            table=table, report=out / "report.html", model=out / "grafted.onnx", spec=out / "property.vnnlib"
        )

    return run_demo


def test_demo_prints_its_table_and_where_things_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(surebound.demo, "run_demo", faked_demo(given))
    result = run("demo", "--out", tmp_path / "a", "--seed", 5, "--timeout", 2)
    assert result.exit_code == 0
    assert re.search(r"measure.*before.*grafted", result.stdout) and re.search(r"verified.*3 %.*61 %", result.stdout)
    assert f"surebound verify {tmp_path / 'a' / 'grafted.onnx'} {tmp_path / 'a' / 'property.vnnlib'}" in result.stderr
    assert given == {"out": tmp_path / "a", "seed": 5, "timeout": 2.0}
    found = run("demo", "--out", tmp_path / "b", "--json")
    assert json.loads(found.stdout) == {"schema": 1, "n": 80}
    assert given["timeout"] == surebound.demo.DemoConfig().timeout


@pytest.mark.parametrize("options", [["--dtype", "float64"], ["--memory", "4GB"], ["--device", "cuda"]])
def test_demo_refuses_options_that_it_does_not_follow(tmp_path: Path, options: list[str]) -> None:
    result = run("demo", "--out", tmp_path / "out", *options)
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"leave out {options[0]}" in result.stderr
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_callback_swallows_is_raised_at_the_next_step(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python prints and forgets what is raised in the callback of a weak reference, and torch has many of them."""

    class Thing:
        pass

    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: ignored.append(told.exc_type))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ending_interrupts() as again:
            tell = steps_shown(lambda words: None, again)
            tell("training", 1, 3)
            thing = Thing()
            kept = weakref.ref(thing, lambda gone: os.kill(os.getpid(), number))
            del thing
            assert kept() is None and ignored == [KeyboardInterrupt]
            with pytest.raises(KeyboardInterrupt):
                tell("training", 2, 3)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
