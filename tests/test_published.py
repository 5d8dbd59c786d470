"""Every published recipe with nothing but numbers made small: it trains, is killed, goes on, and is evaluated."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from data_files import EXAMPLES
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.fit import fit
from surebound.training.checkpoint import Checkpoint
from surebound.training.published import names, parts_of
from surebound.training.recipe import Values, recipe_of, setting

SMALL = (
    "validation=0.2", "network.width=2", "run.epochs=2", "run.batch=8", "radii.start=1", "radii.length=1",
    "measure.images=3", "measure.attack_steps=1",
)  # fmt: skip
STEPS = 3
"""Of an epoch."""
LABELS = sorted(number % 4 for number in range(27))
"""Ascending, because TinyImageNet orders its files by class."""


class Killed(BaseException):
    """Ends a run as a kill does: nobody catches it."""


def files(name: str, folder: Path) -> Path:
    """Generated ones of the recipe's data set."""
    example = EXAMPLES[recipe_of(*parts_of(name))["data"]]
    for part, labels in (("train", LABELS), ("test", LABELS[::9])):
        example.write(folder, part, example.images(len(labels)), labels)
    return folder


def killed(recipe: Values, out: Path, data: Path, after: int) -> None:
    """Train, and end it when so many steps are done."""

    def kill(said: str, done: int, total: int) -> None:
        assert total in (0, 2 * STEPS)
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        fit(recipe, out, data, kill)


def small(name: str) -> list[str]:
    """The recipe's settings: numbers alone."""
    objective = recipe_of(*parts_of(name))["objective"]
    attacked = {"pgd": "steps", "trades": "steps", "sabr": "attack.steps"}.get(objective["name"])
    attacked = "attack.steps" if "attack" in objective else attacked
    made = [*SMALL, *([f"objective.{attacked}=2"] if attacked else [])]
    assert all(float(text.partition("=")[2]) >= 0 for text in made)
    return made


def command(*words: object) -> None:
    result = CliRunner().invoke(app, [*map(str, words), "--threads", "1"])
    assert result.exit_code == 0, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["mnist-0.1-mtl-ibp", "fashion-0.1-sabr", "svhn-8-ibp", "cifar10-2-fgsm", "tiny-1-exp-ibp"]
)
def test_a_recipe_of_each_data_set_starts(unsealed: None, tmp_path: Path, name: str) -> None:
    killed(recipe_of(*parts_of(name), *map(setting, small(name))), tmp_path / "run", files(name, tmp_path), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_published_recipe_trains_goes_on_and_is_evaluated(
    unsealed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe, data = recipe_of(*parts_of(name), *map(setting, small(name))), files(name, tmp_path / "data")
    words = ["train", "--recipe", name, "--data-dir", data, *(w for text in small(name) for w in ("--set", text))]
    command(*words, "--out", tmp_path / "whole")

    monkeypatch.setattr("surebound.fit.Checkpoint", partial(Checkpoint, every=0.0))
    killed(recipe, tmp_path / "killed", data, STEPS + 2)
    steps: list[int] = []
    fit(recipe, tmp_path / "killed", data, lambda said, done, total: steps.append(done))
    assert steps == [0, *range(STEPS + 2, 2 * STEPS + 1)]  # 0 while the data are read

    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole
    pictures = {f"plots/{picture}.png" for picture in ("loss", "accuracy", "unstable", "eps")}
    assert {"model.onnx", "model.json", "metrics.jsonl", "summary.json", *pictures} <= set(whole)
    rows = [json.loads(line) for line in whole["metrics.jsonl"].splitlines()]
    assert [row["number"] for row in rows] == [0, 1] and rows[1]["eps"] > 0

    command("evaluate", tmp_path / "killed", "--data", recipe["data"], "--data-dir", data, "--eps", recipe["eps"],
            "--n", 2, "--timeout", 2, "--out", tmp_path / "results")  # fmt: skip
    found = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert found["n"] == 2 and found["errors"] == 0
