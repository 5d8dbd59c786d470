"""Measures of a network in training, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import torch
from safetensors.torch import save
from torch import nn

from surebound.attacks.image_pgd import Pgd
from surebound.data.dataset import Part
from surebound.measures.accuracy import attacked, fraction, right
from surebound.rowfile import replace_file
from surebound.runs import RunFolder
from surebound.training.distributed import first
from surebound.training.loop import Epoch
from surebound.training.recipe import Values
from surebound.training.scene import Bounded, images_within, margin_rows
from surebound.training.trainee import Trainee

AT_ONCE = 100
"""Images bounded in one pass."""


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
        """One line of metrics; lines of a run that went further before it was killed are replaced. Weights that the
        recipe wants kept are written beside them.
        """
        if not first():
            return
        if epoch.number + 1 in self.recipe["run"]["keep"]:
            tensors = {name: value.contiguous() for name, value in self.trainee.network.state_dict().items()}
            replace_file(self.folder.path / f"epoch-{epoch.number + 1}.safetensors", save(tensors))
        path = self.folder.path / "metrics.jsonl"
        before = [line for line in path.read_text().splitlines() if json.loads(line)["number"] < epoch.number]
        lines = [*before, json.dumps({"kind": "epoch", **asdict(epoch), **self.measured})]
        replace_file(path, ("\n".join(lines) + "\n").encode())
