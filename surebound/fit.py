"""From a recipe to a run folder: data, network, objective, loop, measures, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surebound.data.augment import centred
from surebound.data.dataset import Part, in_unit
from surebound.data.readers import load_dataset
from surebound.errors import UsageError
from surebound.graph.torch_export import trace
from surebound.reports.figures import courses, require_matplotlib
from surebound.rowfile import claimed, replace_file
from surebound.runs import Recipe, RunFolder
from surebound.training.checkpoint import Checkpoint
from surebound.training.distributed import first
from surebound.training.initial import ibp_initial
from surebound.training.loop import Epoch, Group, Run, batch_sizes, train
from surebound.training.made import augment_of, averaging_of, network_of, require_fit, schedule_of, taught
from surebound.training.radii import radii_of
from surebound.training.recipe import Values, objective_of
from surebound.training.trainee import Trainee
from surebound.watch import Watch, measures


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
) -> Fitted:
    """Train by a recipe into the run folder `out`; a run that is there with the same recipe goes on.

    say: told words and the steps done of all. Raises UsageError, DataError, ModelError.
    """
    with claimed(out) if first() else nullcontext():
        return fitted(recipe, out, data_dir, say or (lambda words, done, total: None))


def fitted(recipe: Values, out: Path, data_dir: Path | None, say: Callable[[str, int, int], None]) -> Fitted:
    """`fit` in a folder that is ours."""
    require_matplotlib()
    folder = RunFolder(out)
    say("reading the data", 0, 0)
    shares = {"validation": recipe["validation"], "seed": recipe["seed"], "images": recipe["images"]}
    data = load_dataset(recipe["data"], data_dir, **shares, as_bytes=True)
    part = data.train
    kept = (data.validation if len(data.validation) else data.train).first(recipe["measure"]["images"])
    kept = Part(centred(in_unit(kept.images), recipe["augment"]["size"]), kept.labels, kept.indices)
    made = network_of(recipe, data)
    network = made.build()
    require_fit(network, kept.images[:1], data.classes)
    if recipe["run"]["ibp_initial"]:
        network = ibp_initial(network, example(recipe, part), recipe["seed"])
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
    same_recipe(folder, recipe)
    watch = Watch(recipe, folder, kept, Trainee(network, example(recipe, part)), per_epoch, say)
    epochs = train(
        network,
        part,
        objective,
        [Group(list(network.parameters()), settings["rate"], settings["weight_decay"])],
        run,
        watch.score,
        watch.note,
        augment,
        Checkpoint(out),
        watch.stepped,
    )
    summary = {"recipe": recipe, "validation": measures(watch.trainee, kept, recipe), "epochs": len(epochs)}
    if first():
        finish(folder, made, network, summary, example(recipe, part))
    return Fitted(network, epochs, summary)


def same_recipe(folder: RunFolder, recipe: Values) -> None:
    """Make the folder, or check that it holds a run of the same recipe; UsageError otherwise.

    A run that ended before its first checkpoint leaves nothing to continue, and its folder is made anew.
    """
    text = json.dumps(recipe, sort_keys=True)
    there = folder.path / "recipe.json"
    if there.exists() and there.read_text() == text:
        return
    if there.exists() and Checkpoint(folder.path).path.exists():
        raise UsageError(f"{folder.path} holds a run of another recipe; choose another --out, or delete it")
    if first():
        RunFolder.create(folder.path)
        folder.write_config(recipe)
        replace_file(there, text.encode())


def example(recipe: Values, part: Part) -> Tensor:
    """One image as the network takes it."""
    return centred(in_unit(part.images[:1]), recipe["augment"]["size"])


def finish(folder: RunFolder, made: Recipe, network: nn.Module, summary: Mapping[str, Any], image: Tensor) -> None:
    """Write the network, its ONNX file, the plots and the summary."""
    folder.save_network(network, made)
    trace(network, image).to_onnx(str(folder.path / "model.onnx"))
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    for name, picture in courses(rows).items():
        (folder.path / "plots" / f"{name}.png").write_bytes(picture)
    folder.write_summary(summary)
