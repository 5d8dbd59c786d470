"""Bad input at the command line: the message says what is wrong and where, the exit code which kind it is."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_files import W1, write_model, write_spec
from typer.testing import CliRunner

import surebound.cli.loading
from surebound.cli.app import app

Files = tuple[Path, Path]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A network and a property that fit each other."""
    return write_model(tmp_path / "net.onnx"), write_spec(tmp_path / "prop.vnnlib", ["(<= Y_0 0.0)"])


def fails(result: Any, code: int, verdict: str, *messages: str) -> None:
    """The verdict on stdout, all messages on stderr, no traceback, the exit code."""
    said = " ".join(result.stderr.split())
    for message in messages:
        assert re.search(message, said), said
    assert "Traceback" not in said
    assert (result.exit_code, result.stdout) == (code, f"{verdict}\n" if verdict else "")


def missing_model(model: Path, spec: Path) -> None:
    model.unlink()


def truncated_model(model: Path, spec: Path) -> None:
    model.write_bytes(model.read_bytes()[:-40])


def truncated_gzip(model: Path, spec: Path) -> None:
    model.write_bytes(gzip.compress(model.read_bytes())[:-20])


def not_onnx(model: Path, spec: Path) -> None:
    model.write_text("this is not a network")


def a_folder(model: Path, spec: Path) -> None:
    model.unlink()
    model.mkdir()


def unsupported_op(model: Path, spec: Path) -> None:
    write_model(model, hidden="Hardmax")


def several_inputs(model: Path, spec: Path) -> None:
    write_model(model, inputs=("left", "right"))


def nan_weights(model: Path, spec: Path) -> None:
    write_model(model, w1=np.where(W1 < 0, np.float32("nan"), W1))


def missing_spec(model: Path, spec: Path) -> None:
    spec.unlink()


def more_inputs(model: Path, spec: Path) -> None:
    write_spec(spec, ["(<= Y_0 0.0)"], box=((0, 1),) * 3)


def more_outputs(model: Path, spec: Path) -> None:
    write_spec(spec, ["(<= Y_0 0.0)"], outputs=5)


def empty_region(model: Path, spec: Path) -> None:
    write_spec(spec, ["(<= Y_0 0.0)"], box=((0, 1), (1, 0)))


def unclosed(model: Path, spec: Path) -> None:
    spec.write_text(spec.read_text().rstrip()[:-1])


def unknown_symbol(model: Path, spec: Path) -> None:
    spec.write_text(spec.read_text() + "(assert (<= Y_0 Z_3))\n")


BAD_FILES: list[tuple[Callable[[Path, Path], None], int, str, list[str]]] = [
    (missing_model, 2, "error", [r"net\.onnx: no such file"]),
    (truncated_model, 2, "error", [r"net\.onnx: .*(truncated|not an ONNX)"]),
    (truncated_gzip, 2, "error", [r"net\.onnx: damaged gzip file"]),
    (not_onnx, 2, "error", [r"net\.onnx: not an ONNX"]),
    (a_folder, 2, "error", [r"net\.onnx: cannot be read: Is a directory"]),
    (unsupported_op, 3, "unsupported", ["'Hardmax'", "node 'hidden'", r"net\.onnx", "docs/add-an-op.md"]),
    (several_inputs, 3, "unsupported", [r"net\.onnx has 2 inputs \(left, right\) and 1 outputs"]),
    (nan_weights, 2, "error", ["w1", "NaN"]),
    (missing_spec, 2, "error", [r"prop\.vnnlib: no such file"]),
    (more_inputs, 2, "error", [r"prop\.vnnlib: the property has 3 inputs, .*input shape \(1, 2\)"]),
    (more_outputs, 2, "error", [r"prop\.vnnlib: the property has 5 outputs, the network has 2"]),
    (
        empty_region,
        2,
        "error",
        [r"prop\.vnnlib:8:\d+: the region is empty: X_1 >= 1 \(line 7\)"],
    ),
    (unclosed, 2, "error", [r"prop\.vnnlib:9:\d+: this '\(' is never closed"]),
    (unknown_symbol, 2, "error", [r"prop\.vnnlib:10:\d+: unknown symbol 'Z_3'"]),
]


@pytest.mark.parametrize(
    ("spoil", "code", "verdict", "messages"), BAD_FILES, ids=[case[0].__name__ for case in BAD_FILES]
)
def test_bad_files(
    files: Files, spoil: Callable[[Path, Path], None], code: int, verdict: str, messages: list[str]
) -> None:
    spoil(*files)
    fails(run("verify", *files), code, verdict, *messages)
    verified, bounded = run("verify", *files, "--json"), run("bounds", *files, "--method", "crown", "--json")
    for result in (verified, bounded):
        found = json.loads(result.stdout)
        assert (result.exit_code, found["schema"], found["verdict"]) == (code, 1, verdict)
        assert re.search(messages[0], found["reason"])


def test_the_results_file_says_error_too(files: Files, tmp_path: Path) -> None:
    files[0].unlink()
    fails(run("verify", *files, "--results-file", tmp_path / "out.txt"), 2, "error", "no such file")
    assert (tmp_path / "out.txt").read_text() == "error\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "0"], "--timeout must be a finite number of seconds above 0, got 0"),
        (["--timeout", "-5"], "above 0, got -5"),
        (["--timeout", "nan"], "above 0, got nan"),
        (["--timeout", "inf"], "above 0, got inf"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--seed", "-1"], r"--seed must lie between 0 and 2\^63 - 1, got -1"),
        (["--memory", "lots"], "'lots' is not a size of memory; .* such as 4GB or 512MiB"),
        (["--memory", "0GB"], "'0GB' is not a size of memory"),
        (["--device", "tpu"], "unknown device 'tpu'; give cpu, cuda or cuda:N"),
        (["--device", "cuda:999"], "device 'cuda:999' (is not available|does not exist)"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "info"])
def test_bad_values_of_common_options(files: Files, command: str, options: list[str], message: str) -> None:
    given = files if command == "verify" else files[:1]
    fails(run(command, *given, *options), 2, "error" if command == "verify" else "", message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "crown", "--steps", "5"], "--steps counts the optimisation steps of --method alpha-crown"),
        (["--method", "alpha-crown", "--steps", "-1"], "0 or more"),
        (["--method", "ibp", "--intermediates", "crown"], "method ibp has no choice of them"),
        (["--method", "crown", "--intermediates", "optimised"], "method crown allows ibp or crown"),
    ],
)
def test_options_of_bounds_that_do_not_go_together(files: Files, options: list[str], message: str) -> None:
    result = run("bounds", *files, *options)
    assert result.exit_code == 2
    assert message in json.loads(result.stdout)["reason"]
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["verify"], ["bounds", "a.onnx", "b.vnnlib"], ["bounds", "a", "b", "--method", "magic"], ["prove"], ["--no-such"]],
)
def test_usage_errors(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr


@pytest.mark.parametrize("place", ["no/such/folder/out.txt", "."])
def test_a_results_file_that_cannot_be_written_is_refused_before_the_work_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: Files, place: str
) -> None:
    def load(model: Path, spec: Path) -> None:
        raise AssertionError("the work has started")

    monkeypatch.setattr(surebound.cli.loading, "load", load)
    result = run("verify", *files, "--results-file", tmp_path / place)
    fails(result, 2, "error", r"the results file .* cannot be written: (No such file or directory|Is a directory)")


def test_info_on_a_bad_file(files: Files) -> None:
    not_onnx(*files)
    fails(run("info", files[0]), 2, "", r"net\.onnx: not an ONNX")
    found = json.loads(run("info", files[0], "--json").stdout)
    assert (found["verdict"], found["schema"]) == ("error", 1)


def test_info_on_several_inputs(files: Files) -> None:
    several_inputs(*files)
    found = json.loads(run("info", files[0], "--json").stdout)
    assert [value["name"] for value in found["inputs"]] == ["left", "right"]
