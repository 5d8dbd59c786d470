"""What the demo tells its reader: one table, three figures, one proof in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from torch import Tensor

from surebound.measures.verified import Judged, shares
from surebound.reports.figures import image_strip, proven_over_time, verdict_bars
from surebound.reports.html import Code, Heading, Part, Picture, Quote, Text, page
from surebound.reports.table import Table, duration, percent
from surebound.search.verdict import Falsified, Outcome, Verified

TITLES: Mapping[str, str] = MappingProxyType(
    {"dense": "before", "grafted": "after grafting", "pruned": "after pruning"}
)
"""What a reader calls the networks."""

VERDICTS: Mapping[str, str] = MappingProxyType(
    {"unsat": "unsat (there is no counterexample)", "sat": "sat (there is one)"}
)
"""The commonest verdicts with their meaning."""


@dataclass(frozen=True)
class NetworkReport:
    """One network's numbers; accuracies and statuses are fractions of the same `n` test images.

    attacked: right also after the attack. unstable: neurons per image that CROWN leaves unstable, of `neurons`.
    seconds, nodes: charged time and sub-problems per searched image.
    """

    name: str
    n: int
    clean: float
    attacked: float
    verified: float
    unknown: float
    falsified: float
    wrong: float
    neurons: int
    unstable: float
    seconds: float
    nodes: float


@dataclass(frozen=True, eq=False)
class ImageReport:
    """The image that is looked at closely. index: its position in the source.

    pixels: [H, W] of the image and of some images that the statement covers. before, after: what was found
    for the first and for the grafted network, in words. verdict: of the written files, decided again.
    """

    index: int
    label: int
    pixels: tuple[Tensor, ...]
    before: str
    after: str
    verdict: str


@dataclass(frozen=True)
class Setting:
    """What the page has to say about how it was made."""

    eps: float
    timeout: float
    ratio: float
    taken: Mapping[str, tuple[int, int]]
    seconds: float


def in_words(outcome: Outcome | None, label: int, eps: float, timeout: float) -> str:
    """What an outcome of l-infinity robustness means; None stands for an image that the network gets wrong."""
    if outcome is None:
        return f"The network takes this {label} for another digit to begin with."
    verdict = outcome.verdict
    if isinstance(verdict, Verified):
        work = "one bound" if outcome.nodes <= 1 else f"{outcome.nodes:,} sub-problems"
        return (
            f"For every one of the images that differ from this one by at most {eps:g} in each pixel, the network "
            f"answers {label}. Proven with {work}; the score of {label} stays at least {verdict.margin:.2g} above "
            "every other."
        )
    if isinstance(verdict, Falsified):
        answer = int(verdict.witness.y.argmax())
        return (
            f"Not robust: an image was found that differs from this one by at most {eps:g} in each pixel and gets "
            f"the answer {answer} instead of {label}."
        )
    return (
        f"Undecided: after {outcome.nodes:,} sub-problems and {timeout:g} s there was neither a proof nor a "
        "counterexample."
    )


def measures_table(networks: Sequence[NetworkReport], timeout: float) -> Table:
    """Measures as rows, networks as columns; the grafted one is stressed."""

    def share(name: str) -> tuple[str, ...]:
        return tuple(percent(getattr(network, name), network.n) for network in networks)

    rows = (
        ("Accuracy", *share("clean")),
        ("Accuracy under attack (PGD)", *share("attacked")),
        ("Verified accuracy", *share("verified")),
        (f"Undecided after {timeout:g} s", *share("unknown")),
        ("Unstable neurons per image", *(f"{network.unstable:.0f} of {network.neurons}" for network in networks)),
        ("Sub-problems per image", *(f"{network.nodes:,.0f}" for network in networks)),
        ("Time per image", *(duration(network.seconds) for network in networks)),
    )
    stressed = frozenset(place for place, network in enumerate(networks, start=1) if network.name == "grafted")
    return Table(("", *(TITLES[network.name] for network in networks)), rows, emphasis=stressed)


def moved(before: float, after: float, n: int) -> str:
    """How a share changed, in words."""
    if before == after:
        return f"stayed at {percent(after, n)}"
    return f"{'rose' if after > before else 'fell'} from {percent(before, n)} to {percent(after, n)}"


def conclusion(networks: Sequence[NetworkReport]) -> str:
    """What grafting and pruning did, whatever it was."""
    before, grafted, pruned = networks
    times = before.seconds / grafted.seconds if grafted.seconds else float("inf")
    speed = f"{times:.1f} times less" if times >= 1 else f"{1 / times:.1f} times more"
    return (
        f"With grafting, verified accuracy {moved(before.verified, grafted.verified, before.n)}, and deciding an image "
        f"took {speed} time; accuracy under attack {moved(before.attacked, grafted.attacked, before.n)}. Removing the "
        f"same neurons instead leaves {percent(pruned.verified, pruned.n)} verified and "
        f"{percent(pruned.attacked, pruned.n)} under attack."
    )


def demo_plots(judged: Mapping[str, Sequence[Judged]], image: ImageReport, timeout: float) -> dict[str, bytes]:
    """The page's figures as PNG, by name."""
    times = {
        TITLES[name]: [item.seconds for item in found if item.status == "verified"] for name, found in judged.items()
    }
    count = max(len(found) for found in judged.values())
    titles = ["the image", "all darker", "all lighter", *["at random"] * len(image.pixels)][: len(image.pixels)]
    return {
        "verdicts": verdict_bars({TITLES[name]: shares(found) for name, found in judged.items()}),
        "time": proven_over_time(times, count, timeout),
        "image": image_strip([np.asarray(pixels.numpy(), float) for pixels in image.pixels], titles),
    }


def demo_page(
    networks: Sequence[NetworkReport], image: ImageReport, plots: Mapping[str, bytes], setting: Setting
) -> str:
    """The HTML page."""
    n, neurons = networks[0].n, networks[0].neurons
    layers = ", ".join(f"{taken} of {total}" for taken, total in setting.taken.values())
    parts: list[Part] = [
        Text(conclusion(networks)),
        measures_table(networks, setting.timeout),
        Picture(
            plots["verdicts"],
            "Bars: the share of test images proven, undecided, falsified and wrong, per network",
            f"What became of the {n} test images. Undecided means: no proof and no counterexample within "
            f"{setting.timeout:g} s.",
        ),
        Picture(
            plots["time"],
            "Curves: the share of images proven within a given time, per network",
            "How many images are proven when each may take only so long.",
        ),
        Heading("One image, and what is known about it"),
        Picture(
            plots["image"],
            f"A handwritten {image.label} and images close to it",
            f"Test image {image.index}, a {image.label}, and some of the images that the statement speaks about: "
            f"each pixel may move by {setting.eps:g} on its own.",
        ),
        Quote(image.after),
        Text(f"That is the grafted network. The network before grafting: {lowered(image.before)}"),
        Text(
            "The grafted network and this property also lie beside this page as files that any VNN-COMP tool reads. "
            f"Read back and decided again, they gave: {VERDICTS.get(image.verdict, image.verdict)}."
        ),
        Code("surebound verify grafted.onnx property.vnnlib"),
        Heading("What was done"),
        Text(
            "A small convolutional network was trained against adversarial images that differ by up to "
            f"{setting.eps:g} in each pixel (pixels lie between 0 and 1). It has {neurons:,} ReLU neurons. A neuron is "
            "unstable for an image when a verifier cannot tell whether it is active for all allowed changes; each one "
            "may double the number of cases a proof has to look at."
        ),
        Text(
            f"Grafting replaced {100 * setting.ratio:.0f} % of the neurons, those that are often unstable and matter "
            f"little to the loss ({layers} by layer), by straight lines with trained slope and intercept. A line is "
            "never unstable. For comparison the same neurons were removed (pruned). Both networks were then trained "
            "for equally long, and of each the epoch that did best on validation images was kept."
        ),
        Text(
            f"All numbers in the table are measured on the same {n} test images, which played no part in training or "
            "in choosing neurons or epochs. Time and sub-problems are means over the images that the network got "
            "right; proofs are checked in 64-bit arithmetic, counterexamples by running the network. "
            f"The whole run took {duration(setting.seconds)}."
        ),
    ]
    lead = "A network that resists attacks is not yet a network that can be proven. Grafting brings the two closer."
    return page("Handwritten digits, made provable", lead, parts)


def lowered(sentence: str) -> str:
    """A sentence to stand after a colon."""
    return sentence[:1].lower() + sentence[1:]
