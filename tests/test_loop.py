"""Pruning and grafting from run folders: what is rewound, what is chosen, what is left behind, what is continued."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from surebound.cli.app import app
from surebound.errors import DataError, ModelError, UsageError
from surebound.fit import data_of, fit, fresh
from surebound.graph.onnx_import import load_onnx
from surebound.graph.torch_export import trace
from surebound.loop import provable as provable_module
from surebound.loop import work as work_module
from surebound.loop.ablate import ablate
from surebound.loop.compress import compress_model
from surebound.loop.curve import COLUMNS, Curve, Row
from surebound.loop.dense import Dense
from surebound.loop.graft import graft_run
from surebound.loop.lottery import lottery, ticket_among
from surebound.loop.provable import make_provable
from surebound.loop.prune import prune
from surebound.loop.settings import VARIATIONS, settings_of
from surebound.nets.grafted import GraftedReLU
from surebound.nets.small import digits_cnn
from surebound.runs import load_network
from surebound.sparsify.mask_file import MaskFile, write_released
from surebound.sparsify.sites import relu_sites
from surebound.training.recipe import recipe_of

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

RECIPE = {
    "images": 200,
    "eps": 0.03,
    "network": {"name": "cnn_a", "data": "digits", "width": 2, "norm": True},
    "objective": {"name": "fgsm"},
    "run": {"epochs": 2, "batch": 50, "rate": 0.05, "keep": [1]},
    "measure": {"images": 20, "attack_steps": 2},
}
CURVE: Mapping[str, Any] = {"images": 10, "timeout": 0.2, "methods": "clean,pgd,ibp,crown"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network with batch norm."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    fit(recipe_of(RECIPE), folder)
    return folder


def pruning(**settings: Any) -> list[dict[str, Any]]:
    return [{"prune": {"rate": 0.5, "rounds": 2, "images": 100, **settings}, "curve": CURVE, "run": {"epochs": 1}}]


def grafting(**settings: Any) -> list[dict[str, Any]]:
    return [{"graft": {"ratios": [0.5], "images": 60, **settings}, "curve": CURVE, "run": {"epochs": 1}}]


class Starts:
    """What `fit` was given, without training: networks leave as they came."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.recipes: list[dict[str, Any]] = []

    def __call__(self, recipe: Any, out: Path, data_dir: Any, say: Any, start: Any) -> Any:
        named = start.network.state_dict().items()
        self.seen.append({k.replace("parametrizations.", "").replace(".original", ""): v.clone() for k, v in named})
        self.recipes.append(recipe)
        shorter = {**recipe, "run": {**recipe["run"], "rate": 0.0}}
        return fit(shorter, out, data_dir, say, start)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr(work_module, "fit", found)
    return found


# ---------------------------------------------------------------- what a round starts from


def test_rewinding_goes_back_to_the_initialisation_of_everything(run: Path, tmp_path: Path, starts: Starts) -> None:
    """Weights, biases, linear layers, norms and their statistics; the published program reset convolutions alone, to
    their weights after training."""
    prune(run, tmp_path / "out", pruning())
    dense = Dense.read(run)
    before = fresh(dense.recipe, data_of(dense.recipe, None)).state_dict()
    after = dense.network.state_dict()
    assert len(starts.seen) == 2
    for seen in starts.seen:
        for name, value in before.items():
            assert torch.equal(seen[name], value), name
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {"1.weight", "2.weight", "2.running_mean", "2.running_var", "2.num_batches_tracked"} <= moved
    assert {name for name in before if name.endswith("weight")} <= moved


def test_rewinding_goes_back_to_an_epoch_that_was_kept(run: Path, tmp_path: Path, starts: Starts) -> None:
    prune(run, tmp_path / "out", pruning(epoch=1, rounds=1))
    kept = load_file(run / "epoch-1.safetensors")
    assert all(torch.equal(starts.seen[0][name], value) for name, value in kept.items())
    shutil.copytree(run, tmp_path / "lost")
    (tmp_path / "lost" / "epoch-1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"train it with --set run.keep=\[1\]"):
        prune(tmp_path / "lost", tmp_path / "other", pruning(epoch=1, rounds=1))


@pytest.mark.slow
def test_other_modes_go_on_with_the_weights_at_hand(run: Path, tmp_path: Path, starts: Starts) -> None:
    trained = load_network(run).state_dict()
    prune(run, tmp_path / "again", pruning(then="rate-rewind", rounds=1))
    prune(run, tmp_path / "tuned", pruning(then="fine-tune", rounds=1, tune={"epochs": 1, "rate": 0.125}))
    for seen in starts.seen:
        assert all(torch.equal(seen[name], value) for name, value in trained.items())
    again, tuned = starts.recipes
    assert (again["run"]["rate"], again["run"]["schedule"]) == (0.05, "cosine")
    assert (tuned["run"]["rate"], tuned["run"]["schedule"], tuned["radii"]["shape"]) == (0.125, "constant", "fixed")


# ---------------------------------------------------------------- what is pruned


def test_rounds_take_exactly_their_part_of_the_kernels_and_never_give_it_back(run: Path, tmp_path: Path) -> None:
    found = prune(run, tmp_path, pruning())
    total = sum(p.numel() for p in load_network(run).parameters() if p.dim() == 4)
    masks = [dict(MaskFile.read(tmp_path / f"round-0{number}" / "kept.safetensors").masks) for number in (1, 2)]
    assert [sum(int(mask.sum()) for mask in each.values()) for each in masks] == [
        round(0.5 * total),
        round(0.25 * total),
    ]
    assert all(bool((masks[0][name] | ~mask).all()) for name, mask in masks[1].items())
    for number, each in enumerate(masks, 1):
        network = load_network(tmp_path / f"round-0{number}")
        assert not any("parametrizations" in name for name in network.state_dict())
        for name, mask in each.items():
            weight = network.get_parameter(name)
            assert bool((weight[~mask] == 0).all()) and bool((weight[mask] != 0).all())
        largest = load_network(run if number == 1 else tmp_path / "round-01")
        scores = torch.cat([largest.get_parameter(name).detach().abs()[mask] for name, mask in each.items()])
        gone = torch.cat([largest.get_parameter(name).detach().abs()[~mask] for name, mask in each.items()])
        assert float(scores.min()) >= float(gone.max())
    assert [row.name for row in found.rows] == ["dense", "round-01", "round-02"]
    assert found.rows[2].kernels == pytest.approx(0.25, abs=0.01) and found.rows[0].kernels == 1


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["slimming", "refill", "nrs", "snip", "taylor"])
def test_every_kind_of_criterion_runs(criterion: str, run: Path, tmp_path: Path) -> None:
    prune(run, tmp_path, pruning(criterion={"name": criterion}, rounds=1, rate=0.3))
    network = load_network(tmp_path / "round-01")
    masks = MaskFile.read(tmp_path / "round-01" / "kept.safetensors")
    assert masks.provenance["prune"]["criterion"]["name"] == criterion
    if criterion in ("snip", "taylor"):
        return
    kept = [mask.flatten(1).any(1) for name, mask in masks.masks.items() if mask.dim() == 4]
    assert sum(int(mask.sum()) for mask in kept) == round(0.7 * sum(len(mask) for mask in kept))
    for norm, mask in zip([part for part in network.modules() if isinstance(part, nn.BatchNorm2d)], kept, strict=True):
        assert bool((norm.weight[~mask] == 0).all()) and bool((norm.bias[~mask] == 0).all())


# ---------------------------------------------------------------- what is grafted


def test_grafted_networks_have_their_ratio_and_start_with_the_lines_asked_for(
    run: Path, tmp_path: Path, starts: Starts
) -> None:
    found = graft_run(run, tmp_path, grafting(ratios=[0.25, 0.5], lines={"name": "fixed", "slope": 0.3}))
    neurons = sum(p.numel() for name, p in starts.seen[0].items() if name.endswith(".mask"))
    for place, ratio in enumerate((0.25, 0.5)):
        network = load_network(tmp_path / f"ratio-{ratio}")
        count = sum(int(part.mask.sum()) for part in network.modules() if isinstance(part, GraftedReLU))
        assert count == round(ratio * neurons)
        assert found.rows[1 + place].grafted == pytest.approx(ratio, abs=0.005)
        file = MaskFile.read(tmp_path / f"ratio-{ratio}" / "grafted.safetensors")
        assert file.provenance["graft"]["rank"] == "dense" and len(file.provenance["stages"]) == 4
        slopes = [p for name, p in starts.seen[place].items() if name.endswith(".slope")]
        assert slopes and all(p.unique().tolist() == [pytest.approx(0.3)] for p in slopes)
    assert starts.recipes[0]["run"]["schedule"] == "cosine" and starts.recipes[0]["radii"]["shape"] == "fixed"


@pytest.mark.slow
def test_lines_train_at_their_own_rate_without_decay(run: Path, tmp_path: Path) -> None:
    graft_run(run, tmp_path / "a", grafting(line_rate=0.0))
    still = load_network(tmp_path / "a" / "ratio-0.5")
    slopes = [part.slope.detach() for part in still.modules() if isinstance(part, GraftedReLU)]
    assert all(bool((slope == slope.new_tensor(0.4)).all()) for slope in slopes)
    graft_run(run, tmp_path / "b", grafting(trained=False, lines={"name": "fixed", "slope": 0.0}))
    pruned = load_network(tmp_path / "b" / "ratio-0.5")
    assert not any(p.requires_grad for name, p in pruned.named_parameters() if name.endswith((".slope", ".intercept")))
    graft_run(run, tmp_path / "c", grafting(lines={"name": "least-squares"}))
    moving = load_network(tmp_path / "c" / "ratio-0.5")
    assert all(
        len(part.slope[part.mask].unique()) > 1
        for part in moving.modules()
        if isinstance(part, GraftedReLU) and int(part.mask.sum()) > 1
    )


@pytest.mark.slow
def test_gates_learn_which_neurons_to_graft(run: Path, tmp_path: Path) -> None:
    found = graft_run(run, tmp_path, grafting(choose="gates", gates={"weight": 5.0, "epochs": 1, "rate": 0.1}))
    gated = load_network(tmp_path / "gates")
    gates = {name: p for name, p in gated.named_parameters() if name.endswith(".gate")}
    assert gates and all(bool((gate < 1).any()) for gate in gates.values())
    masks = MaskFile.read(tmp_path / "ratio-0.5" / "grafted.safetensors").masks
    closed = torch.cat([gates[f"{name}.gate"].detach().clamp(0, 1)[mask] for name, mask in masks.items()])
    others = torch.cat([gates[f"{name}.gate"].detach().clamp(0, 1)[~mask] for name, mask in masks.items()])
    assert float(closed.max()) <= float(others.min())
    assert [row.name for row in found.rows] == ["dense", "ratio-0.5"]


@pytest.mark.slow
def test_masks_come_from_files_of_either_form(run: Path, tmp_path: Path) -> None:
    graft_run(run, tmp_path / "first", grafting())
    ours = tmp_path / "first" / "ratio-0.5" / "grafted.safetensors"
    masks = MaskFile.read(ours).masks
    write_released(tmp_path / "released.pt", masks)
    for number, path in enumerate((ours, tmp_path / "released.pt")):
        graft_run(run, tmp_path / str(number), grafting(choose="file", masks=str(path)))
        again = MaskFile.read(tmp_path / str(number) / "masks" / "grafted.safetensors")
        assert all(torch.equal(mask, masks[name]) for name, mask in again.masks.items())
    MaskFile({"nothing": torch.ones(3, dtype=torch.bool)}, "grafted", {}).write(tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match="are not neurons of the network"):
        graft_run(run, tmp_path / "bad", grafting(choose="file", masks=str(tmp_path / "bad.safetensors")))


# ---------------------------------------------------------------- folders


def test_the_folder_holds_the_best_network_the_curve_and_pictures(run: Path, tmp_path: Path) -> None:
    found = prune(run, tmp_path, pruning())
    chosen = run if found.chosen == "dense" else tmp_path / found.chosen
    assert all(
        torch.equal(v, load_network(chosen).state_dict()[k]) for k, v in load_network(tmp_path).state_dict().items()
    )
    x = torch.rand(2, 1, 8, 8)
    network = load_network(tmp_path)
    graph = load_onnx(tmp_path / "model.onnx")
    assert torch.allclose(graph.original(x.reshape(2, *graph.input.shape)).flatten(1), network(x), atol=1e-5)  # pyright: ignore
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = list(csv.DictReader((tmp_path / "curve.csv").read_text().splitlines()))
    assert summary["chosen"] == found.chosen and len(summary["rows"]) == len(rows) == 3
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "accuracy.png", "stability.png", "instability.png", "seconds.png", "megabytes.png",
    }  # fmt: skip
    assert Curve(tmp_path / "curve.csv").rows() == list(found.rows)


@pytest.mark.slow
def test_a_call_that_was_killed_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(run, tmp_path / "whole", pruning())

    def dying(recipe: Any, out: Path, *rest: Any) -> Any:
        if out.name == "round-02":
            raise KeyboardInterrupt
        return fit(recipe, out, *rest)

    monkeypatch.setattr(work_module, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        prune(run, tmp_path / "half", pruning())
    assert not (tmp_path / "half" / "summary.json").exists()
    monkeypatch.setattr(work_module, "fit", fit)
    prune(run, tmp_path / "half", pruning())
    for name in ("round-01", "round-02"):
        a, b = (load_file(tmp_path / of / name / "model.safetensors") for of in ("whole", "half"))
        assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_test_images_play_no_part_in_the_choice(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = work_module.data_of

    def watched(*given: Any) -> Any:
        data = plain(*given)

        class Parts:
            name, train, validation, classes = data.name, data.train, data.validation, data.classes

            @property
            def test(self) -> Any:
                read.append("test")
                raise AssertionError("the test images were looked at")

        return Parts()

    monkeypatch.setattr(work_module, "data_of", watched)
    prune(run, tmp_path, pruning(rounds=1))
    assert not read


def test_other_settings_in_the_same_folder_are_refused(run: Path, tmp_path: Path) -> None:
    prune(run, tmp_path, pruning(rounds=1))
    with pytest.raises(UsageError, match=r"other settings \(prune.rate: 0.5 there, 0.4 here\); choose another --out"):
        prune(run, tmp_path, pruning(rounds=1, rate=0.4))


@pytest.mark.parametrize(
    ("kind", "part", "words"),
    [
        ("prune", {"prune": {"rat": 0.5}}, r"there is no 'prune.rat'; do you mean 'prune.rate'"),
        ("prune", {"prune": {"criterion": {"name": "magnitud"}}}, r"there is no 'magnitud'; do you mean 'magnitude'"),
        ("prune", {"prune": {"criterion": {"name": "hydra", "epoch": 3}}}, r"do you mean 'prune.criterion.epochs'"),
        ("prune", {"prune": {"rate": 1.0}}, "prune.rate must be below 1"),
        ("prune", {"prune": {"then": "forget"}}, "must be one of rewind, rate-rewind, fine-tune"),
        ("prune", {"validation": 0.0}, "of which validation = 0 leaves none"),
        ("prune", {"graft": {"ratios": [0.5]}}, "there is no 'graft'"),
        ("graft", {"graft": {"ratios": [0.0]}}, "each of graft.ratios must be above 0 and at most 1"),
        ("graft", {"graft": {"ratios": [0.5, 0.50000001]}}, "graft.ratios must differ by more than a millionth"),
        ("graft", {"graft": {"ratios": []}}, "graft.ratios must have at least one number"),
        ("graft", {"graft": {"choose": "file"}}, "needs graft.masks"),
        ("graft", {"graft": {"rank": "best"}}, "graft.rank must be one of dense, min, raw"),
        ("graft", {"graft": {"lines": {"name": "fixed", "slop": 1.0}}}, "do you mean 'graft.lines.slope'"),
        ("graft", {"run": {"epochs": 0}}, "run.epochs must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind: str, part: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_of((kind, "curve"), recipe_of(RECIPE), [part])


def test_nothing_is_written_over_what_it_starts_from(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    for work in (prune, graft_run, ablate, make_provable):
        with pytest.raises(UsageError, match="is the folder that this starts from"):
            work(run, run, [])
    with pytest.raises(UsageError, match="is the folder that this starts from"):
        compress_model(run, run)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_folders_that_are_no_finished_runs_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"recipe.json is missing; sparsifying starts from a folder"):
        prune(tmp_path, tmp_path / "out", [])
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "recipe.json").write_text("{")
    with pytest.raises(ModelError, match="put the run's recipe back"):
        prune(tmp_path / "run", tmp_path / "out", [])
    graft_run(run, tmp_path / "grafted", grafting())
    with pytest.raises(UsageError, match="has grafted neurons, which cannot be rewound; use prune.then=rate-rewind"):
        prune(tmp_path / "grafted" / "ratio-0.5", tmp_path / "other", pruning(rounds=1))


# ---------------------------------------------------------------- what is made of what


def zeros_of(folder: Path) -> dict[str, Tensor]:
    """The masks beside a network, after a look at the network's own zeros."""
    masks, state = dict(MaskFile.read(folder / "kept.safetensors").masks), load_network(folder).state_dict()
    for name, mask in masks.items():
        assert bool((state[name][~mask] == 0).all()), name
    assert any(not bool(mask.all()) for mask in masks.values())
    return masks


@pytest.mark.slow
def test_what_is_pruned_stays_so_when_the_folder_is_sparsified_further(run: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    prune(run, first, pruning(rounds=1, layers="all"))
    shutil.copytree(first / "round-01", tmp_path / "pruned")
    before = zeros_of(tmp_path / "pruned")
    graft_run(tmp_path / "pruned", tmp_path / "grafted", grafting())
    assert all(torch.equal(mask, before[name]) for name, mask in zeros_of(tmp_path / "grafted" / "ratio-0.5").items())

    again = pruning(rounds=1, layers="conv", rate=0.25, then="rate-rewind")
    prune(tmp_path / "grafted" / "ratio-0.5", tmp_path / "more", again)
    after = zeros_of(tmp_path / "more" / "round-01")
    assert after.keys() == before.keys()
    assert all(not bool((mask & ~before[name]).any()) for name, mask in after.items())
    kernels = [name for name, mask in before.items() if mask.dim() == 4]
    left, left_now = (sum(int(masks[name].sum()) for name in kernels) for masks in (before, after))
    assert left_now == round(0.75 * left)

    channels = pruning(rounds=1, rate=0.25, criterion={"name": "filters"})
    prune(tmp_path / "pruned", tmp_path / "channels", channels)
    found = zeros_of(tmp_path / "channels" / "round-01")
    assert all(not bool((found[name] & ~mask).any()) for name, mask in before.items())

    compress_model(tmp_path / "channels" / "round-01", tmp_path / "small")
    graft_run(tmp_path / "small", tmp_path / "last", grafting())
    small, last = zeros_of(tmp_path / "small"), zeros_of(tmp_path / "last" / "ratio-0.5")
    assert small.keys() == last.keys() and all(torch.equal(mask, last[name]) for name, mask in small.items())


@pytest.mark.slow
def test_what_is_pruned_stays_so_when_it_is_made_provable(run: Path, tmp_path: Path) -> None:
    prune(run, tmp_path / "first", pruning(rounds=1, layers="all"))
    before = zeros_of(tmp_path / "first" / "round-01")
    make_provable(tmp_path / "first" / "round-01", tmp_path / "out", [{"provable": PROVABLE, "curve": CURVE}])
    steps = [path for path in (tmp_path / "out").glob("step-*") if path.is_dir()]
    assert len(steps) >= 3
    for step in steps:
        found = zeros_of(step)
        assert all(not bool((found[name] & ~mask).any()) for name, mask in before.items())
    zeros_of(tmp_path / "out")


@pytest.mark.slow
def test_the_folder_of_pruning_is_a_run_folder(run: Path, tmp_path: Path) -> None:
    found = prune(run, tmp_path / "out", pruning(rounds=1))
    dense = Dense.read(tmp_path / "out")
    source = run if found.chosen == "dense" else tmp_path / "out" / found.chosen
    assert dense.digest == Dense.read(source).digest and dense.recipe == Dense.read(source).recipe
    assert dense.masks.keys() == Dense.read(source).masks.keys()
    prune(tmp_path / "out", tmp_path / "again", pruning(rounds=1, rate=0.1))
    compress_model(tmp_path / "out", tmp_path / "small")
    graft_run(tmp_path / "small", tmp_path / "grafted", grafting())


def test_nothing_is_written_over_the_work_of_another_command(run: Path, tmp_path: Path) -> None:
    prune(run, tmp_path / "out", pruning(rounds=1))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".csv")}
    with pytest.raises(UsageError, match=r"holds the work of another command \(settings.json\)"):
        fit(recipe_of(RECIPE), tmp_path / "out")
    for other in (graft_run, make_provable, ablate):
        with pytest.raises(UsageError, match="holds work by other settings"):
            other(run, tmp_path / "out", [])
        with pytest.raises(UsageError, match=r"holds the work of another command \(recipe.json\)"):
            other(tmp_path / "out", run, [])
    with pytest.raises(UsageError, match="holds work by other settings"):
        compress_model(run, tmp_path / "out")
    words = ["evaluate", str(run), "--data", "digits", "--eps", "0.01", "--out", str(run)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "holds the work of another command (recipe.json)" in done.stderr
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_file_is_not_written_over_by_what_is_made_of_it(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "model.onnx", tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(digits_cnn(0).state_dict(), weights)
    told = [{"data": "digits", "eps": 0.02, "images": 100}]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    words = "is the folder that this starts from"
    with pytest.raises(UsageError, match=words):
        compress_model(tmp_path / "model.onnx", tmp_path)
    with pytest.raises(UsageError, match=words):
        make_provable(tmp_path / "model.onnx", tmp_path, told)
    with pytest.raises(UsageError, match=words):
        make_provable("surebound.nets.small:digits_cnn", tmp_path, told, weights=weights)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_masks_that_are_not_those_of_the_network_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    name = next(name for name, value in load_network(run).named_parameters() if value.dim() == 4)
    mask = torch.zeros_like(load_network(run).get_parameter(name), dtype=torch.bool)
    for kind, words in (("kept", f"weights of '{name}' are pruned which are not zero"), ("grafted", "not kept")):
        MaskFile({name: mask}, kind, {}).write(tmp_path / "run" / "kept.safetensors")
        with pytest.raises(DataError, match=words):
            Dense.read(tmp_path / "run")


def test_compressing_another_network_into_the_same_folder_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    compress_model(tmp_path / "run", tmp_path / "small")
    compress_model(tmp_path / "run", tmp_path / "small")
    shutil.copy(run / "epoch-1.safetensors", tmp_path / "run" / "model.safetensors")
    with pytest.raises(UsageError, match=r"holds work by other settings \(digest:"):
        compress_model(tmp_path / "run", tmp_path / "small")


def test_another_mask_file_of_the_same_name_is_other_settings(run: Path, tmp_path: Path) -> None:
    sites = Dense.read(run).network
    masks = {
        site: torch.zeros(shape, dtype=torch.bool) for site, shape in relu_sites(sites, torch.rand(1, 1, 8, 8)).items()
    }
    own = grafting(choose="file", masks=str(tmp_path / "own.safetensors"))
    MaskFile(masks, "grafted", {}).write(tmp_path / "own.safetensors")
    graft_run(run, tmp_path / "out", own)
    MaskFile({site: ~mask for site, mask in masks.items()}, "grafted", {}).write(tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match=r"holds work by other settings \(masks:"):
        graft_run(run, tmp_path / "out", own)


def test_a_damaged_curve_is_refused(run: Path, tmp_path: Path) -> None:
    prune(run, tmp_path, pruning(rounds=1))
    text = (tmp_path / "curve.csv").read_text().splitlines()
    text[1] = text[1].replace(text[1].split(",")[4], "nan", 1)
    (tmp_path / "curve.csv").write_text("\n".join(text) + "\n")
    with pytest.raises(UsageError, match="has a row with numbers that are none"):
        prune(run, tmp_path, pruning(rounds=1))


def test_what_cannot_be_is_said_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    def refused(words: str, work: Any, model: Path, *given: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=words):
            work(model, tmp_path / "out", list(given))
        assert not (tmp_path / "out" / "curve.csv").exists()

    refused("epoch-2.safetensors is missing", prune, run, *pruning(epoch=2))
    refused("prune.least = 99999 is more than", prune, run, *pruning(least=99999))
    refused("network.width: 2 there, 3 here", prune, run, *pruning(), {"network": {"width": 3}})
    refused("give --data and --eps", make_provable, run / "model.onnx")
    refused("give --eps", make_provable, run / "model.onnx", {"data": "digits"})
    told = {"data": "digits", "eps": 0.1, "network": {"width": 3}}
    refused("leave out the settings of the table 'network'", make_provable, run / "model.onnx", told)
    compress_model(run, tmp_path / "small")
    refused("is compressed and cannot be rewound", prune, tmp_path / "small", *pruning())
    again = pruning(criterion={"name": "slimming"}, then="rate-rewind")
    refused("slimming looks at the scales of norms", prune, tmp_path / "small", *again)
    prune(run, tmp_path / "out", pruning(rounds=1))  # nothing of it binds the folder


# ---------------------------------------------------------------- tickets, ablations, the whole loop


@pytest.mark.slow
def test_tickets_are_chosen_by_validation_and_compared_on_test_images(tmp_path: Path) -> None:
    own = {"lottery": {"seeds": [0, 3], "images": 8}, "prune": {"rate": 0.5, "rounds": 2, "images": 60}}
    parts = [{**RECIPE, **own, "eps": 0.001, "curve": CURVE, "run": {"epochs": 2, "batch": 50}}]
    found = lottery(parts, tmp_path)
    assert [ticket.seed for ticket in found] == [0, 3]
    for ticket in found:
        rows = Curve(tmp_path / f"seed-{ticket.seed}" / "rounds" / "curve.csv").rows()
        good = [row for row in rows[1:] if row.clean >= rows[0].clean and row.verified >= max(rows[0].verified, 1e-9)]
        assert ticket.name == (min(good, key=lambda row: row.weights).name if good else "")
        tests = Curve(tmp_path / f"seed-{ticket.seed}" / "test.csv").rows()
        assert tests[0].clean == ticket.test_dense_clean and tests[-1].verified == ticket.test_verified
        dense = Dense.read(tmp_path / f"seed-{ticket.seed}" / "dense")
        assert dense.recipe["seed"] == ticket.seed
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == 2
    assert lottery(parts, tmp_path) == found
    with pytest.raises(UsageError, match="trained from its initialisation"):
        lottery([{"prune": {"then": "fine-tune"}}], tmp_path / "other")
    with pytest.raises(UsageError, match="lottery.seeds must be different"):
        lottery([{"lottery": {"seeds": [1, 1]}}], tmp_path / "other")


def test_a_ticket_is_the_sparsest_that_loses_neither_accuracy_nor_proofs() -> None:
    dense = Row(**dict.fromkeys(COLUMNS, 0.5) | {"name": "dense"})  # pyright: ignore
    rows = [
        dense,
        replace(dense, name="a", weights=0.4),
        replace(dense, name="b", weights=0.3, clean=0.6, verified=0.5),
        replace(dense, name="c", weights=0.2, clean=0.9, verified=0.4),
        replace(dense, name="d", weights=0.1, clean=0.4, verified=0.9),
    ]
    found = ticket_among(rows)
    assert found is not None and found.name == "b"
    assert ticket_among([rows[0], *rows[3:]]) is None
    nothing = [replace(row, clean=0.1, verified=0.0) for row in rows]
    assert ticket_among(nothing) is None, "a network of which nothing is verified is no certified ticket"


@pytest.mark.slow
def test_ablations_differ_in_what_they_say_and_share_the_dense_row(run: Path, tmp_path: Path) -> None:
    own = grafting()[0] | {"ablate": {"only": ["as-published", "random", "pruned"]}}
    found = ablate(run, tmp_path, [own])
    assert [(each.variation, each.row.name) for each in found] == [
        ("as-published", "dense"), ("as-published", "ratio-0.5"), ("random", "ratio-0.5"), ("pruned", "ratio-0.5"),
    ]  # fmt: skip
    files = {name: tmp_path / name / "ratio-0.5" / "grafted.safetensors" for name in own["ablate"]["only"]}
    masks = {name: MaskFile.read(path).masks for name, path in files.items()}
    assert all(torch.equal(mask, masks["pruned"][site]) for site, mask in masks["as-published"].items())
    assert any(not torch.equal(mask, masks["random"][site]) for site, mask in masks["as-published"].items())
    assert Curve(tmp_path / "random" / "curve.csv").rows()[0] == found[0].row
    (tmp_path / "random" / "curve.csv").unlink()  # as after a kill before the row was there
    assert ablate(run, tmp_path, [own])[2].row.name == "ratio-0.5"
    assert [row.name for row in Curve(tmp_path / "random" / "curve.csv").rows()] == ["dense", "ratio-0.5"]
    assert (tmp_path / "plots" / "ablation.png").exists()
    with pytest.raises(UsageError, match="there is no 'sop'; do you mean 'sap'"):
        ablate(run, tmp_path / "other", [{"ablate": {"only": ["sop"]}}])


def test_every_variation_is_a_setting_that_exists() -> None:
    for change in VARIATIONS.values():
        settings_of(("graft", "curve"), recipe_of(RECIPE), [{"graft": change}])


PROVABLE = {
    "steps": 4, "epochs": 1, "score_images": 20, "score_timeout": 0.1, "test_images": 10, "loss": 1.0,
}  # fmt: skip


@pytest.mark.slow
def test_the_loop_keeps_what_is_better_and_stops_when_nothing_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are scripted: of the tuned, grafted and pruned networks the grafted one alone verifies more."""
    plain = provable_module.Steps.measure

    def scripted(self: Any, name: str, network: nn.Module, masks: Any) -> Any:
        found = plain(self, name, network, masks)
        verified = 0.6 if "graft" in name and "02" in name else 0.5
        return replace(found, row=replace(found.row, verified=verified, clean=0.9, seconds=1.0))

    monkeypatch.setattr(provable_module.Steps, "measure", scripted)
    found = make_provable(run, tmp_path, [{"provable": {**PROVABLE, "steps": 9}, "curve": CURVE}])
    names = [row.name for row in found.rows]
    assert names == [
        "as it came", "step-01-tune", "step-02-graft", "step-03-tune", "step-04-graft", "step-05-prune",
    ]  # fmt: skip
    assert found.chosen == "step-02-graft"
    first, second = (MaskFile.read(tmp_path / name / "grafted.safetensors").masks for name in (names[2], names[4]))
    assert all(bool((second[site] | ~mask).all()) for site, mask in first.items())
    total = sum(mask.numel() for mask in first.values())
    assert sum(int(mask.sum()) for mask in first.values()) == round(0.15 * total)
    assert sum(int(mask.sum()) for mask in second.values()) == round((round(0.15 * total) / total + 0.15) * total)
    kept = MaskFile.read(tmp_path / names[5] / "kept.safetensors").masks
    assert any(not bool(mask.all()) for mask in kept.values())


def test_a_run_is_made_provable_and_leaves_a_network_a_file_and_a_report(run: Path, tmp_path: Path) -> None:
    own = [{"provable": PROVABLE, "curve": CURVE}]
    found = make_provable(run, tmp_path, own)
    network, x = load_network(tmp_path), torch.rand(3, 1, 8, 8)
    graph = load_onnx(tmp_path / "model.onnx")
    answers = graph.original(x.reshape(3, *graph.input.shape)).flatten(1)  # pyright: ignore[reportOptionalCall]
    assert torch.allclose(answers, network(x), atol=1e-5)
    chosen = load_network(run if found.chosen == "as it came" else tmp_path / found.chosen)
    assert torch.allclose(chosen(x), network(x), atol=1e-5)
    page = (tmp_path / "report.html").read_text()
    assert "Made provable" in page and found.chosen in page and page.count("<img") == 2
    assert make_provable(run, tmp_path, own) == found
    assert [row.name for row in Curve(tmp_path / "test.csv").rows()] == ["as it came", "made provable"]


def test_better_means_more_proofs_or_faster_ones_without_losing_accuracy() -> None:
    row = Row(**dict.fromkeys(COLUMNS, 0.5) | {"name": "a", "clean": 0.9, "seconds": 1.0})  # pyright: ignore
    steps = object.__new__(provable_module.Steps)

    def better(target: str, **changed: Any) -> bool:
        object.__setattr__(steps, "values", {"provable": {"target": target, "loss": 0.02}})
        return steps.better(replace(row, **changed), row, row)

    assert better("verified", verified=0.6) and better("verified", verified=0.6, seconds=9.0)
    assert not better("verified", verified=0.6, clean=0.87) and better("verified", verified=0.6, clean=0.885)
    assert not better("verified") and not better("verified", seconds=0.96) and better("verified", seconds=0.9)
    assert not better("time", verified=0.6, seconds=0.99) and better("time", seconds=0.5)
    assert not better("time", verified=0.4, seconds=0.1)


@pytest.mark.slow
def test_a_file_is_made_provable_by_a_recipe_of_its_own(run: Path, tmp_path: Path) -> None:
    given = {"data": "digits", "images": 100, "eps": 0.02, "run": {"batch": 50}, "measure": {"images": 10}}
    own = [given | {"provable": {**PROVABLE, "steps": 1}, "curve": CURVE}]
    found = make_provable(run / "model.onnx", tmp_path / "out", own)
    assert [row.name for row in found.rows] == ["as it came", "step-01-tune"]
    with pytest.raises(ModelError, match="does not take images of digits"):
        make_provable(stored(tmp_path), tmp_path / "other", own)


def stored(folder: Path) -> Path:
    """An ONNX file of a network for other images."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).eval()
    trace(network, torch.rand(1, 1, 3, 3)).to_onnx(str(folder / "other.onnx"))
    return folder / "other.onnx"


def test_commands(run: Path, tmp_path: Path) -> None:
    def called(*words: str) -> Any:
        return CliRunner().invoke(app, list(words))

    tables = tmp_path / "settings.toml"
    tables.write_text('[graft]\nratios = [0.5]\nimages = 60\n[curve]\nimages = 10\nmethods = "clean,ibp"\n')
    done = called("graft", str(run), str(tables), "--out", str(tmp_path / "g"), "--set", "run.epochs=1", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["schema"] == 1 and [row["name"] for row in told["rows"]] == ["dense", "ratio-0.5"]
    done = called("graft", str(run), str(tables), "--out", str(tmp_path / "g"), "--set", "run.epochs=1")
    assert done.exit_code == 0 and "the best by validation images is" in done.stdout
    done = called("prune", str(run), "--out", str(tmp_path / "p"), "--set", "prune.rates=0.5")
    assert done.exit_code == 2 and "do you mean 'prune.rate'" in done.stderr
