"""Recipes, runs that continue, and what `surebound train` writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.data.dataset import Part
from surebound.data.digits import load_digits
from surebound.data.readers import load_dataset
from surebound.errors import ModelError, UsageError
from surebound.fit import fit
from surebound.graph.onnx_import import load_onnx
from surebound.nets.small import digits_cnn
from surebound.rowfile import replace_file
from surebound.runs import load_network
from surebound.training.averaging import Averaging, Ema, Swa
from surebound.training.checkpoint import Checkpoint
from surebound.training.loop import Group, Run, batch_sizes, train
from surebound.training.made import schedule_of, taught
from surebound.training.objectives import OBJECTIVES
from surebound.training.published import names, parts_of
from surebound.training.radii import SHAPES, Adaptive, Radii, Smoothed
from surebound.training.recipe import LEAST, Values, at, objective_of, read_toml, recipe_of, setting

TINY = {
    "data": "digits", "images": 200, "eps": 0.05,
    "network": {"name": "digits_cnn", "channels": [2, 3], "hidden": 5},
    "objective": {"name": "mtl-ibp", "alpha": 0.5},
    "terms": {"fast-ibp": {"weight": 0.5}, "l1-weights": {"weight": 1e-6}},
    "run": {"epochs": 3, "batch": 32, "optimiser": "adam", "rate": 0.005, "clip": 10.0},
    "radii": {"shape": "smoothed", "start": 1, "length": 2},
    "measure": {"images": 40, "attack_steps": 2},
}  # fmt: skip


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sets(values: Values, path: str = "") -> list[str]:
    """TINY as options."""
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += sets(value, f"{path}{key}.")
        else:
            found += ["--set", f"{path}{key}={json.dumps(value)}"]
    return found


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", names())
def test_every_published_recipe_is_whole(name: str) -> None:
    recipe = recipe_of(*parts_of(name))
    assert objective_of(recipe) is not None and recipe["network"]["name"] in ("cnn7", "cnn7l", "cnn_b")
    changed = recipe_of(*parts_of(name), {"network": {"width": 4}})["network"]
    assert changed["width"] == 4 and {**changed, "width": 0} == {**recipe["network"], "width": 0}


def test_published_numbers() -> None:
    recipe = recipe_of(*parts_of("cifar10-2-mtl-ibp"))
    assert recipe["eps"] == 2 / 255 and recipe["objective"]["alpha"] == 0.004
    assert recipe["objective"]["attack"] == {"steps": 8, "step": 0.25, "reach": 2.1}
    assert recipe["run"]["epochs"] == 160 and recipe["run"]["milestones"] == [120, 140] and recipe["run"]["clip"] == 10
    assert recipe["radii"] == {"shape": "smoothed", "start": 2, "length": 80, "mid": 0.25, "scale": 1.0}
    assert recipe["terms"] == {"fast-ibp": {"weight": 0.5}, "l1-weights": {"weight": 3e-6}}
    quick = recipe_of(*parts_of("svhn-8-n-fgsm"))
    assert (quick["run"]["rate"], quick["radii"]["shape"], quick["augment"]["flip"]) == (0.05, "linear", False)
    aligned = recipe_of(*parts_of("cifar10-8-fgsm"))
    assert aligned["augment"] == {"pad": 4, "border": "zero", "size": 0, "flip": True} and aligned["run"]["rate"] == 0.2
    before_pruning = recipe_of(*parts_of("cifar10-8-pruning-crown-ibp"))
    assert before_pruning["network"] == {"name": "cnn7l", "data": "cifar10"}
    assert before_pruning["radii"] == {"shape": "smoothed", "start": 16, "length": 121, "mid": 0.4, "scale": 1.0}
    crops = recipe_of(*parts_of("tiny-1-lirpa"))
    assert crops["augment"]["size"] == 56 and crops["network"]["last_stride"] == 2 and crops["run"]["epochs"] == 800


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"run": {"epoch": 3}}, "there is no 'run.epoch'; do you mean 'run.epochs'"),
        ({"rum": {}}, "there is no 'rum'; do you mean 'run'"),
        ({"run": {"epochs": 2.5}}, "run.epochs must be a whole number, got 2.5"),
        ({"run": {"ibp_initial": 1}}, "run.ibp_initial must be true or false, got 1"),
        ({"run": {"batch": 0}}, "run.batch must be at least 1, got 0"),
        ({"run": {"clip": -1.0}}, "run.clip must be at least 0, got -1.0"),
        ({"measure": {"attack_steps": 0}}, "measure.attack_steps must be at least 1, got 0"),
        ({"run": 3}, "run is a table; give its keys, such as run.epochs"),
        ({"eps": {"a": 1}}, "eps is one value, not a table"),
        (
            {"run": {"schedule": "cosin"}},
            "run.schedule must be one of constant, cosine, multistep, cyclic, got 'cosin'",
        ),
        ({"network": {"name": "cnn8"}}, "unknown network 'cnn8'"),
        ({"network": {"name": "cnn7", "widht": 4}}, "there is no 'network.widht'; do you mean 'network.width'"),
        ({"objective": {"name": "mtl"}}, "there is no 'mtl'; do you mean 'mtl-ibp'"),
        ({"objective": {"name": "mtl-ibp", "alfa": 1}}, "there is no 'objective.alfa'; do you mean 'objective.alpha'"),
        (
            {"objective": {"name": "mtl-ibp", "attack": {"step": "x"}}},
            "objective.attack.step must be a number, got 'x'",
        ),
        ({"objective": {"name": "ibp", "kappa": [1.0]}}, "objective.kappa must be 2 numbers"),
        ({"terms": {"l1-weights": {}}}, "terms.l1-weights.weight must be a number"),
        ({"terms": {"l1-weights": {"weight": -1.0}}}, "terms.l1-weights.weight must be a number, at least 0"),
        ({"terms": {"l1-weights": {"weight": True}}}, "terms.l1-weights.weight must be a number"),
        ({"terms": {"l1-weights": 3}}, "terms.l1-weights is a table; give its keys, such as terms.l1-weights.weight"),
        ({"terms": {"fast-ibp": {"weight": 1, "tol": 0.0}}}, "tol must be at least"),
        ({"terms": {"rs": {"weight": float("nan")}}}, "terms.rs.weight must be finite, got nan"),
        ({"network": {"name": ["cnn7"]}}, r"network.name must be a text, got \['cnn7'\]"),
        ({"network": {"name": "mlp", "hidden": [float("inf")]}}, "network.hidden must be finite"),
        ({"objective": {"name": ["ibp"]}}, r"objective.name must be a text, got \['ibp'\]"),
        ({"objective": {"name": "mtl-ibp", "alpha": 7.0}}, r"alpha must lie within \[0, 1\], got 7.0"),
        ({"objective": {"name": "mtl-ibp", "attack": {"steps": 0}}}, "steps must be at least 1, got 0"),
        ({"objective": {"name": "pgd", "reach": -1.0}}, "step, reach and decay must be at least 0"),
        ({"objective": {"name": "sabr", "part": 3.0}}, r"part and shrink must lie within \[0, 1\]"),
        ({"objective": {"name": "ibp", "kappa": [2.0, 0.0]}}, r"kappa must lie within \[0, 1\], got 2.0, 0.0"),
        ({"objective": {"name": "crown-ibp", "beta": [1.0, -1.0]}}, r"beta must lie within \[0, 1\]"),
        ({"objective": {"name": "fgsm", "start": "middle"}}, "start must be 'zero' or 'uniform', got 'middle'"),
        ({"objective": {"name": "n-fgsm", "noise": -1.0}}, "step and noise must be at least 0"),
        ({"objective": {"name": "trades", "weight": -6.0}}, "weight and step must be at least 0"),
        ({"run": {"milestones": ["a"]}}, "each of run.milestones must be a whole number, got 'a'"),
        ({"run": {"choose": "pgd"}, "validation": 0.0}, "run.choose looks at validation images"),
        ({"eps": float("nan")}, "eps must be finite, got nan"),
        ({"run": {"clip": float("inf")}}, "run.clip must be finite, got inf"),
        ({"average": {"decay": 1.0}}, "average.decay must be below 1, got 1.0"),
        ({"seed": 1 << 63}, "seed must be below 9223372036854775808"),
        ({"augment": {"border": "grey"}}, "augment.border must be one of zero, edge, got 'grey'"),
        ({"terms": {"l1": {"weight": 1}}}, "there is no 'l1'; there are l1-weights, "),
    ],
)
def test_what_a_recipe_cannot_say(given: Values, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_of(given)


@pytest.mark.parametrize(("path", "least"), LEAST.items())
def test_numbers_that_are_too_small(path: str, least: int) -> None:
    table, _, key = path.rpartition(".")
    value = type(at(recipe_of(), path))(least - 1)
    with pytest.raises(UsageError, match=f"{path} must be at least {least}, got {value}"):
        recipe_of({table: {key: value}} if table else {key: value})


def test_another_objective_does_not_inherit_the_fields_of_the_former() -> None:
    recipe = recipe_of(*parts_of("cifar10-2-mtl-ibp"), {"objective": {"name": "ibp"}})
    assert recipe["objective"] == {"name": "ibp"}
    assert recipe_of({"objective": {"name": "mtl-ibp"}}, {"objective": {"alpha": 0.25}})["objective"]["alpha"] == 0.25


def test_settings_and_files(tmp_path: Path) -> None:
    assert (
        setting("a.b=3") == {"a": {"b": 3}}
        and setting("a=ibp") == {"a": "ibp"}
        and setting("x=[1, 2]") == {"x": [1, 2]}
    )
    with pytest.raises(UsageError, match="--set takes KEY=VALUE"):
        setting("a.b")
    (tmp_path / "a.toml").write_text("eps = 0.2\n[run]\nepochs = 4\n")
    assert recipe_of(read_toml(tmp_path / "a.toml"))["run"]["epochs"] == 4
    (tmp_path / "a.toml").write_text("eps = \n")
    with pytest.raises(UsageError, match=r"a.toml is no TOML: .*line 1"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path / "b.toml")
    with pytest.raises(UsageError, match="there is no 'cifar10-2-mtl-ipb'; do you mean 'cifar10-2-mtl-ibp'"):
        parts_of("cifar10-2-mtl-ipb")


# ---------------------------------------------------------------- continuing


SMOOTHED = Smoothed(0.05, 1, 2, 7)


class Stop(Exception):
    """Ends a run from outside."""


def weights_after(
    folder: Path | None,
    stop: int | None = None,
    averaging: Averaging | None = None,
    optimiser: str = "adam",
    radii: Radii = SMOOTHED,
) -> list[Tensor]:
    """Train a few steps; with `stop`, fail after so many and go on from the checkpoint."""
    data = load_digits(0).train.first(100)

    def go(limit: int | None) -> nn.Module:
        network = nn.Sequential(digits_cnn(0, (2, 3), 5), nn.BatchNorm1d(10))
        settings = Run(3, 16, optimiser=optimiser, eps=0.05, radii=radii, clip=5.0, averaging=averaging, choose=True)
        kept = None if folder is None else Checkpoint(folder, every=0.0)

        def done(step: int, total: int) -> None:
            if limit is not None and step == limit:
                raise Stop

        train(
            network, data, OBJECTIVES["mtl-ibp"](), [Group(list(network.parameters()), 0.01, 1e-4)], settings,
            lambda n: float(next(n.parameters()).detach().sum()), checkpoint=kept, step_done=done,
        )  # fmt: skip
        return network

    if stop is not None:
        with pytest.raises(Stop):
            go(stop)
    return list(go(None).state_dict().values())


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw", "radam"])
def test_a_run_continues_bit_for_bit(tmp_path: Path, optimiser: str) -> None:
    whole = weights_after(None, averaging=Ema(0.9), optimiser=optimiser)
    for stop in (1, 6, 7, 8, 15):
        (tmp_path / str(stop)).mkdir()
        again = weights_after(tmp_path / str(stop), stop, averaging=Ema(0.9), optimiser=optimiser)
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True)), stop


def test_a_radius_that_follows_the_loss_and_a_mean_of_weights_continue_bit_for_bit(tmp_path: Path) -> None:
    radii, averaging = Adaptive(0.05, 1, 7, least=1e-3, most=0.01), Swa(5, 3)
    whole = weights_after(None, averaging=averaging, radii=radii)
    for stop in (4, 7, 9):
        (tmp_path / str(stop)).mkdir()
        again = weights_after(tmp_path / str(stop), stop, averaging, radii=radii)
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True)), stop


def test_an_image_left_alone_joins_the_batch_before() -> None:
    assert [batch_sizes(count, 4) for count in (1, 4, 5, 6, 8, 9)] == [[1], [4], [5], [4, 2], [4, 4], [4, 5]]
    assert batch_sizes(3, 1) == [1, 1, 1]
    network = nn.Sequential(digits_cnn(0, (2, 3), 5), nn.BatchNorm1d(10))
    train(network, load_digits(0).train.first(33), OBJECTIVES["standard"](), [Group(list(network.parameters()), 0.1)],
          Run(2, 16), lambda n: 0.0)  # fmt: skip


@pytest.mark.parametrize("writes", [2, 3])  # metrics of the first epoch, its checkpoint
def test_a_run_killed_between_two_files_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    recipe = recipe_of(TINY, {"measure": {"every": 2}})
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        replace_file(path, data)
        written.append(path)
        if len(written) == writes:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr("surebound.same_settings.replace_file", write)
        patched.setattr("surebound.training.checkpoint.replace_file", write)
        fit(recipe, tmp_path / "killed")
    for name in ("killed", "whole"):
        fit(recipe, tmp_path / name)
    told = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "whole")]
    assert told[0] == told[1]
    rows = [json.loads(line) for line in told[0].splitlines()]
    assert ["clean" in row for row in rows] == [False, True, False]


def test_averaged_weights_are_what_is_kept() -> None:
    pairs = zip(weights_after(None), weights_after(None, averaging=Ema(0.5)), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)


def test_stochastic_weight_averaging_is_the_mean_of_every_so_many_steps() -> None:
    values, shares = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], []
    average = 0.0
    for step, value in enumerate(values, 1):
        average += Swa(2, 3).share(step) * (value - average)
        shares.append(average)
    assert shares == pytest.approx([3, 1, 1, 1, 3, 3, 3, 4])  # 1; (1 + 5) / 2; (1 + 5 + 6) / 3


def test_an_epoch_is_chosen_among_those_at_the_whole_radius() -> None:
    """Scores fall, so the first epoch whose last step has the radius aimed at wins; the last one where none has."""
    for radii, best in ((Smoothed(0.05, 1, 1, 7), 1), (Smoothed(0.05, 1, 9, 7), 2), (None, 0)):
        network, falling = digits_cnn(0, (2, 3), 5), iter((3.0, 2.0, 1.0))
        kept: list[Tensor] = []

        def score(n: nn.Module, falling: Iterator[float] = falling, kept: list[Tensor] = kept) -> float:
            kept.append(next(n.parameters()).detach().clone())
            return next(falling)

        train(network, load_digits(0).train.first(100), OBJECTIVES["standard"](),
              [Group(list(network.parameters()), 0.01)], Run(3, 16, eps=0.05, radii=radii), score)  # fmt: skip
        assert torch.equal(next(network.parameters()), kept[best]), best


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    weights_after(tmp_path)
    other = digits_cnn(0, (3, 3), 5)
    part = load_digits(0).train.first(20)
    with pytest.raises(UsageError, match="checkpoint.safetensors cannot be continued"):
        train(other, part, OBJECTIVES["standard"](), [Group(list(other.parameters()), 0.1)], Run(1), lambda n: 0.0,
              checkpoint=Checkpoint(tmp_path))  # fmt: skip
    (tmp_path / "checkpoint.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UsageError, match="checkpoint.safetensors cannot be continued"):
        weights_after(tmp_path)


@pytest.mark.parametrize("part", ["best", "mean", "network"])
def test_a_damaged_name_in_a_checkpoint_is_told_before_training_goes_on(tmp_path: Path, part: str) -> None:
    weights_after(tmp_path, averaging=Ema(0.9))
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    with pytest.raises(UsageError, match="weights are averaged in only one of the two runs"):
        weights_after(tmp_path)
    path.write_bytes(whole.replace(f"{part}/1.weight".encode(), f"{part}/1.height".encode()))
    with pytest.raises(UsageError, match=r"checkpoint.safetensors cannot be continued: (.|\n)*1.height"):
        weights_after(tmp_path, averaging=Ema(0.9))


def test_an_epoch_is_told_even_if_the_run_is_killed_between_its_end_and_its_checkpoint(tmp_path: Path) -> None:
    part, told = load_digits(0).train.first(40), []

    def go(save: bool) -> None:
        network, kept = digits_cnn(0, (2, 3), 5), Checkpoint(tmp_path)
        if not save:
            kept.save = lambda state: (_ for _ in ()).throw(Stop)  # pyright: ignore[reportAttributeAccessIssue]
        train(network, part, OBJECTIVES["standard"](), [Group(list(network.parameters()), 0.1)], Run(2, 20),
              lambda n: 0.0, lambda epoch: told.append(epoch.number), checkpoint=kept)  # fmt: skip

    with pytest.raises(Stop):
        go(False)
    assert told == [0]
    go(True)
    assert told == [0, 0, 1]


def test_a_continued_run_measures_the_same_epochs(tmp_path: Path) -> None:
    recipe = recipe_of({**TINY, "objective": {"name": "standard"}, "terms": {}, "measure": {"every": 2, "images": 5}})

    def stop(words: str, done: int, total: int) -> None:
        if done == 7:  # in the second epoch
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, tmp_path, say=stop)
    fit(recipe, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["clean" in row for row in rows] == [False, True, False]


def test_a_run_that_ended_before_its_first_checkpoint_does_not_keep_its_folder(tmp_path: Path) -> None:
    def stop(words: str, done: int, total: int) -> None:
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe_of({**TINY, "eps": 0.06}), tmp_path, say=stop)
    assert len(fit(recipe_of(TINY), tmp_path).epochs) == 3


# ---------------------------------------------------------------- the command


def test_what_a_run_folder_holds(tmp_path: Path) -> None:
    result = run("train", "--out", tmp_path / "run", "--json", "--threads", 1, *sets(TINY))
    assert result.exit_code == 0, result.stderr
    out, told = tmp_path / "run", json.loads(result.stdout)
    assert told == json.loads((out / "summary.json").read_text()) and told["schema"] == 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 1, 2] and rows[0]["eps"] < rows[1]["eps"] <= rows[2]["eps"] == 0.05
    assert all({"loss", "clean", "pgd", "certified", "unstable"} <= set(row) for row in rows)
    assert {path.name for path in (out / "plots").iterdir()} == {"loss.png", "accuracy.png", "unstable.png", "eps.png"}
    assert recipe_of(read_toml(out / "config.toml")) == told["recipe"]
    network, x = load_network(out), torch.rand(3, 1, 8, 8)
    graph = load_onnx(out / "model.onnx")
    assert graph.original is not None
    assert torch.allclose(graph.original(x.reshape(3, *graph.input.shape)).flatten(1), network(x), atol=1e-5)
    again = run("evaluate", out, "--data", "digits", "--eps", 0.05, "--n", 4, "--timeout", 5, "--out", tmp_path / "e")
    assert again.exit_code == 0, again.stderr


def test_a_run_on_crops_is_evaluated_on_the_middle_of_the_images(tmp_path: Path) -> None:
    network = {"name": "cnn7", "data": "digits", "width": 1}
    cropped = {"augment": {"size": 6}, "network": network, "run": {"epochs": 1}}
    fit(recipe_of(TINY, cropped), tmp_path / "run")
    words = ["--data", "digits", "--eps", 0, "--methods", "clean", "--json"]
    result = run("evaluate", tmp_path / "run", *words, "--out", tmp_path / "e")
    assert result.exit_code == 0, result.stderr
    test = load_digits(0).test
    answers = load_network(tmp_path / "run")(test.images[:, :, 1:7, 1:7]).argmax(1)
    assert json.loads(result.stdout)["clean"] == pytest.approx(float((answers == test.labels).double().mean()))
    (tmp_path / "run" / "recipe.json").write_text("{}")
    result = run("evaluate", tmp_path / "run", *words, "--out", tmp_path / "f")
    assert result.exit_code == 2 and "recipe.json cannot be read" in result.stderr


def test_a_file_gives_the_same_run(tmp_path: Path) -> None:
    run("train", "--out", tmp_path / "a", "--threads", 1, *sets(TINY))
    result = run("train", tmp_path / "a" / "config.toml", "--out", tmp_path / "b", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    longer = {**TINY, "run": {**TINY["run"], "epochs": 12}}  # type: ignore[dict-item]
    words = ["train", "--out", str(tmp_path / "killed"), "--threads", "1", *sets(longer)]
    process = subprocess.Popen([sys.executable, "-m", "surebound", *words], stderr=subprocess.PIPE, env={**os.environ})
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert run(*words).exit_code == 0
    assert run("train", "--out", tmp_path / "whole", "--threads", 1, *sets(longer)).exit_code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [json.loads(line)["number"] for line in metrics.read_text().splitlines()]
    assert rows == list(range(12))


def test_networks_for_images_that_are_cropped_get_cropped_images_everywhere(tmp_path: Path) -> None:
    """The published recipes of Tiny ImageNet crop."""
    made = fit(recipe_of({**TINY, "augment": {"size": 6, "pad": 1}, "terms": {}}), tmp_path / "run")
    assert load_network(tmp_path / "run")(torch.rand(2, 1, 6, 6)).shape == (2, 10) and len(made.epochs) == 3


def test_messages(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for words, message in (
        (["--recipe", "mnist"], "do you mean 'mnist-0"),
        (["x.toml", "--recipe", "mnist-0.1-ibp"], "give a TOML file or --recipe, not both"),
        (["--set", "run.epoch=1"], "do you mean 'run.epochs'"),
        (["--set", "data=digts"], "unknown data set 'digts'"),
        (["--device", "cuda"], "cuda"),
        (["--set", "network.hidden=-1"], "cannot build the network"),
        (["--set", "network.in_shape=[1, 9, 9]"], "does not take images of shape [1, 8, 8]"),
        (["--set", "augment.size=20"], "a crop of 20 x 20 pixels does not fit into images of [1, 8, 8]"),
        (["--set", "network.classes=3"], "logits are [1, 3] for an image, the data has 10 classes"),
    ):
        result = run("train", "--out", out, *words)
        assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert run("train", "--out", out, "--threads", 1, *sets(TINY)).exit_code == 0
    result = run("train", "--out", out, "--threads", 1, *sets({**TINY, "eps": 0.06}))
    assert result.exit_code == 2 and "holds work by other settings" in result.stderr


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_radii_trains(tmp_path: Path, shape: str) -> None:
    recipe = recipe_of(TINY, {"radii": {"shape": shape}, "average": {"kind": "swa", "start": 2}})
    fitted = fit(recipe, tmp_path)
    assert len(fitted.epochs) == 3 and fitted.epochs[0].eps <= 0.05


def test_the_rate_rises_to_what_its_schedule_begins_with() -> None:
    settings = {
        **recipe_of()["run"],
        "epochs": 10,
        "warm_up": 2.0,
        "schedule": "multistep",
        "milestones": [6],
        "factor": 0.1,
    }
    rate = schedule_of(settings)
    assert [rate(epoch / 10) for epoch in (0, 1, 2, 5.9, 6, 9)] == pytest.approx([0, 0.5, 1, 1, 0.1, 0.1])
    with pytest.raises(UsageError, match="warming up"):
        schedule_of({**settings, "warm_up": 10.0})


@pytest.mark.slow
def test_a_teacher_is_a_run_folder(tmp_path: Path) -> None:
    first = ["train", "--out", tmp_path / "teacher", "--threads", 1, *sets({**TINY, "objective": {"name": "standard"}})]
    assert run(*first).exit_code == 0
    pupil = {**TINY, "teacher": {"run": str(tmp_path / "teacher"), "weight": 2.0, "temperature": 4.0}}
    assert run("train", "--out", tmp_path / "pupil", "--threads", 1, *sets(pupil)).exit_code == 0
    assert run("train", "--out", tmp_path / "alone", "--threads", 1, *sets(TINY)).exit_code == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("pupil", "alone"))
    assert not torch.equal(one["1.weight"], two["1.weight"])
    for change, message, code in (
        ({"run": str(tmp_path / "none")}, "is missing", 2),
        ({"run": str(tmp_path / "teacher"), "temperature": 0.0}, "temperature of a teacher must be positive", 2),
    ):
        result = run("train", "--out", tmp_path / "bad", *sets({**TINY, "teacher": change}))
        assert result.exit_code == code and message in result.stderr, result.stderr
    other = {"run": str(tmp_path / "teacher"), "weight": 1.0, "temperature": 1.0}
    with pytest.raises(ModelError, match=r"answers \(1, 10\) to an image of 7 classes"):
        taught(OBJECTIVES["ibp"](), other, torch.rand(1, 1, 8, 8), 7)
    with pytest.raises(ModelError, match="does not take these images"):
        taught(OBJECTIVES["ibp"](), other, torch.rand(1, 3, 9, 9), 10)


def test_without_validation_images_training_images_are_measured_and_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are bytes in most data sets."""
    whole = load_dataset("digits", validation=0.0, images=200)
    as_bytes = Part((whole.train.images * 255).to(torch.uint8), whole.train.labels, whole.train.indices)
    monkeypatch.setattr("surebound.fit.load_dataset", lambda *names, **shares: replace(whole, train=as_bytes))
    result = run("train", "--out", tmp_path, "--threads", 1, *sets({**TINY, "validation": 0.0}))
    assert result.exit_code == 0 and "; training images: clean" in result.stdout, result.stderr


@pytest.mark.parametrize(("words", "seed"), [([], 5), (["--seed", "0"], 0), (["--seed", "3"], 3)])
def test_a_seed_on_the_command_line_is_taken_before_the_files(words: list[str], seed: int, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('seed = 5\n[network]\nname = "mlp_64_64"\n')
    result = run("train", tmp_path / "mine.toml", "--out", tmp_path / "run", *sets({"run": {"epochs": 1}}), *words)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["seed"] == seed


def test_seeds_change_runs_and_zero_is_one_of_them(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        fit(recipe_of({**TINY, "seed": seed}), tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert not torch.equal(one["1.weight"], two["1.weight"])


# ---------------------------------------------------------------- several processes


def worker(rank: int, count: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    network = digits_cnn(0, (2, 3), 5)
    part = load_digits(0).train.first(67)
    epochs = train(network, part, OBJECTIVES["standard"](), [Group(list(network.parameters()), 0.05)], Run(2, 17),
                   lambda n: 0.0, checkpoint=Checkpoint(Path(folder)))  # fmt: skip
    losses = torch.tensor([epoch.loss for epoch in epochs])
    torch.save([losses, *(p.detach() for p in network.parameters())], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Batches of 17 and 16 images: of an odd one the first process has an image more."""
    mp.start_processes(worker, (2, str(tmp_path)), 2, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = digits_cnn(0, (2, 3), 5)
    part: Part = load_digits(0).train.first(67)
    group = Group(list(alone.parameters()), 0.05)
    epochs = train(alone, part, OBJECTIVES["standard"](), [group], Run(2, 17), lambda n: 0.0)
    losses = torch.tensor([epoch.loss for epoch in epochs])
    for one, two, expected in zip(*found, [losses, *alone.parameters()], strict=True):
        assert torch.equal(one, two) and torch.allclose(one, expected.detach(), atol=1e-6)
