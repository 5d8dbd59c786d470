"""The demonstration: train a network on handwritten digits, see that it is hard to prove, graft it, prove it.

Everything shown is measured in the run; nothing is fixed beforehand but the settings in `DemoConfig`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from surebound.attacks.image_pgd import Pgd
from surebound.attacks.pgd import Descent
from surebound.bounds.crown import Crown
from surebound.data.dataset import Dataset, Part
from surebound.data.digits import load_digits
from surebound.graph.ir import Graph
from surebound.graph.onnx_import import load_onnx
from surebound.graph.torch_export import trace
from surebound.machine import one_thread
from surebound.measures.accuracy import clean_accuracy, pgd_accuracy
from surebound.measures.verified import EvaluateConfig, Judged, evaluate, shares
from surebound.properties import Property, robust
from surebound.reports.demo_page import (
    ImageReport,
    NetworkReport,
    Setting,
    demo_page,
    demo_plots,
    in_words,
    measures_table,
)
from surebound.reports.table import Table
from surebound.runs import Recipe, RunFolder
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Verified
from surebound.search.verify import verify
from surebound.sparsify.basis import Basis
from surebound.sparsify.criteria.instability import Unstable, activations, unstable
from surebound.sparsify.criteria.significance import Gap
from surebound.sparsify.graft import graft, grafting_groups, prune_neurons
from surebound.sparsify.select import Selection, select
from surebound.training.loop import Epoch, Group, Run, train
from surebound.training.objectives.adversarial import Fgsm
from surebound.vnnlib import load_vnnlib
from surebound.vnnlib.write import write_vnnlib

Say = Callable[[str], None]

FILES: Mapping[str, str] = {"dense": "model", "grafted": "grafted", "pruned": "pruned"}
"""The stem of each network's files in the run folder."""


@dataclass(frozen=True)
class DemoConfig:
    """The demo's settings; eps is the l-infinity radius in units of pixels in [0, 1].

    images: how many test images are attacked and verified. timeout: charged seconds per image.
    ratio: the part of the neurons that is grafted, and pruned. criterion_images: training images that
    significance and instability are averaged over. weight_rate is five times the one published for grafting,
    because this training has some fifty times fewer steps; at the published one the pruned network stays unfinished.
    """

    eps: float = 0.1
    channels: tuple[int, int] = (16, 32)
    hidden: int = 64
    epochs: int = 30
    batch: int = 64
    rate: float = 0.1
    weight_decay: float = 5e-4
    align: float = 0.2
    ratio: float = 0.5
    criterion_images: int = 512
    graft_epochs: int = 30
    line_rate: float = 0.01
    weight_rate: float = 0.005
    images: int = 64
    timeout: float = 1.0
    attack_steps: int = 40
    attack_restarts: int = 5


@dataclass(frozen=True)
class DemoSummary:
    """What the demo found and where it wrote it. seconds: wall time of the whole run."""

    out: Path
    seed: int
    config: DemoConfig
    networks: tuple[NetworkReport, ...]
    image: ImageReport
    seconds: float

    @property
    def table(self) -> Table:
        """One column each for the dense, the grafted and the pruned network."""
        return measures_table(self.networks, self.config.timeout)

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.out / "report.html"

    @property
    def model(self) -> Path:
        """The grafted network as ONNX."""
        return self.out / "grafted.onnx"

    @property
    def spec(self) -> Path:
        """The property of one image as VNN-LIB."""
        return self.out / "property.vnnlib"


@dataclass(frozen=True)
class Stage:
    """What every step of the demo needs."""

    config: DemoConfig
    seed: int
    data: Dataset
    folder: RunFolder
    say: Say

    @property
    def images(self) -> Part:
        """The test images that all networks are measured on."""
        return self.data.test.first(self.config.images)

    @property
    def recipe(self) -> Recipe:
        """How the network is built."""
        arguments = {"seed": self.seed, "channels": list(self.config.channels), "hidden": self.config.hidden}
        return Recipe("surebound.nets.small:digits_cnn", arguments)

    @property
    def evaluation(self) -> EvaluateConfig:
        """How images are decided: an attack, then the search for a proof."""
        search = VerifyConfig(timeout=self.config.timeout, seed=self.seed, attack="none")
        descent = Descent(self.config.attack_steps, restarts=self.config.attack_restarts)
        return EvaluateConfig(("clean", "pgd", "complete"), descent=descent, search=search)

    @property
    def attack(self) -> Pgd:
        """The attack whose accuracy is reported."""
        return Pgd(self.config.attack_steps, self.config.attack_restarts)


def run_demo(out: Path, seed: int = 0, progress: Say | None = None, config: DemoConfig | None = None) -> DemoSummary:
    """Train, choose neurons, graft and prune, measure all three networks; write the run folder `out`.

    progress: told in words what is going on. Raises DataError without scikit-learn, UsageError without
    matplotlib or when `out` cannot be written.
    """
    began = time.monotonic()
    chosen = config or DemoConfig()
    folder = RunFolder.create(out)
    stage = Stage(chosen, seed, load_digits(seed), folder, progress or (lambda message: None))
    folder.write_config({"command": "demo", "seed": seed, "data": stage.data.name, "settings": asdict(chosen)})

    dense = train_dense(stage)
    selection = choose_neurons(stage, dense)
    networks = {
        "dense": dense,
        "grafted": fine_tune(stage, "grafted", graft(dense, selection.masks)),
        "pruned": fine_tune(stage, "pruned", prune_neurons(dense, selection.masks)),
    }
    graphs = {name: save(stage, name, network) for name, network in networks.items()}
    judged = {name: decide(stage, name, graph) for name, graph in graphs.items()}
    reports = tuple(measure(stage, name, networks[name], graphs[name], judged[name]) for name in networks)
    image = look_closely(stage, judged)

    seconds = time.monotonic() - began
    summary = DemoSummary(out, seed, chosen, reports, image, seconds)
    taken = {name: (int(mask.sum()), mask.numel()) for name, mask in selection.masks.items()}
    plots = demo_plots(judged, image, chosen.timeout)
    for name, png in plots.items():
        (out / "plots" / f"{name}.png").write_bytes(png)
    setting = Setting(chosen.eps, chosen.timeout, selection.ratio, taken, seconds)
    summary.report.write_text(demo_page(reports, image, plots, setting), encoding="utf-8")
    write_summary(stage, selection, summary)
    return summary


def train_dense(stage: Stage) -> nn.Module:
    """The small CNN, adversarially trained."""
    config = stage.config
    network = stage.recipe.build()
    run = Run(config.epochs, config.batch, seed=stage.seed, eps=config.eps)
    group = Group(list(network.parameters()), config.rate, config.weight_decay)
    fit(stage, "dense", network, [group], run)
    return network


def fine_tune(stage: Stage, name: str, network: nn.Module) -> nn.Module:
    """Train what grafting trains, in place."""
    config = stage.config
    groups = grafting_groups(network, config.line_rate, config.weight_rate, config.weight_decay)
    fit(stage, name, network, groups, Run(config.graft_epochs, config.batch, seed=stage.seed, eps=config.eps))
    return network


def fit(stage: Stage, name: str, network: nn.Module, groups: Sequence[Group], run: Run) -> None:
    """Fast adversarial training; epochs are chosen by accuracy under a short attack on validation images."""
    config = stage.config

    def score(candidate: nn.Module) -> float:
        return pgd_accuracy(candidate, stage.data.validation, config.eps, Pgd(steps=10, restarts=1))

    def report(epoch: Epoch) -> None:
        stage.folder.add_metrics(kind="epoch", network=name, **asdict(epoch))
        stage.say(
            f"training the {name} network: epoch {epoch.number + 1} of {run.epochs}, "
            f"{epoch.score:.0%} of the validation images withstand an attack"
        )

    objective = Fgsm(align=config.align)
    with one_thread():
        train(network, stage.data.train, objective, groups, run, score, report)


def choose_neurons(stage: Stage, network: nn.Module) -> Selection:
    """Often unstable and rarely significant neurons, by training images."""
    stage.say("choosing the neurons to graft")
    data = stage.data.train.first(stage.config.criterion_images)
    basis = Basis(data, stage.config.eps)
    return select(Gap()(network, basis), Unstable()(network, basis), stage.config.ratio)


def save(stage: Stage, name: str, network: nn.Module) -> Graph:
    """Write the network as weights and as ONNX; the graph that is going to be verified."""
    network.eval()
    graph = trace(network, stage.images.images[:1])
    stage.folder.save_network(network, stage.recipe, FILES[name])
    graph.to_onnx(str(stage.folder.path / f"{FILES[name]}.onnx"))
    return graph


def decide(stage: Stage, name: str, graph: Graph) -> list[Judged]:
    """Proof, counterexample or neither for each test image."""
    judged = evaluate(
        graph,
        stage.images,
        stage.config.eps,
        config=stage.evaluation,
        show=lambda words: stage.say(f"verifying the {name} network: {words}"),
    )
    for item in judged:
        stage.folder.add_metrics(
            kind="image",
            network=name,
            index=item.index,
            label=item.label,
            prediction=item.prediction,
            status=item.status,
            reason=item.reason,
            nodes=item.nodes,
            charged_s=item.seconds,
        )
    return judged


def measure(stage: Stage, name: str, network: nn.Module, graph: Graph, judged: Sequence[Judged]) -> NetworkReport:
    """The numbers of one network on the test images."""
    config, part = stage.config, stage.images
    searched = [item for item in judged if item.outcome is not None]
    return NetworkReport(
        name=name,
        n=len(part),
        clean=clean_accuracy(network, part),
        attacked=pgd_accuracy(network, part, config.eps, stage.attack, stage.seed),
        **shares(judged),
        neurons=sum(node.numel for node in activations(graph)),
        unstable=sum(float(f.sum()) for f in unstable(graph, part.images, config.eps, Crown())) / len(part),
        seconds=fmean(item.seconds for item in searched) if searched else 0.0,
        nodes=fmean(item.nodes for item in searched) if searched else 0.0,
    )


def look_closely(stage: Stage, judged: Mapping[str, Sequence[Judged]]) -> ImageReport:
    """One image: its property as a file, decided again from the files, and what is known in words."""
    config = stage.config
    place = telling(judged["dense"], judged["grafted"])
    x, label = stage.images.images[place], int(stage.images.labels[place])
    index = int(stage.images.indices[place])
    asked = robust(x, label, config.eps, stage.data.classes)
    spec = stage.folder.path / "property.vnnlib"
    write_vnnlib(
        spec, asked, f"digit {index} of scikit-learn's digits stays a {label}: l-infinity radius {config.eps:g}"
    )
    stage.say("deciding one image again, from the files")
    model = load_onnx(stage.folder.path / f"{FILES['grafted']}.onnx")
    again = VerifyConfig(timeout=30 * config.timeout, seed=stage.seed)
    (outcome,) = verify(model, [load_vnnlib(spec, model.input.shape)], again)
    before, after = (
        in_words(judged[name][place].outcome, label, config.eps, config.timeout) for name in ("dense", "grafted")
    )
    return ImageReport(index, label, neighbours(asked, x, stage.seed), before, after, outcome.verdict.name)


def telling(before: Sequence[Judged], after: Sequence[Judged]) -> int:
    """The place of the image that shows most: undecided before and proven after, else proven after, else the first.

    Among several the one that is proven with the largest margin.
    """

    def interest(place: int) -> tuple[bool, float]:
        outcome = after[place].outcome
        if outcome is None or not isinstance(outcome.verdict, Verified):
            return False, 0.0
        return before[place].status == "unknown", outcome.verdict.margin

    return max(range(len(after)), key=interest)


def neighbours(asked: Property, x: Tensor, seed: int) -> tuple[Tensor, ...]:
    """The image [H, W], the lightest and darkest of its region (ink is 1), and three random corners of it."""
    (case,) = asked.cases
    low, high = case.region.lower[0, 0], case.region.upper[0, 0]
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(low.shape, generator=generator) < 0.5 for _ in range(3))
    return (x[0], high, low, *(torch.where(corner, low, high) for corner in corners))


def write_summary(stage: Stage, selection: Selection, summary: DemoSummary) -> None:
    """summary.json."""
    image = summary.image
    stage.folder.write_summary(
        {
            "command": "demo",
            "seed": summary.seed,
            "eps": summary.config.eps,
            "n": len(stage.images),
            "grafted": selection.ratio,
            "stages": [asdict(entry) for entry in selection.stages],
            "networks": [asdict(report) for report in summary.networks],
            "image": {
                "index": image.index,
                "label": image.label,
                "before": image.before,
                "after": image.after,
                "verdict": image.verdict,
            },
            "wall_s": summary.seconds,
        }
    )
