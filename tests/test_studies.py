"""The studies in recipes/: what they ask for exists, and running one leaves a table."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from surebound.loop.settings import settings_of
from surebound.training.published import parts_of
from surebound.training.recipe import read_toml, recipe_of, setting

HOME = Path(__file__).resolve().parent.parent / "recipes"
SMALL = """
[set]
data = "digits"
images = 100
network = { name = "digits_cnn", channels = [2, 3], hidden = 5 }
run = { epochs = 1, batch = 50 }
measure = { images = 5, attack_steps = 1 }

[evaluate]
data = "digits"
eps = 0.05
n = 3
methods = "clean,pgd,ibp"

[runs.plain]
recipe = "mnist-0.1-standard"
seeds = [0, 1]

[runs.ibp]
recipe = "mnist-0.1-ibp"
seeds = [7]
set = { radii.length = 0 }
evaluate = { n = 2 }
"""


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """recipes/study.py, which is a script and not part of the package."""
    spec = importlib.util.spec_from_file_location("study", HOME / "study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module
    spec.loader.exec_module(module)
    return module


SPARSE = (
    SMALL
    + """
[sparse-set]
run = { epochs = 1 }
curve = { images = 5, methods = "clean" }

[sparse.half]
command = "prune"
of = ["plain"]
network = "round-01"
set = { prune.rounds = 1, prune.rate = 0.5 }

[sparse.lines]
command = "graft"
of = ["plain", "ibp"]
network = "ratio-0.5"
set = { graft.images = 20 }
evaluate = { n = 2 }
"""
)


def test_sparse_networks_are_made_of_the_runs_they_name(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sparse.toml").write_text(SPARSE)
    trials = study.trials(read_toml(tmp_path / "sparse.toml"))
    assert [(trial.name, trial.of, trial.recipe, trial.evaluate["n"]) for trial in trials[3:]] == [
        ("plain-half-0", "plain-0", "prune", 3), ("plain-lines-0", "plain-0", "graft", 2),
        ("ibp-lines-7", "ibp-7", "graft", 2), ("plain-half-1", "plain-1", "prune", 3),
        ("plain-lines-1", "plain-1", "graft", 2),
    ]  # fmt: skip
    assert trials[3].settings == (
        "run.epochs=1", "curve.images=5", 'curve.methods="clean"', "prune.rounds=1", "prune.rate=0.5",
    )  # fmt: skip
    (tmp_path / "bad.toml").write_text(SPARSE.replace('network = "round-01"', ""))
    with pytest.raises(SystemExit, match="'half' has the keys command, of, set; there are command, evaluate, network"):
        study.trials(read_toml(tmp_path / "bad.toml"))


def test_a_run_whose_name_makes_tables_of_it_is_refused(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(SMALL + "\n[runs.plain-0.5]\nrecipe = 'mnist-0.1-ibp'\nseeds = [0]\n")
    with pytest.raises(SystemExit, match="run 'plain-0' has the keys 5; there are evaluate, recipe, seeds, set"):
        study.trials(read_toml(tmp_path / "bad.toml"))


@pytest.mark.parametrize("path", sorted(HOME.glob("*.toml")), ids=lambda path: path.stem)
def test_a_study_asks_for_recipes_that_exist(path: Path, study: ModuleType) -> None:
    trials = study.trials(read_toml(path))
    assert len({trial.name for trial in trials}) == len(trials) > 0
    for trial in trials:
        if trial.of:
            tables = ({"prune": "prune", "graft": "graft"}[trial.recipe], "curve")
            settings_of(tables, recipe_of(), [setting(text) for text in trial.settings])
            continue
        recipe = recipe_of(*parts_of(trial.recipe), *map(setting, trial.settings), {"seed": trial.seed})
        assert recipe["data"] == trial.evaluate["data"] and recipe["network"]["data"] == recipe["data"]


def test_trials_come_seed_by_seed_with_what_their_run_changes(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    trials = study.trials(read_toml(tmp_path / "small.toml"))
    assert [trial.name for trial in trials] == ["plain-0", "ibp-7", "plain-1"]
    assert trials[1].settings[-1] == "radii.length=0" and [trial.evaluate["n"] for trial in trials] == [3, 2, 3]


@pytest.mark.slow
def test_a_study_leaves_a_table_and_does_nothing_twice(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(SPARSE)
    words = ["study.py", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    study.main()
    rows = list(csv.DictReader((tmp_path / "small.csv").read_text().splitlines()))
    assert [(row["run"], row["seed"]) for row in rows[:3]] == [("plain", "0"), ("ibp", "7"), ("plain", "1")]
    assert [row["run"] for row in rows[3:]] == ["plain-half", "plain-lines", "ibp-lines", "plain-half", "plain-lines"]
    assert all(0 <= float(row["verified_ibp"]) <= float(row["pgd"]) <= float(row["clean"]) <= 1 for row in rows)
    printed = capsys.readouterr().out
    assert "| plain | mnist-0.1-standard | 0, 1 |" in printed and " ± " in printed

    def never(command: list[str], log: Path) -> float:
        raise AssertionError(command)

    monkeypatch.setattr(study, "spent", never)
    study.main()
    assert capsys.readouterr().out in printed
    lines = (tmp_path / "small.csv").read_text().splitlines()
    (tmp_path / "small.csv").write_text("\n".join(line for line in lines if not line.startswith("plain-lines")) + "\n")
    study.main()
    assert (tmp_path / "small.csv").read_text().splitlines() == lines
    assert capsys.readouterr().out.endswith(printed[printed.index("| run |") :])
    (tmp_path / "small.csv").unlink()
    (tmp_path / "out" / "small" / "plain-1" / "verified" / "summary.json").unlink()
    with pytest.raises(AssertionError, match="evaluate"):  # the trained network is there
        study.main()


def test_a_command_that_fails_ends_the_study_with_its_log(study: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(SystemExit, match=r"ended with 3, see .*log"):
        study.spent([sys.executable, "-c", "print('why'); raise SystemExit(3)"], log)
    assert log.read_text() == "why\n"
