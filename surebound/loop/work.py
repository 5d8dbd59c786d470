"""What pruning and grafting have in common: networks are measured one by one, and the best one is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from surebound.data.augment import centred
from surebound.data.dataset import Dataset, Part
from surebound.fit import Start, data_of, fit, held_out
from surebound.loop.curve import Curve, Row, best, measured
from surebound.loop.dense import Dense, require_other, require_same_network
from surebound.loop.settings import recipe_in, settings_of
from surebound.reports.figures import against_sparsity, require_matplotlib
from surebound.runs import RunFolder, load_network
from surebound.same_settings import same_settings
from surebound.sparsify.basis import Basis
from surebound.sparsify.mask_file import KINDS, MaskFile, mask_name
from surebound.sparsify.masks import masks_of
from surebound.sparsify.sites import Masks
from surebound.training.recipe import Values, objective_of

Say = Callable[[str, int, int], None]
"""Told words and the steps done of all."""


W = TypeVar("W", bound="Work")


def quiet(words: str, done: int, total: int) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Sparse:
    """rows: of the curve. chosen: the name of the best one, whose network lies in the folder."""

    rows: tuple[Row, ...]
    chosen: str


@dataclass(frozen=True, eq=False)
class Work:
    """One call of `prune` or `graft`: the run it starts from, the settings, the folder."""

    dense: Dense
    values: Values
    folder: RunFolder
    data_dir: Path | None
    say: Say

    @classmethod
    def begun(
        cls: type[W], dense: Dense, out: Path, tables: Sequence[str], parts: Sequence[Mapping[str, Any]],
        data_dir: Path | None, say: Say,
    ) -> W:  # fmt: skip
        """The work in the folder `out`, which may hold a beginning of it by the same settings."""
        require_matplotlib()
        require_other(out, dense.folder)
        values = settings_of(tables, dense.recipe, parts)
        require_same_network(values, dense)
        begun = (out / "curve.csv").exists() or any(out.glob("*/*.safetensors"))
        folder = same_settings(out, {"start": dense.digest, **cls.also_of(values), **values}, begun)
        return cls(dense, values, folder, data_dir, say)

    @classmethod
    def also_of(cls, values: Values) -> dict[str, Any]:
        """What else the work depends on."""
        return {}

    @cached_property
    def data(self) -> Dataset:
        """The recipe's data."""
        return data_of(self.values, self.data_dir)

    @cached_property
    def held(self) -> Part:
        """The validation images that networks are measured on."""
        return held_out(self.values, self.data, self.values["curve"]["images"])

    @property
    def curve(self) -> Curve:
        """The rows so far."""
        return Curve(self.folder.path / "curve.csv")

    def basis(self, images: int, batch: int, keep: float = 1.0, initial: nn.Module | None = None) -> Basis:
        """What criteria look at."""
        part = self.data.train.first(images)
        data = Part(centred(part.images, self.values["augment"]["size"]), part.labels, part.indices)
        return Basis(data, self.values["eps"], objective_of(self.values), batch, keep, initial, self.values["seed"])

    def row(self, name: str, network: nn.Module) -> None:
        """Measure a network, unless its row is there."""

        def show(words: str) -> None:
            self.say(f"{name}: {words}", 0, 0)

        self.curve.row(name, lambda: measured(name, network, self.held, self.values, show))

    def decided(self, name: str, kind: str, table: str, choose: Callable[[], tuple[Masks, Mapping[str, Any]]]) -> Masks:
        """Masks of the folder `name`: those there, or chosen by the settings' table and written with their origin."""
        path = self.folder.path / name / mask_name(kind)
        if not path.exists():
            masks, told = choose()
            path.parent.mkdir(parents=True, exist_ok=True)
            came = {"start": self.dense.digest, "seed": self.values["seed"], table: self.values[table], **told}
            MaskFile(masks, kind, came).write(path)
        return MaskFile.read(path, kind).masks

    def trained(self, name: str, start: Callable[[], Start], recipe: Values | None = None) -> nn.Module:
        """The network of a folder, trained from `start` by the recipe in the settings unless it is there. What was
        pruned of it is written beside it.
        """
        place = self.folder.path / name
        if not (place / "summary.json").exists():
            begin = start()
            masks, path = masks_of(begin.network), place / mask_name("kept")
            if masks and not path.exists():
                place.mkdir(parents=True, exist_ok=True)
                MaskFile(masks, "kept", {"start": self.dense.digest}).write(path)

            def say(words: str, done: int, total: int) -> None:
                self.say(f"{name}: {words}", done, total)

            fit(recipe or recipe_in(self.values), place, self.data_dir, say, begin)
        return load_network(place)


def finished(work: Work) -> Sparse:
    """Make the folder a run folder of the best network, draw the curve, write the summary."""
    rows, folder = work.curve.rows(), work.folder
    chosen = best(rows)
    source = work.dense.folder if chosen.name == "dense" else folder.path / chosen.name
    Dense.read(source)  # raises where it has been damaged
    for name in ("model.safetensors", "model.json", "model.onnx", "recipe.json", *map(mask_name, KINDS)):
        if (source / name).exists():
            shutil.copyfile(source / name, folder.path / name)
    for name, picture in against_sparsity([asdict(row) for row in rows]).items():
        (folder.path / "plots" / f"{name}.png").write_bytes(picture)
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    told = {"start": work.dense.digest, "chosen": chosen.name, "rows": [asdict(row) for row in rows]}
    folder.write_summary(told)
    return Sparse(tuple(rows), chosen.name)
