"""Shared fixtures: one thread, fixed seeds, slow tests on request, folders of test material."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", default=False, help="also run tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and stop when another copy of the package than the one meant would be tested."""
    config.addinivalue_line("markers", "slow: takes more than ten seconds; runs with --slow only")
    meant = os.environ.get("SUREBOUND_UNDER_TEST")
    if meant:
        import surebound

        found = Path(str(surebound.__file__)).resolve().parent
        if found != Path(meant).resolve():
            raise pytest.UsageError(f"SUREBOUND_UNDER_TEST is {meant}, but 'import surebound' finds {found}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def unsealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated files cannot have the checksums of the published ones."""
    from surebound.data import readers

    monkeypatch.setattr(
        readers, "READERS", {name: replace(reader, checksums={}) for name, reader in readers.READERS.items()}
    )


def folder(variable: str, meaning: str) -> Path:
    """The folder an environment variable names; skips the test when there is none."""
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set to {meaning}")
    path = Path(value)
    if not path.is_dir():
        pytest.skip(f"{variable} names {path}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def bench() -> Path:
    """Benchmark instances, laid out as NAME/instances.csv."""
    return folder("SUREBOUND_BENCH", "a folder of benchmark instances (NAME/instances.csv)")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Reference bounds of other tools."""
    return folder("SUREBOUND_REFERENCE", "a folder of reference bounds")
