"""From a recipe to a run folder: data, network, objective, loop, measures, plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.attacks.image_pgd import Pgd
from surebound.data.augment import Augment, centred
from surebound.data.dataset import Dataset, Part, in_unit
from surebound.data.readers import load_dataset
from surebound.errors import ModelError, UsageError
from surebound.graph.torch_export import trace
from surebound.measures.accuracy import attacked, fraction, right
from surebound.nets.table import find_network
from surebound.reports.figures import courses, require_matplotlib
from surebound.rowfile import claimed, replace_file
from surebound.runs import Recipe, RunFolder, load_network
from surebound.training.averaging import Averaging, Ema, Swa
from surebound.training.checkpoint import Checkpoint
from surebound.training.distributed import first
from surebound.training.initial import ibp_initial
from surebound.training.loop import Epoch, Group, Run, batch_sizes, train
from surebound.training.objectives.distill import Distilled
from surebound.training.objectives.objective import Objective
from surebound.training.radii import radii_of
from surebound.training.recipe import Values, objective_of
from surebound.training.scene import Bounded, images_within, margin_rows
from surebound.training.schedules import Schedule, constant, cosine, cyclic, multistep, warmed_up
from surebound.training.trainee import Trainee

AT_ONCE = 100
"""Images bounded in one pass."""


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
    network.cpu()
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


def network_of(recipe: Values, data: Dataset) -> Recipe:
    """How the network is built; its data set's number of classes and image shape unless the recipe says others."""
    given = dict(recipe["network"])
    factory = find_network(given.pop("name"))
    size = recipe["augment"]["size"]
    shape = list(data.train.images.shape[1:]) if not size else [data.train.images.shape[1], size, size]
    given = {"in_shape": shape, "classes": data.classes, "seed": recipe["seed"], **given}
    return Recipe(f"{factory.__module__}:{factory.__name__}", given)


def require_fit(network: nn.Module, image: Tensor, classes: int) -> None:
    """Raise UsageError unless the network takes such an image and has a logit for each class."""
    try:
        with torch.no_grad(), evaluating(network):
            shape = list(network(image).shape)
    except RuntimeError as error:
        raise UsageError(
            f"recipe: the network does not take images of shape {list(image.shape[1:])}: {error}; see network.in_shape"
        ) from None
    if len(shape) != 2 or shape[1] < classes:
        raise UsageError(f"recipe: the network's logits are {shape} for an image, the data has {classes} classes")


def example(recipe: Values, part: Part) -> Tensor:
    """One image as the network takes it."""
    return centred(in_unit(part.images[:1]), recipe["augment"]["size"])


def schedule_of(settings: Values) -> Schedule:
    """The learning rate's schedule; milestones are epochs of the whole run, warming up included."""
    share = settings["warm_up"] / settings["epochs"]
    if not 0 <= share < 1:
        raise UsageError(f"recipe: warming up must take less than the run.epochs, got {settings['warm_up']}")
    if settings["schedule"] == "multistep":
        inside = [epoch / settings["epochs"] for epoch in settings["milestones"] if epoch < settings["epochs"]]
        then = multistep([(place - share) / (1 - share) for place in inside], settings["factor"])
    else:
        then = {"constant": constant, "cosine": cosine, "cyclic": cyclic(settings["peak"])}[settings["schedule"]]
    return warmed_up(share, then) if share else then


def averaging_of(settings: Values, per_epoch: int) -> Averaging | None:
    """How weights are averaged, if they are."""
    if settings["kind"] == "swa":
        return Swa(max(1, settings["start"] * per_epoch), settings["every"])
    return Ema(settings["decay"]) if settings["kind"] == "ema" else None


def taught(objective: Objective, teacher: Values, image: Tensor, classes: int) -> Objective:
    """The objective, learning from the network of a run folder besides if there is one; raises ModelError."""
    if not teacher["run"]:
        return objective
    network = load_network(Path(teacher["run"]))
    try:
        with torch.no_grad():
            logits = network(image)
    except RuntimeError as error:
        raise ModelError(f"the teacher {teacher['run']} does not take these images: {error}") from None
    if logits.shape != (1, classes):
        raise ModelError(f"the teacher {teacher['run']} answers {tuple(logits.shape)} to an image of {classes} classes")
    return Distilled(objective, network, teacher["weight"], teacher["temperature"])


def augment_of(settings: Values) -> Augment | None:
    """How images are changed, if they are."""
    if not settings["pad"] and not settings["flip"] and not settings["size"]:
        return None
    return Augment(settings["pad"], settings["border"], settings["size"] or None, settings["flip"])


def measures(trainee: Trainee, part: Part, recipe: Values) -> dict[str, float]:
    """Accuracy clean, under an attack and certified by IBP at the radius that is meant, and unstable neurons by IBP."""
    eps, settings = recipe["eps"], recipe["measure"]
    network = trainee.network
    attack = Pgd(settings["attack_steps"], settings["attack_restarts"])
    found, unstable = [], torch.zeros(())
    with torch.no_grad():
        values = trainee.values({})
        for images, labels in zip(part.images.split(AT_ONCE), part.labels.split(AT_ONCE), strict=True):
            bounded = Bounded(trainee, values, images_within(images, eps))
            rows = margin_rows(labels, trainee.graph.output.numel, images)
            found.append((bounded.ibp(rows) > 0).all(1))
            for layer in bounded.pre_activations.values():
                unstable += ((layer.ends.lower < 0) & (layer.ends.upper > 0)).sum()
    return {
        "clean": fraction(right(network, part.images, part.labels)),
        "pgd": fraction(attacked(network, part, eps, attack)),
        "certified": fraction(torch.cat(found)),
        "unstable": float(unstable) / len(part),
    }


class Watch:
    """Measures epochs on validation images and writes them to metrics.jsonl."""

    def __init__(
        self,
        recipe: Values,
        folder: RunFolder,
        part: Part,
        trainee: Trainee,
        per_epoch: int,
        say: Callable[[str, int, int], None],
    ) -> None:
        self.recipe, self.folder, self.part, self.trainee = recipe, folder, part, trainee
        self.per_epoch, self.say = per_epoch, say
        self.measured: dict[str, float] = {}
        self.epoch = 0

    def stepped(self, done: int, total: int) -> None:
        """Told after every step; the epoch is counted by the steps done, for a run may have been continued."""
        self.epoch = (done - 1) // self.per_epoch + 1
        self.say(f"epoch {self.epoch} of {self.recipe['run']['epochs']}", done, total)

    def score(self, network: nn.Module) -> float:
        """What epochs are chosen by."""
        choose, every = self.recipe["run"]["choose"], self.recipe["measure"]["every"]
        wanted = choose != "last" or (every > 0 and self.epoch % every == 0)
        self.measured = measures(self.trainee, self.part, self.recipe) if wanted else {}
        return self.measured.get(choose, 0.0)

    def note(self, epoch: Epoch) -> None:
        """One line of metrics; lines of a run that went further before it was killed are replaced."""
        if not first():
            return
        path = self.folder.path / "metrics.jsonl"
        before = [line for line in path.read_text().splitlines() if json.loads(line)["number"] < epoch.number]
        lines = [*before, json.dumps({"kind": "epoch", **asdict(epoch), **self.measured})]
        replace_file(path, ("\n".join(lines) + "\n").encode())


def finish(folder: RunFolder, made: Recipe, network: nn.Module, summary: Mapping[str, Any], image: Tensor) -> None:
    """Write the network, its ONNX file, the plots and the summary."""
    folder.save_network(network, made)
    trace(network, image).to_onnx(str(folder.path / "model.onnx"))
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    for name, picture in courses(rows).items():
        (folder.path / "plots" / f"{name}.png").write_bytes(picture)
    folder.write_summary(summary)
