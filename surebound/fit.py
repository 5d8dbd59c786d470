"""From a recipe to a run folder: data, network, objective, loop, measures, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surebound.data.augment import centred
from surebound.data.dataset import Dataset, Part, in_unit
from surebound.data.readers import load_dataset
from surebound.graph.torch_export import trace
from surebound.reports.figures import courses, require_matplotlib
from surebound.rowfile import claimed
from surebound.runs import Recipe, RunFolder
from surebound.same_settings import RECIPE, same_settings
from surebound.sparsify.masks import unmasked
from surebound.training.checkpoint import Checkpoint
from surebound.training.distributed import first
from surebound.training.initial import ibp_initial
from surebound.training.loop import Epoch, Group, Run, batch_sizes, train
from surebound.training.made import augment_of, averaging_of, network_of, require_fit, schedule_of, taught
from surebound.training.radii import radii_of
from surebound.training.recipe import Values, objective_of
from surebound.training.trainee import Trainee
from surebound.watch import Watch, measures


@dataclass(frozen=True, eq=False)
class Start:
    """What training begins with instead of a fresh network. groups: its parameters with their rates, by the recipe's
    table `run`, default all at the recipe's rate. made: how the network is built, default by the recipe.
    """

    network: nn.Module
    groups: Callable[[nn.Module, Values], Sequence[Group]] | None = None
    made: Recipe | None = None


@dataclass(frozen=True)
class Fitted:
    """A trained network, in evaluation mode, its epochs and the summary that was written."""

    network: nn.Module
    epochs: tuple[Epoch, ...]
    summary: Mapping[str, Any]


def fit(
    recipe: Values,
    out: Path,
    data_dir: Path | None = None,
    say: Callable[[str, int, int], None] | None = None,
    start: Start | None = None,
) -> Fitted:
    """Train by a recipe into the run folder `out`; a run that is there with the same recipe goes on.

    say: told words and the steps done of all. Raises UsageError, DataError, ModelError.
    """
    with claimed(out) if first() else nullcontext():
        return fitted(recipe, out, data_dir, say or (lambda words, done, total: None), start)


def data_of(recipe: Values, data_dir: Path | None) -> Dataset:
    """The data of a recipe; training and validation images as bytes."""
    shares = {"validation": recipe["validation"], "seed": recipe["seed"], "images": recipe["images"]}
    return load_dataset(recipe["data"], data_dir, **shares, as_bytes=True)


def held_out(recipe: Values, data: Dataset, count: int) -> Part:
    """The first validation images as the network takes them; of the training images where there are none."""
    kept = (data.validation if len(data.validation) else data.train).first(count)
    return Part(centred(in_unit(kept.images), recipe["augment"]["size"]), kept.labels, kept.indices)


def fresh(recipe: Values, data: Dataset) -> nn.Module:
    """The network of a recipe before it is trained."""
    network = network_of(recipe, data).build()
    require_fit(network, example(recipe, data.train), data.classes)
    if recipe["run"]["ibp_initial"]:
        return ibp_initial(network, example(recipe, data.train), recipe["seed"])
    return network


def fitted(
    recipe: Values, out: Path, data_dir: Path | None, say: Callable[[str, int, int], None], start: Start | None
) -> Fitted:
    """`fit` in a folder that is ours."""
    require_matplotlib()
    say("reading the data", 0, 0)
    data = data_of(recipe, data_dir)
    part = data.train
    kept = held_out(recipe, data, recipe["measure"]["images"])
    network = fresh(recipe, data) if start is None else start.network
    settings = recipe["run"]
    eps = recipe["eps"] * recipe["radii"]["scale"]
    per_epoch = len(batch_sizes(len(part), settings["batch"]))
    run = Run(
        epochs=settings["epochs"],
        batch=settings["batch"],
        momentum=settings["momentum"],
        schedule=schedule_of(settings),
        seed=recipe["seed"],
        optimiser=settings["optimiser"],
        eps=eps,
        radii=radii_of(recipe["radii"]["shape"], {**recipe["radii"], "eps": eps, "batches": per_epoch}),
        clip=settings["clip"] or None,
        averaging=averaging_of(recipe["average"], per_epoch),
        choose=settings["choose"] != "last",
    )
    objective = taught(objective_of(recipe), recipe["teacher"], example(recipe, part), data.classes)
    augment = augment_of(recipe["augment"])
    folder = same_settings(out, recipe, Checkpoint(out).path.exists(), RECIPE)
    watch = Watch(recipe, folder, kept, Trainee(network, example(recipe, part)), per_epoch, say)
    groups = (start and start.groups) or all_alike
    epochs = train(
        network,
        part,
        objective,
        groups(network, settings),
        run,
        watch.score,
        watch.note,
        augment,
        Checkpoint(out),
        watch.stepped,
    )
    summary = {"recipe": recipe, "validation": measures(watch.trainee, kept, recipe), "epochs": len(epochs)}
    if first():
        finish(folder, (start and start.made) or network_of(recipe, data), network, summary, example(recipe, part))
    return Fitted(network, epochs, summary)


def all_alike(network: nn.Module, settings: Values) -> list[Group]:
    """All parameters at the recipe's rate."""
    return [Group(list(network.parameters()), settings["rate"], settings["weight_decay"])]


def example(recipe: Values, part: Part) -> Tensor:
    """One image as the network takes it."""
    return centred(in_unit(part.images[:1]), recipe["augment"]["size"])


def finish(folder: RunFolder, made: Recipe, network: nn.Module, summary: Mapping[str, Any], image: Tensor) -> None:
    """Write the network, its ONNX file, the plots and the summary; masks stay as zeros."""
    network = unmasked(network)
    folder.save_network(network, made)
    trace(network, image).to_onnx(str(folder.path / "model.onnx"))
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    for name, picture in courses(rows).items():
        (folder.path / "plots" / f"{name}.png").write_bytes(picture)
    folder.write_summary(summary)
