"""The competition's scripts: what they leave in the results file, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_files import write_model, write_spec

from surebound.graph.onnx_import import read_model
from surebound.vnnlib import load_vnnlib
from surebound.witness import parse_witness

SCRIPTS = Path(__file__).parents[1] / "vnncomp"

FAKE = """#!/bin/bash
# Stands in for the interpreter: what `surebound verify ... --results-file FILE` does is in the variable DEED.
[ "$1" = -c ] && exec test "$DEED" != broken
while [ "$1" != --results-file ]; do shift; done
OUT=$2
eval "$DEED"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "net.onnx")
    write_spec(tmp_path / "holds.vnnlib", ["(<= Y_0 0.0)"])
    write_spec(tmp_path / "fails.vnnlib", ["(>= Y_1 1.0)"])
    return tmp_path


def environment(place: Path, deed: str = "") -> dict[str, str]:
    """Variables of the scripts; with a deed, the interpreter is a fake that does it."""
    python = sys.executable
    if deed:
        fake = place / "python"
        fake.write_text(FAKE)
        fake.chmod(0o755)
        python = str(fake)
    return {**os.environ, "SUREBOUND_PYTHON": python, "SUREBOUND_STATE": str(place / "state"), "DEED": deed}


def script(place: Path, name: str, *arguments: object, deed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPTS / name), *map(str, arguments)],
        cwd=place,
        env=environment(place, deed),
        capture_output=True,
        text=True,
        timeout=200,
    )


def instance(place: Path, spec: str, timeout: float, deed: str = "") -> str:
    """The results file of one run, which must end well and leave nothing else behind."""
    done = script(place, "run_instance.sh", "v1", "tiny", "net.onnx", spec, "out.txt", timeout, deed=deed)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.glob("out.txt*")] == ["out.txt"]
    assert not (place / "state" / "running").exists()
    return (place / "out.txt").read_text()


def confirmed(text: str, model: Path, spec: Path) -> bool:
    """Strictly: is the witness in the region, and does the network, run on it, violate the property?"""
    x, _ = parse_witness(text)
    session = onnxruntime.InferenceSession(read_model(model).data, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    (answer,) = session.run(None, {given.name: np.array([float(v) for v in x], np.float32).reshape(shape)})
    values = [Decimal(float(value)) for value in np.asarray(answer).flatten()]
    return any(
        case.limits is not None
        and all(low <= value <= high for value, (low, high) in zip(x, case.limits, strict=True))
        and any(
            all(
                sum(Decimal(c) * value for c, value in zip(row, values, strict=True)) <= Decimal(t)
                for row, t in zip(disjunct.C.tolist(), disjunct.t.tolist(), strict=True)
            )
            for disjunct in case.disjuncts
        )
        for case in load_vnnlib(spec).cases
    )


def test_install_checks_the_interpreter_it_is_given(place: Path) -> None:
    assert script(place, "install_tool.sh", "v1").returncode == 0
    assert script(place, "install_tool.sh", "v2").returncode == 1
    refused = script(place, "install_tool.sh", "v1", deed="broken")
    assert refused.returncode == 1 and "cannot import Surebound" in refused.stderr


def test_prepare_says_whether_an_instance_can_run(place: Path) -> None:
    assert script(place, "prepare_instance.sh", "v1", "tiny", "net.onnx", "holds.vnnlib").returncode == 0
    for arguments, message in (
        (("v1", "tiny", "gone.onnx", "holds.vnnlib"), "gone.onnx: no such file, with or without .gz"),
        (("v1", "tiny", "net.onnx", "gone.vnnlib"), "gone.vnnlib: no such file"),
        (("v2", "tiny", "net.onnx", "holds.vnnlib"), "version string 'v1', got 'v2'"),
        (("v1", "tiny"), "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB"),
    ):
        done = script(place, "prepare_instance.sh", *arguments)
        assert done.returncode == 1 and message in done.stderr


def test_run_needs_its_arguments(place: Path) -> None:
    done = script(place, "run_instance.sh", "v1", "tiny", "net.onnx", "holds.vnnlib")
    assert done.returncode == 1 and "RESULTS TIMEOUT" in done.stderr


def test_unsat_and_sat(place: Path) -> None:
    assert instance(place, "holds.vnnlib", 100) == "unsat\n"
    first, _, witness = instance(place, "fails.vnnlib", 100).partition("\n")
    assert first == "sat"
    assert witness.startswith("((X_0 ") and witness.endswith("))\n")
    assert confirmed(witness, place / "net.onnx", place / "fails.vnnlib")


@pytest.mark.parametrize(
    ("deed", "text"),
    [
        ("echo unknown >$OUT", "unknown\n"),
        ("echo memory >$OUT", "unknown\n"),
        ("echo unsupported >$OUT; exit 3", "unknown\n"),
        ("echo error >$OUT; exit 2", "error\n"),
        ("exit 1", "error\n"),
        ("echo nonsense >$OUT", "error\n"),
        ("printf 'sat\\n((X_0 0.' >$OUT; exit 2", "error\n"),
        ("echo unsat >$OUT; exit 1", "error\n"),
        ("sleep 100", "timeout\n"),
        ("printf 'sat\n((X_0 0.' >$OUT; sleep 100", "timeout\n"),
    ],
)
def test_the_results_file_has_words_that_the_judge_knows(place: Path, deed: str, text: str) -> None:
    (place / "out.txt").write_text("unsat\n")
    began = time.monotonic()
    assert instance(place, "holds.vnnlib", 0.5, deed) == text
    assert time.monotonic() - began < 10


@pytest.fixture
def sleeping(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose verifier sleeps and has said so."""
    command = [SCRIPTS / "run_instance.sh", "v1", "tiny", "net.onnx", "holds.vnnlib", "out.txt", "100"]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=place,
        env=environment(place, "touch asleep; sleep 90"),
        stdout=subprocess.DEVNULL,
    )
    wait_for((place / "asleep").exists)
    yield process
    process.kill()
    process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def group_of(place: Path) -> list[int]:
    """The processes of the group that run_instance.sh has noted down."""
    group = (place / "state" / "running").read_text().strip()
    found = subprocess.run(["pgrep", "-g", group], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_prepare_ends_what_a_killed_run_left_behind(place: Path, sleeping: subprocess.Popen[bytes]) -> None:
    sleeping.send_signal(signal.SIGKILL)
    sleeping.wait()
    left = group_of(place)
    assert left
    assert script(place, "prepare_instance.sh", "v1", "tiny", "net.onnx", "holds.vnnlib").returncode == 0
    wait_for(lambda: not any(map(running, left)))
    assert not (place / "state" / "running").exists()
    assert (place / "out.txt").read_text() == "timeout\n"


def test_prepare_leaves_strangers_alone(place: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (place / "state").mkdir()
    (place / "state" / "running").write_text(f"{stranger.pid}\n")
    assert script(place, "prepare_instance.sh", "v1", "tiny", "net.onnx", "holds.vnnlib").returncode == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_run_that_is_told_to_end_takes_its_verifier_along(place: Path, sleeping: subprocess.Popen[bytes]) -> None:
    left = group_of(place)
    sleeping.terminate()
    assert sleeping.wait(30) == 143
    wait_for(lambda: not any(map(running, left)))
    assert (place / "out.txt").read_text() == "timeout\n"


def running(number: int) -> bool:
    """Does a process exist, other than as a zombie that nobody has collected?"""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_test_category(bench: Path, place: Path) -> None:
    """End to end, as the judge does it."""
    folder = bench / "test"
    wanted = {line.split(",")[0]: line.split(",")[2] for line in (folder / "verdicts.csv").read_text().splitlines()}
    for line in (folder / "instances.csv").read_text().split():
        model, spec, seconds = line.split(",")
        arguments = ("v1", "test", folder / model, folder / spec)
        assert script(place, "prepare_instance.sh", *arguments).returncode == 0
        assert script(place, "run_instance.sh", *arguments, "out.txt", seconds).returncode == 0
        verdict, _, witness = (place / "out.txt").read_text().partition("\n")
        assert verdict == wanted[model]
        assert verdict != "sat" or confirmed(witness, folder / model, folder / spec)
