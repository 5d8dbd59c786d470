"""Make a network provable: graft, prune and train it step by step, and let the verifier say what each step was worth.

From the best network so far every step makes a candidate: trained further, with more lines where the verifier had to
split, or with fewer channels. A candidate that is better becomes the best one; kinds that failed are tried again only
after another one has succeeded, and when all have failed, that was the best trade. Candidates are run folders
OUT/step-01-graft and so on; OUT/curve.csv has their rows. In the end the best network is compressed, written as ONNX
and compared with the one that came, on test images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surebound.data.augment import centred
from surebound.data.dataset import Part, in_unit
from surebound.errors import ModelError, UsageError
from surebound.fit import Start, data_of, example
from surebound.graph.torch_export import trace
from surebound.loop.compress import FACTORY, save_small
from surebound.loop.curve import Curve, Row, measured
from surebound.loop.dense import Dense, require_other
from surebound.loop.settings import TUNING, recipe_in
from surebound.loop.work import Say, Work, quiet
from surebound.models import load_model
from surebound.nets.from_graph import described, module_of
from surebound.nets.grafted import GraftedReLU
from surebound.reports.figures import against_steps
from surebound.reports.provable_page import provable_page
from surebound.rowfile import claimed
from surebound.runs import Recipe
from surebound.same_settings import RECIPE
from surebound.sparsify.basis import Basis
from surebound.sparsify.compress.frozen import Frozen
from surebound.sparsify.compress.run import compress
from surebound.sparsify.criteria.channels import Filters
from surebound.sparsify.criteria.significance import Gap
from surebound.sparsify.criteria.splits import Splits
from surebound.sparsify.graft import graft, grafting_groups
from surebound.sparsify.layers import channels
from surebound.sparsify.lines import LeastSquares
from surebound.sparsify.masks import mask_weights
from surebound.sparsify.select import kept, select
from surebound.sparsify.sites import Masks
from surebound.training.loop import Group
from surebound.training.recipe import Values, recipe_of

KINDS = ("tune", "graft", "prune")
"""What a step does: train on, graft, prune channels; each trains afterwards."""

FASTER = 0.95
"""At most this part of the time counts as faster: time is measured."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network on the way. masks: of pruned weights, by parameter."""

    row: Row
    network: nn.Module
    masks: Masks


class NothingLeft(Exception):
    """There is nothing left to take."""


@dataclass(frozen=True)
class Provable:
    """before, after: on validation images, by which steps were judged; test_before, test_after: on test images, the
    latter of the compressed network. chosen: its folder, "as it came" where no step was better.
    """

    before: Row
    after: Row
    test_before: Row
    test_after: Row
    chosen: str
    rows: tuple[Row, ...]


def dense_of(model: str, weights: Path | None, given: Sequence[Mapping[str, Any]], data_dir: Path | None) -> Dense:
    """A run folder with its recipe; another model with the default one, changed by what is given.

    Raises UsageError where nothing says the data and the radius of another model.
    """
    if Path(model).is_dir() and weights is None:
        return Dense.read(Path(model))
    lacking = [name for name in ("data", "eps") if not any(name in part for part in given)]
    if lacking:
        raise UsageError(f"{model} does not say what it is for; give --{' and --'.join(lacking)}")
    if any("network" in part for part in given):
        raise UsageError(f"the network is that of {model}; leave out the settings of the table 'network'")
    recipe = recipe_of({"objective": {"name": "mtl-ibp"}, "run": {"optimiser": "adam", "clip": 8.0}}, *given)
    graph, digest = load_model(model, weights, example(recipe, data_of(recipe, data_dir).train))
    net = Frozen.of(graph).rounded().graph
    return Dense(Path(model), recipe, module_of(net), Recipe(FACTORY, described(net)), digest)


def make_provable(
    model: str | Path,
    out: Path,
    parts: Sequence[Mapping[str, Any]],
    data_dir: Path | None = None,
    say: Say = quiet,
    weights: Path | None = None,
) -> Provable:
    """Find the best trade between accuracy and proofs; parts: settings with the tables `provable` and `curve`.

    model: a run folder, an ONNX file, or package.module:factory with the file of its `weights`. What is there with the
    same settings goes on. Raises UsageError, DataError, ModelError.
    """
    with claimed(out):
        plain = [{name: value for name, value in part.items() if name not in ("provable", "curve")} for part in parts]
        dense = dense_of(str(model), weights, plain, data_dir)
        require_other(out, *([weights] if weights else []))
        return Steps.begun(dense, out, ("provable", "curve"), (TUNING, *parts), data_dir, say).all()


@dataclass(frozen=True, eq=False)
class Steps(Work):
    """One call of `make_provable`."""

    @property
    def settings(self) -> Values:
        """The table `provable`."""
        return self.values["provable"]

    def all(self) -> Provable:
        """Steps until nothing gets better, then the comparison on test images."""
        self.require_fit()
        came = self.measure("as it came", self.dense.network, self.dense.masks)
        best, failed = came, set[str]()
        for number in range(1, self.settings["steps"] + 1):
            kind = next((kind for kind in KINDS if kind not in failed), None)
            if kind is None:
                break
            found = self.step(f"step-{number:02d}-{kind}", kind, best)
            if found is None or not self.better(found.row, best.row, came.row):
                failed.add(kind)
                continue
            best, failed = found, set()
        return self.finished(came, best)

    def require_fit(self) -> None:
        """Raise ModelError unless the network takes the data's images."""
        image = example(self.values, self.data.train)
        try:
            with torch.no_grad():
                shape = tuple(self.dense.network(image).shape)
        except RuntimeError as error:
            raise ModelError(f"{self.dense.folder} does not take images of {self.values['data']}: {error}") from None
        if shape != (1, self.data.classes):
            raise ModelError(f"{self.dense.folder} answers {shape} to an image of {self.data.classes} classes")

    def measure(self, name: str, network: nn.Module, masks: Masks) -> Candidate:
        """A network with its row."""
        self.row(name, network)
        (row,) = [row for row in self.curve.rows() if row.name == name]
        return Candidate(row, network, masks)

    def better(self, row: Row, best: Row, came: Row) -> bool:
        """Is a network a better trade than the best one? Clean accuracy may fall by `loss` of what came."""
        if row.clean < came.clean - self.settings["loss"]:
            return False
        more = self.settings["target"] == "verified" and row.verified > best.verified
        return more or (row.verified >= best.verified and row.seconds < FASTER * best.seconds)

    def step(self, name: str, kind: str, best: Candidate) -> Candidate | None:
        """The candidate of a step; None where there is nothing left to take."""
        masks: Masks = best.masks
        lines: Masks = {}
        try:
            if kind == "prune":
                masks = self.decided(name, "kept", "provable", lambda: (self.fewer(name, best), {}))
            if kind == "graft":
                lines = self.decided(name, "grafted", "provable", lambda: (self.more_lines(name, best), {}))
        except NothingLeft:
            return None

        def start() -> Start:
            network = best.network
            if lines:
                found = LeastSquares()(network, self.scoring)
                slopes, cuts = ({site: found[site][part] for site in lines} for part in (0, 1))
                network = graft(network, lines, slopes, cuts)
            return Start(mask_weights(network, masks), self.groups, self.dense.made)

        recipe = recipe_in(self.values)
        recipe["run"] |= {"epochs": self.settings["epochs"], "rate": self.settings["rate"], "keep": []}
        network = self.trained(name, start, recipe)
        return self.measure(name, network, masks)

    def groups(self, network: nn.Module, run: Values) -> list[Group]:
        """Lines learn ten times as fast as weights, without decay."""
        return grafting_groups(network, 10 * run["rate"], run["rate"], run["weight_decay"])

    @property
    def scoring(self) -> Basis:
        """The training images that choices are made by."""
        return self.basis(self.settings["score_images"], 100)

    def more_lines(self, name: str, best: Candidate) -> Masks:
        """Neurons that the verifier had to split, or leaves unstable, and that matter little."""
        before = {site: part.mask for site, part in best.network.named_modules() if isinstance(part, GraftedReLU)}
        self.say(f"{name}: asking the verifier what stands in its way", 0, 0)
        instability = Splits(self.settings["score_timeout"])(best.network, self.scoring)
        significance = Gap()(best.network, self.scoring)
        taken = {site: before.get(site, torch.zeros_like(v, dtype=torch.bool)) for site, v in significance.items()}
        ratio = sum(int(mask.sum()) for mask in taken.values()) / sum(mask.numel() for mask in taken.values())
        if ratio >= 1 or self.settings["graft"] == 0:
            raise NothingLeft
        return select(significance, instability, min(1.0, ratio + self.settings["graft"]), taken=taken).masks

    def fewer(self, name: str, best: Candidate) -> Masks:
        """The channels that are left after those with the smallest weights have gone."""
        self.say(f"{name}: choosing channels", 0, 0)
        if self.settings["prune"] == 0:
            raise NothingLeft
        masked = mask_weights(best.network, best.masks)
        try:
            of = channels(best.network, self.scoring.example, "all")
        except UsageError:  # a network without layers to prune
            raise NothingLeft from None
        there, found = {name: layer.alive(best.masks) for name, layer in of.items()}, dict(best.masks)
        scores = Filters()(masked, self.scoring, of)
        for layer, mask in kept(scores, 1 - self.settings["prune"], there=there, least=1, of=there).items():
            found |= of[layer].masks(best.network, mask, best.masks)
        return found

    def finished(self, came: Candidate, best: Candidate) -> Provable:
        """Compress, write, compare on test images, report."""
        out, test = self.folder.path, Curve(self.folder.path / "test.csv")
        image = example(self.values, self.data.train)
        found = compress(trace(best.network.eval(), image))
        small = module_of(found.graph)
        save_small(self.folder, found.graph, bool(best.masks))
        (out / RECIPE).write_text(json.dumps(recipe_in(self.values)))
        part = self.data.test.first(self.settings["test_images"])
        part = Part(centred(in_unit(part.images), self.values["augment"]["size"]), part.labels, part.indices)

        def tested(name: str, network: nn.Module) -> Row:
            def show(words: str) -> None:
                self.say(f"{name} on test images: {words}", 0, 0)

            return test.row(name, lambda: measured(name, network, part, self.values, show))

        before, after = tested("as it came", came.network), tested("made provable", small)
        rows = tuple(self.curve.rows())
        result = Provable(came.row, best.row, before, after, best.row.name, rows)
        told = {name: asdict(getattr(result, name)) for name in ("before", "after", "test_before", "test_after")}
        steps = [asdict(step) for step in found.steps]
        (out / "metrics.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        pictures = against_steps([asdict(row) for row in rows], best.row.name)
        for name, picture in pictures.items():
            (out / "plots" / f"{name}.png").write_bytes(picture)
        (out / "report.html").write_text(
            provable_page(told, [asdict(row) for row in rows], steps, pictures, self.values, best.row.name), "utf-8"
        )
        self.folder.write_summary({"command": "make-provable", "chosen": best.row.name, **told, "compression": steps})
        return result
