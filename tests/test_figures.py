"""Pictures of a training run."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surebound.errors import UsageError
from surebound.fit import fit
from surebound.reports.figures import LINES, courses
from surebound.training.recipe import recipe_of

MEASURED = {"clean": 0.9, "pgd": 0.5, "certified": 0.25, "unstable": 144_885.3}


def row(number: int, measured: Mapping[str, float]) -> dict[str, float]:
    return {"number": number, "loss": 2.0 / (number + 1), "eps": 0.1, **measured}


def drawn(picture: bytes, colour: str) -> int:
    """How many pixels have a line's colour."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")) == wanted).all(2).sum())


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_every_course_is_visible(epochs: int) -> None:
    pictures = courses([row(number, MEASURED) for number in range(epochs)])
    assert set(pictures) == {"loss", "accuracy", "unstable", "eps"}
    assert all(drawn(picture, LINES[1]) > 20 for picture in pictures.values())
    assert all(drawn(pictures["accuracy"], colour) > 20 for colour in LINES[1:])


def test_what_was_not_measured_is_not_drawn() -> None:
    assert set(courses([row(0, {}), row(1, {})])) == {"loss", "eps"}
    assert set(courses([row(0, {}), row(1, MEASURED)])) == {"loss", "eps", "accuracy", "unstable"}


def test_a_missing_matplotlib_is_noticed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="figures need matplotlib"):
        fit(recipe_of(), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()
