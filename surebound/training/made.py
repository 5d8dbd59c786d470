"""What a recipe names, made: the network, the rate's schedule, the average, the teacher, the changes of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.data.augment import Augment
from surebound.data.dataset import Dataset
from surebound.errors import ModelError, UsageError
from surebound.nets.table import find_network
from surebound.runs import Recipe, load_network
from surebound.training.averaging import Averaging, Ema, Swa
from surebound.training.objectives.distill import Distilled
from surebound.training.objectives.objective import Objective
from surebound.training.recipe import Values
from surebound.training.schedules import Schedule, constant, cosine, cyclic, multistep, warmed_up


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
