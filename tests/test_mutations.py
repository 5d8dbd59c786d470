"""The suite notices faults: each mutation of the package makes the tests chosen for it fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation, Selection

import surebound

PACKAGE = Path(str(surebound.__file__)).resolve().parent
HERE = Path(__file__).resolve().parent
SUPPORT = ("conftest.py", "nets.py", "oracle.py", "proof_cases.py")
SETTINGS = "[pytest]\npythonpath = tests .\naddopts = -x -q --no-header --tb=line -p no:cacheprovider\n"


def workshop(folder: Path, files: Iterable[str]) -> Path:
    """A folder with a copy of the package and of the tests to run on it."""
    shutil.copytree(PACKAGE, folder / "surebound", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in {*SUPPORT, *files}:
        shutil.copy(HERE / name, folder / "tests" / name)
    (folder / "pytest.ini").write_text(SETTINGS)
    return folder


def run_tests(folder: Path, tests: Selection) -> tuple[int, str]:
    """Exit code and output of the tests on the folder's copy of the package; those that are named also where slow."""
    file, only = tests
    command = [sys.executable, "-m", "pytest", f"tests/{file}", *(["-k", only, "--slow"] if only else [])]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "SUREBOUND_UNDER_TEST": str(folder / "surebound"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout + done.stderr


def mutate(folder: Path, mutation: Mutation) -> None:
    path = folder / "surebound" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_fits_the_source(mutation: Mutation) -> None:
    source = (PACKAGE / mutation.file).read_text()
    assert source.count(mutation.old) == 1, f"{mutation.file} holds the text {source.count(mutation.old)} times"
    assert mutation.old != mutation.new


def test_names_are_unique() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({m.tests for m in MUTATIONS}), ids=lambda t: f"{t[0]}: {t[1] or 'all'}")
def test_the_package_as_it_is_passes(tests: Selection, tmp_path: Path) -> None:
    """Otherwise failures below would mean nothing; every selection selects something."""
    code, output = run_tests(workshop(tmp_path, [tests[0]]), tests)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_is_noticed(mutation: Mutation, tmp_path: Path) -> None:
    folder = workshop(tmp_path, [mutation.tests[0]])
    mutate(folder, mutation)
    code, output = run_tests(folder, mutation.tests)
    assert code == 1, f"exit code {code}: the mutation survives\n{output}"
