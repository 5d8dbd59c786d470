"""The documents are true: their examples run, the files they name exist, their commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.loop.settings import ALL
from surebound.sparsify.criteria import CHANNELS, INSTABILITY, SIGNIFICANCE, WEIGHTS
from surebound.sparsify.lines import LINES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a page in one language ("" for none)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for kind, code in found if kind == language]


EXAMPLES = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page.name for page, _ in EXAMPLES])
def test_examples_run(page: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, str(page), "exec"), {"__name__": "example"})
    assert page.name != "README.md" or capsys.readouterr().out in ("unsat\n", "sat\n", "unknown\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_that_a_page_mentions_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = set(re.findall(r"`((?:surebound|tests|docs)/[\w/.-]*)`", text))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    named = re.findall(r"`(\w+)(?:\([^`]*\))?` in `(surebound/[\w/]+\.py)`", text)
    assert [pair for pair in named if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text())] == []


def test_the_readme_names_commands_that_exist() -> None:
    lines = [line for block in blocks(ROOT / "README.md", "") for line in block.splitlines()]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [line.split()[1] for line in lines if line.startswith("make ")]
    assert made == ["demo", "test"] and set(made) <= targets
    typed = [shlex.split(line, comments=True) for line in lines if line.startswith("surebound ")]
    assert [words[1] for words in typed] == [
        "verify", "bounds", "sweep", "train", "evaluate", "prune", "compress", "make-provable", "info",
    ]  # fmt: skip
    for words in typed:
        shown = CliRunner().invoke(app, [words[1], "--help"]).stdout
        assert all(word in shown for word in words if word.startswith("--"))


def test_the_page_on_sparse_networks_names_every_criterion_and_every_setting() -> None:
    page = (ROOT / "docs" / "sparsify.md").read_text()
    for name in (*WEIGHTS, *CHANNELS, *SIGNIFICANCE, *INSTABILITY, *LINES):
        assert f"`{name}`" in page or f'"{name}"' in page, name
    for table in ("prune", "graft"):
        for key in ALL[table].defaults:
            inside = ("tune", "gates", "masks", "images", "batch")
            assert f"`{table}.{key}`" in page or f"{table}.{key}" in page or key in inside, f"{table}.{key}"
