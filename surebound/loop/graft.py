"""Linearity grafting: choose neurons, make them lines, train, measure; once for every ratio.

OUT/ratio-0.5 and so on are run folders, with `grafted.safetensors` beside the network; OUT/gates is one, too, where
gates choose. OUT/curve.csv has a row for the run it starts from and one for every ratio; OUT itself is a run folder of
the best network by validation images. What was pruned stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surebound.errors import DataError, UsageError
from surebound.fit import Start
from surebound.loop.dense import Dense
from surebound.loop.settings import TUNING, recipe_in
from surebound.loop.work import Say, Sparse, Work, finished, quiet
from surebound.models import sha256
from surebound.nets.grafted import GatedReLU
from surebound.rowfile import claimed
from surebound.sparsify.criteria import INSTABILITY, SIGNIFICANCE
from surebound.sparsify.graft import ACTIVATIONS, gate, gates_of, graft, grafting_groups
from surebound.sparsify.lines import LINES, Line
from surebound.sparsify.mask_file import MaskFile, read_released
from surebound.sparsify.masks import mask_weights
from surebound.sparsify.select import Selection, kept, select
from surebound.sparsify.sites import Masks, relu_sites
from surebound.training.loop import Group
from surebound.training.recipe import Values, built


def graft_run(
    run: Path, out: Path, parts: Sequence[Mapping[str, Any]], data_dir: Path | None = None, say: Say = quiet
) -> Sparse:
    """Graft the network of a run folder by the settings in `parts` (see `loop.settings`), into the folder `out`.

    What is there with the same settings goes on. Raises UsageError, DataError, ModelError.
    """
    with claimed(out):
        work = Ratios.begun(Dense.read(run), out, ("graft", "curve"), (TUNING, *parts), data_dir, say)
        work.all()
        return finished(work)


@dataclass(frozen=True, eq=False)
class Ratios(Work):
    """One call of `graft_run`."""

    @classmethod
    def also_of(cls, values: Values) -> dict[str, Any]:
        """The digest of the file that masks come from."""
        return {"masks": sha256(Path(values["graft"]["masks"]))} if values["graft"]["choose"] == "file" else {}

    @property
    def settings(self) -> Values:
        """The table `graft`."""
        return self.values["graft"]

    def all(self) -> None:
        """A network for every ratio."""
        for ratio in [0.0] if self.settings["choose"] == "file" else self.settings["ratios"]:
            name = f"ratio-{ratio:g}" if ratio else "masks"
            masks = self.masks(ratio, name)
            self.row("dense", self.dense.network)

            def start(masks: Masks = masks) -> Start:
                lines = self.lines
                slopes = {site: lines[site].slope for site in masks}
                intercepts = {site: lines[site].intercept for site in masks}
                grafted = graft(self.dense.network, masks, slopes, intercepts, self.settings["trained"])
                return Start(mask_weights(grafted, self.dense.masks), self.groups, self.dense.made)

            self.row(name, self.trained(name, start, self.recipe))

    @property
    def recipe(self) -> Values:
        """What grafted networks are trained by."""
        recipe = recipe_in(self.values)
        recipe["run"] |= {"keep": []}
        return recipe

    def groups(self, network: nn.Module, run: Values) -> list[Group]:
        """Lines at their own rate without decay, weights at the recipe's."""
        return grafting_groups(network, self.settings["line_rate"], run["rate"], run["weight_decay"])

    @cached_property
    def sites(self) -> dict[str, tuple[int, ...]]:
        """The network's ReLUs."""
        return relu_sites(self.dense.network, self.basis(1, 1).example, ACTIVATIONS)

    @cached_property
    def lines(self) -> dict[str, Line]:
        """Where lines start: those that gates learned, else by the settings."""
        if self.settings["choose"] == "gates":
            gated = {name: part for name, part in self.gated.named_modules() if isinstance(part, GatedReLU)}
            return {name: Line(part.slope.detach(), part.intercept.detach()) for name, part in gated.items()}
        lines = built("graft.lines", dict(self.settings["lines"]), LINES)
        return lines(self.dense.network, self.basis(self.settings["images"], self.settings["batch"]))

    def masks(self, ratio: float, name: str) -> Masks:
        """Which neurons become lines: read if they were chosen already."""

        def choose() -> tuple[Masks, dict[str, Any]]:
            self.say(f"{name}: choosing neurons", 0, 0)
            ways = {"scores": self.by_scores, "gates": self.by_gates, "file": self.from_file}
            masks, told = ways[self.settings["choose"]](ratio)
            count = sum(int(mask.sum()) for mask in masks.values())
            return masks, {"ratio": count / sum(mask.numel() for mask in masks.values()), **told}

        return self.decided(name, "grafted", "graft", choose)

    def by_scores(self, ratio: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Rarely significant and often unstable ones, in stages."""
        significance, instability = self.scores
        chosen: Selection = select(
            significance, instability, ratio, self.settings["gammas"], self.settings["rank"], self.settings["scope"]
        )
        return dict(chosen.masks), {"stages": [asdict(stage) for stage in chosen.stages]}

    @cached_property
    def scores(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Significance and instability of every neuron; the same for all ratios."""
        basis = self.basis(self.settings["images"], self.settings["batch"])
        significance = built("graft.significance", dict(self.settings["significance"]), SIGNIFICANCE)
        instability = built("graft.instability", dict(self.settings["instability"]), INSTABILITY)
        return significance(self.dense.network, basis), instability(self.dense.network, basis)

    def by_gates(self, ratio: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Those whose gates are closed furthest."""
        gates = {name: -gate.double() for name, gate in gates_of(self.gated).items()}
        return kept(gates, ratio), {}

    @cached_property
    def gated(self) -> nn.Module:
        """The network with learned gates, trained in a folder of its own."""
        settings, recipe = self.settings["gates"], self.recipe
        recipe["run"] |= {"epochs": settings["epochs"]}
        recipe["terms"]["gates"] = {"weight": settings["weight"]}

        def groups(network: nn.Module, run: Values) -> list[Group]:
            return grafting_groups(network, settings["rate"], run["rate"], run["weight_decay"])

        def start() -> Start:
            if any(isinstance(part, ACTIVATIONS[1]) for part in self.dense.network.modules()):
                raise UsageError(f"{self.dense.folder} is grafted already; gates choose among all neurons of a network")
            gated = gate(self.dense.network, self.sites)
            return Start(mask_weights(gated, self.dense.masks), groups, self.dense.made)

        return self.trained("gates", start, recipe)

    def from_file(self, ratio: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The masks of a file, ours or the released form."""
        path = Path(self.settings["masks"])
        if path.suffix != ".safetensors":
            return read_released(path, self.sites), {"file": str(path)}
        found = MaskFile.read(path, "grafted")
        shapes = {name: tuple(mask.shape) for name, mask in found.masks.items()}
        if not set(shapes.items()) <= set(self.sites.items()):
            raise DataError(f"{path} holds masks of {shapes}, which are not neurons of the network: {self.sites}")
        return dict(found.masks), {"file": str(path), "provenance": found.provenance}
