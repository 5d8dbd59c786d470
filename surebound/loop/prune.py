"""Pruning in rounds: score, take the smallest, go back to earlier weights or on with these, train, measure.

OUT/round-01, round-02, ... are run folders, with `masks.safetensors` beside the network; OUT/curve.csv has a row for
the run it starts from and one for every round; OUT itself holds the network of the best round by validation images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surebound.fit import Start
from surebound.loop.dense import Dense
from surebound.loop.settings import by_channel, criterion_of, recipe_in
from surebound.loop.work import Say, Sparse, Work, finished, quiet
from surebound.rowfile import claimed
from surebound.sparsify.layers import channels, weights
from surebound.sparsify.mask_file import MaskFile
from surebound.sparsify.masks import mask_weights
from surebound.sparsify.select import kept


def prune(
    run: Path, out: Path, parts: Sequence[Mapping[str, Any]], data_dir: Path | None = None, say: Say = quiet
) -> Sparse:
    """Prune the network of a run folder by the settings in `parts` (see `loop.settings`), into the folder `out`.

    What is there with the same settings goes on. Raises UsageError, DataError, ModelError.
    """
    with claimed(out):
        work = Rounds.begun(Dense.read(run), out, ("prune", "curve"), parts, data_dir, say)
        work.all()
        return finished(work)


@dataclass(frozen=True, eq=False)
class Rounds(Work):
    """One call of `prune`."""

    def all(self) -> None:
        """All rounds."""
        network, masks = self.dense.network, dict[str, Tensor]()
        self.row("dense", network)
        for number in range(1, self.values["prune"]["rounds"] + 1):
            name = f"round-{number:02d}"
            masks = self.masks(number, name, network, masks)
            network = self.round(name, network, masks)
            self.row(name, network)

    def masks(self, number: int, name: str, network: nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What stays in a round: read if it was chosen already."""
        path = self.folder.path / name / "masks.safetensors"
        if path.exists():
            return dict(MaskFile.read(path).masks)
        self.say(f"{name}: scoring", 0, 0)
        found = self.chosen(mask_weights(network, before), number, before)
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = self.values["prune"]
        told = {"round": number, "start": self.dense.digest, "seed": self.values["seed"], "prune": settings}
        MaskFile(found, "kept", told).write(path)
        return found

    def chosen(self, network: nn.Module, number: int, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks that the criterion gives a network."""
        settings, criterion = self.values["prune"], criterion_of(self.values)
        keep = (1 - settings["rate"]) ** number
        initial = self.dense.at(0, self.data) if settings["criterion"]["name"] == "snip" else None
        basis = self.basis(settings["images"], settings["batch"], keep, initial)
        if not by_channel(self.values):
            names = list(weights(network, settings["layers"], settings["ends"]))
            return kept(criterion(network, basis, names), keep, settings["scope"], before or None, settings["least"])
        of = channels(network, basis.example, settings["layers"])
        there = {name: before[name].flatten(1).any(1) for name in of} if before else None
        alive = kept(criterion(network, basis, of), keep, settings["scope"], there, settings["least"])
        found: dict[str, Tensor] = {}
        for name, mask in alive.items():
            found |= of[name].masks(self.dense.network, mask)
        return found

    def round(self, name: str, network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
        """The network of a round, trained in its folder."""
        settings, recipe = self.values["prune"], recipe_in(self.values)
        if settings["then"] == "fine-tune":
            recipe["run"] |= {**settings["tune"], "schedule": "constant", "warm_up": 0.0}
            recipe["radii"] |= {"shape": "fixed"}
        recipe["run"] |= {"keep": []}

        def start() -> Start:
            rewound = settings["then"] == "rewind"
            begin = self.dense.at(settings["epoch"], self.data) if rewound else network
            return Start(mask_weights(begin, masks), made=self.dense.made)

        return self.trained(name, start, recipe)
