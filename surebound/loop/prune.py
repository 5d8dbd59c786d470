"""Pruning in rounds: score, take the smallest, go back to earlier weights or on with these, train, measure.

OUT/round-01, round-02, ... are run folders, with `kept.safetensors` beside the network; OUT/curve.csv has a row for
the run it starts from and one for every round; OUT itself is a run folder of the best round by validation images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from surebound.errors import UsageError
from surebound.fit import Start
from surebound.loop.dense import Dense
from surebound.loop.settings import by_channel, criterion_of, recipe_in
from surebound.loop.work import Say, Sparse, Work, finished, quiet
from surebound.rowfile import claimed
from surebound.sparsify.layers import Channels, Entries, channels, entries
from surebound.sparsify.masks import mask_weights
from surebound.sparsify.select import kept
from surebound.sparsify.sites import Masks


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
        network, masks = self.dense.network, self.dense.masks
        self.begin(network, masks)  # raises before anything is measured
        for number in range(1, self.values["prune"]["rounds"] + 1):
            name = f"round-{number:02d}"
            masks = self.masks(number, name, network, masks)
            self.row("dense", self.dense.network)
            network = self.round(name, network, masks)
            self.row(name, network)

    def masks(self, number: int, name: str, network: nn.Module, before: Masks) -> Masks:
        """What stays in a round: read if it was chosen already."""

        def choose() -> tuple[Masks, dict[str, Any]]:
            self.say(f"{name}: scoring", 0, 0)
            return self.chosen(mask_weights(network, before), number, before), {"round": number}

        return self.decided(name, "kept", "prune", choose)

    def chosen(self, network: nn.Module, number: int, before: Masks) -> Masks:
        """The masks that the criterion gives a network: a part of what is left of the weights that there were."""
        settings, criterion, example = self.values["prune"], criterion_of(self.values), self.basis(1, 1).example
        of: Mapping[str, Entries | Channels]
        if by_channel(self.values):
            of = channels(network, example, settings["layers"])
        else:
            of = entries(network, settings["layers"], settings["ends"])
        first, there = ({name: each.alive(masks) for name, each in of.items()} for masks in (self.dense.masks, before))
        require_least(settings["least"], first)
        keep = (1 - settings["rate"]) ** number
        part = sum(int(mask.sum()) for mask in first.values()) / sum(mask.numel() for mask in first.values())
        initial = self.dense.at(0, self.data) if settings["criterion"]["name"] == "snip" else None
        basis = self.basis(settings["images"], settings["batch"], keep * part, initial)
        scores = criterion(network, basis, of)
        found = dict(before)
        for name, mask in kept(scores, keep, settings["scope"], there, settings["least"], of=first).items():
            found |= of[name].masks(self.dense.network, mask, before)
        return found

    def begin(self, network: nn.Module, masks: Masks) -> Start:
        """What a round trains."""
        settings = self.values["prune"]
        begin = self.dense.at(settings["epoch"], self.data) if settings["then"] == "rewind" else network
        return Start(mask_weights(begin, masks), made=self.dense.made)

    def round(self, name: str, network: nn.Module, masks: Masks) -> nn.Module:
        """The network of a round, trained in its folder."""
        settings, recipe = self.values["prune"], recipe_in(self.values)
        if settings["then"] == "fine-tune":
            recipe["run"] |= {**settings["tune"], "schedule": "constant", "warm_up": 0.0}
            recipe["radii"] |= {"shape": "fixed"}
        recipe["run"] |= {"keep": []}
        return self.trained(name, lambda: self.begin(network, masks), recipe)


def require_least(least: int, first: Masks) -> None:
    """Raise UsageError where more are to stay in every layer than there are in one."""
    for name, mask in first.items():
        if least > mask.sum():
            raise UsageError(f"prune.least = {least} is more than the {int(mask.sum())} of '{name}'; make it smaller")
