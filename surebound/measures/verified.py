"""Verified accuracy: for how many images is it proven that no allowed change alters the right answer?

Methods from cheap to dear, each on the images that those before it left open: the network's answers, an
attack, interval arithmetic, CROWN, alpha-CROWN, and the complete search, in which all images share one pool.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from surebound.attacks.pgd import Descent, pgd
from surebound.bounds.alpha import AlphaCrown
from surebound.bounds.crown import Crown, Ibp
from surebound.bounds.memory import Memory, pieces
from surebound.bounds.query import Method, Query
from surebound.data.dataset import Part
from surebound.errors import DataError, OutOfMemory, OutOfTime, UsageError
from surebound.graph.ir import Graph
from surebound.graph.ir import evaluate as values_of
from surebound.graph.module_original import ModuleOriginal
from surebound.graph.prepare import prepare
from surebound.graph.torch_frontend.compare import compare_again
from surebound.properties import Property, robust
from surebound.regions import Region
from surebound.search.attack import NEAR
from surebound.search.engine import confirmed
from surebound.search.roots import Roots, roots_of
from surebound.search.run import VerifyConfig
from surebound.search.verdict import Falsified, Outcome, Unknown, Verdict, Verified
from surebound.search.verify import Progress, verify
from surebound.witness import replay

Status = Literal["wrong", "falsified", "verified", "unknown", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

AT_ONCE = 64
"""Images bounded or attacked in one pass."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How to evaluate.

    methods: which of `METHODS` to use; they run in that order. pool: images per search, None for all.
    descent: the attack on every image that is classified rightly. steps: of alpha-CROWN. search: of the
    complete method; its timeout is what an image may be charged altogether.
    """

    methods: tuple[str, ...] = ("clean", "pgd", "ibp", "crown", "alpha-crown", "complete")
    pool: int | None = None
    descent: Descent = field(default_factory=lambda: Descent(steps=40, restarts=2))
    steps: int = 20
    search: VerifyConfig = field(default_factory=VerifyConfig)

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise UsageError(f"there is no method '{unknown[0]}'; choose among {', '.join(METHODS)}")
        if self.pool is not None and self.pool < 1:
            raise UsageError(f"a pool needs at least one image, got {self.pool}")


@dataclass(frozen=True)
class Judged:
    """One image: its position in the source, label, the network's answer, and what was decided about it.

    outcome: verdict, sub-problems and the method that decided; None for images that the network gets wrong to
    begin with. margin: the least difference between the label's logit and another one's that the attack met.
    lower: by method, the proven lower bound of that difference over the region.
    """

    index: int
    label: int
    prediction: int
    status: Status
    outcome: Outcome | None = None
    margin: float | None = None
    lower: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Charged time, 0 for images that were not looked at further."""
        return 0.0 if self.outcome is None else self.outcome.charged

    @property
    def nodes(self) -> int:
        """Sub-problems bounded."""
        return 0 if self.outcome is None else self.outcome.nodes

    def proven_by(self, methods: Sequence[str]) -> bool:
        """Is it verified, and was one of these bounds enough?"""
        return self.status == "verified" and any(0 < self.lower.get(method, 0.0) < math.inf for method in methods)

    @property
    def reason(self) -> str:
        """Why it is undecided, or ""."""
        return self.outcome.verdict.reason if self.outcome and isinstance(self.outcome.verdict, Unknown) else ""


class Judgement(NamedTuple):
    """The part of `Judged` that the methods find out."""

    status: Status
    outcome: Outcome | None
    margin: float | None
    lower: Mapping[str, float]


@dataclass(frozen=True)
class Task:
    """Images whose answers are right, and their properties.

    prepared: the graph that is bounded; params: its parameters by dtype, without gradient history. roots: the
    properties' regions (one case per image) and rows (label minus every other class).
    """

    graph: Graph
    part: Part
    properties: Sequence[Property]
    config: EvaluateConfig
    prepared: Graph
    params: Mapping[torch.dtype, Mapping[str, Tensor]]
    roots: Roots

    def late(self, images: int) -> Callable[[], bool]:
        """Tells whether so many images have used up their time together, counted from now."""
        deadline = time.monotonic() + images * self.config.search.timeout
        return lambda: time.monotonic() > deadline

    @staticmethod
    def of(graph: Graph, part: Part, properties: Sequence[Property], config: EvaluateConfig) -> Task:
        """Make the images of a pool ready."""
        prepared = prepare(graph)
        params = {
            dtype: {name: value.detach() for name, value in prepared.values(dtype).items()}
            for dtype in {config.search.dtype, torch.float32, torch.float64}
        }
        return Task(graph, part, properties, config, prepared, params, roots_of(properties, prepared.input.shape))

    def region(self, at: Tensor) -> Region:
        """Regions of some images, float64."""
        return self.roots.region.take(at)

    def rows(self, at: Tensor) -> Tensor:
        """label minus every other class, float64 [n, K - 1, *output shape]."""
        return self.roots.spec.reshape(len(self.part), -1, *self.prepared.output.shape)[at]

    def query(self, at: Tensor, dtype: torch.dtype, late: Callable[[], bool]) -> Query:
        """The bounds of some images; it ends with OutOfTime where `late` says so."""

        def alive() -> None:
            if late():
                raise OutOfTime("the images have used up their time")

        regions = {self.prepared.input.name: self.region(at).to(dtype)}
        return Query(self.prepared, self.params[dtype], regions, self.rows(at).to(dtype), alive=alive)


Tell = Callable[[int, "Finding"], None]
Show = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    """What one method found out about one image; verdict None leaves it open.

    outcome: of the complete method, with a charge of its own.
    """

    verdict: Verdict | None = None
    margin: float | None = None
    lower: float | None = None
    outcome: Outcome | None = None


def attacked(task: Task, at: Tensor, tell: Tell, show: Show) -> None:
    """Gradient descent on the margin from the image and from random points; the best point is replayed."""
    graph, params = task.prepared, task.params[torch.float32]
    generator = torch.Generator().manual_seed(task.config.search.seed)
    late = task.late(len(at))

    def network(x: Tensor) -> Tensor:
        return values_of(graph, params, x)[graph.output.name].flatten(1)

    for piece in pieces(len(at), AT_ONCE):
        if late():
            return
        here = at[piece]
        region, rows = task.region(here).to(torch.float32), task.rows(here).float().flatten(2)

        def margin(outputs: Tensor, at: Tensor, rows: Tensor = rows) -> Tensor:
            return torch.einsum("gnm,gsm->gns", outputs, rows[at]).amin(-1)

        def goes_on(_: int, least: Tensor) -> Tensor:
            return torch.full_like(least, not late() and bool((least > 0).any()), dtype=torch.bool)

        images = task.part.images[here].reshape(len(here), 1, *graph.input.shape)
        starts = torch.cat([images, region.sample(task.config.descent.restarts - 1, generator)], 1)
        points, margins = pgd(network, region, margin, margin, starts, task.config.descent, goes_on)
        best = margins.argmin(1)
        for k, i in enumerate(here.tolist()):
            least, point = float(margins[k, best[k]]), points[k, best[k]]
            witness = None
            if least <= NEAR and task.graph.original is not None:
                witness = replay(point.double(), task.properties[i], 0, task.graph.original, graph.input.shape)
            tell(i, Finding(None if witness is None else Falsified(witness), margin=least))
        show(f"attacking: {piece.stop} of {len(at)} images")


def bounded(method: Callable[[EvaluateConfig, Memory], Method]) -> Callable[[Task, Tensor, Tell, Show], None]:
    """The stage of a bounding method: what it proves in the search's dtype is bounded again in float64."""

    def stage(task: Task, at: Tensor, tell: Tell, show: Show) -> None:
        made = method(task.config, Memory(task.config.search.memory))
        again = replace(made, steps=0) if isinstance(made, AlphaCrown) else made
        late = task.late(len(at))
        for piece in pieces(len(at), AT_ONCE):
            if late():
                return
            here = at[piece]
            try:
                found = made.bound(task.query(here, task.config.search.dtype, late))
                lower = found.lower.detach().amin(1).double()
                likely = (lower > 0).nonzero().squeeze(1)
                if len(likely):
                    warm = {name: value.detach()[:, likely].double() for name, value in found.warm.items()}
                    exact = again.bound(task.query(here[likely], torch.float64, late), warm)
                    lower[likely] = exact.lower.detach().amin(1)
            except OutOfTime:
                return
            proven = set(likely[torch.from_numpy(confirmed(lower[likely]))].tolist())
            for k, i in enumerate(here.tolist()):
                tell(i, Finding(Verified(float(lower[k])) if k in proven else None, lower=float(lower[k])))
            show(f"bounding: {piece.stop} of {len(at)} images")

    return stage


def searched(task: Task, at: Tensor, tell: Tell, show: Show) -> None:
    """The complete search on what is open, in one pool; outcomes are told as they come."""
    numbers = at.tolist()

    def report(now: Progress) -> None:
        show(f"searching: {now.done} of {now.total} images decided, {now.nodes:,} sub-problems, {now.open:,} open")

    verify(
        task.graph,
        [task.properties[i] for i in numbers],
        task.config.search,
        report,
        lambda k, outcome: tell(numbers[k], Finding(outcome.verdict, outcome=outcome)),
    )


STAGES: Mapping[str, Callable[[Task, Tensor, Tell, Show], None]] = MappingProxyType(
    {
        "pgd": attacked,
        "ibp": bounded(lambda config, memory: Ibp()),
        "crown": bounded(lambda config, memory: Crown(memory=memory)),
        "alpha-crown": bounded(lambda config, memory: AlphaCrown(config.steps, memory=memory)),
        "complete": searched,
    }
)
"""What is done about images that are classified rightly, from cheap to dear."""

METHODS = ("clean", *STAGES)
BOUNDS = ("ibp", "crown", "alpha-crown")


def evaluate(
    graph: Graph,
    part: Part,
    eps: float,
    norm: float = math.inf,
    config: EvaluateConfig | None = None,
    judged: Callable[[Judged], None] | None = None,
    show: Show | None = None,
) -> list[Judged]:
    """Decide for each image whether the network's answer is right within distance `eps`; in the order of `part`.

    eps: radius in units of pixels in [0, 1], the network's input units; norm: inf, 2 or 1. judged: called with each
    image as soon as it is decided. show: told in words how far the work is.
    The graph's original network answers first; images that it gets wrong count as "wrong", those on which its
    logits are not finite as "error". A traced graph is compared with its module first, as `verify` does it.
    Raises what `check_asked` does, and TraceMismatch for a module that has changed.
    """
    chosen, hear, say = config or EvaluateConfig(), judged or (lambda item: None), show or (lambda words: None)
    check_asked(graph, part, eps, norm)
    if isinstance(graph.original, ModuleOriginal):
        compare_again(graph, graph.original)
    found: list[Judged] = []
    for piece in pieces(len(part), chosen.pool or len(part)):
        found += pooled(graph, part.take(torch.arange(piece.start, piece.stop)), eps, norm, chosen, hear, say)
    return found


def check_asked(graph: Graph, part: Part, eps: float, norm: float) -> None:
    """Raise DataError for images that do not fit the network, SpecError for a label, eps or norm without sense."""
    numel, shape = graph.input.numel, tuple(part.images.shape[1:])
    if part.images[0].numel() != numel:
        raise DataError(
            f"the images have {part.images[0].numel()} values each ({shape}), the network's "
            f"input has {numel} ({graph.input.shape}); evaluate it on the data it was made for"
        )
    wanted, given = (tuple(size for size in each if size > 1) for each in (graph.input.shape, shape))
    if wanted != given and min(len(wanted), len(given)) > 1:
        raise DataError(
            f"the images are {shape}, the network's input is {graph.input.shape}: as many values in another order; "
            "put the network behind a transposition"
        )
    robust(part.images[0], int(part.labels.max()), eps, graph.output.numel, norm)


def pooled(
    graph: Graph,
    part: Part,
    eps: float,
    norm: float,
    config: EvaluateConfig,
    judged: Callable[[Judged], None],
    show: Show,
) -> list[Judged]:
    """`evaluate` for the images of one pool."""
    answers = predictions(graph, part.images)
    done: dict[int, Judged] = {}

    def finish(i: int, found: Judgement) -> None:
        done[i] = Judged(int(part.indices[i]), int(part.labels[i]), int(answers[i]), *found)
        judged(done[i])

    for i in (answers != part.labels).nonzero().flatten().tolist():
        finish(i, Judgement("wrong" if answers[i] >= 0 else "error", None, None, {}))
    place = [i for i in range(len(part)) if i not in done]
    if place:
        right = part.take(torch.tensor(place))
        asked = [
            robust(image, int(label), eps, graph.output.numel, norm)
            for image, label in zip(right.images, right.labels, strict=True)
        ]
        task = Task.of(graph, right, asked, config)
        board = Board(len(place), lambda k, found: finish(place[k], found))
        for name in STAGES:
            if name in config.methods and board.open:
                board.run(name, task, show)
        board.give_up(", ".join(config.methods))
    return [done[i] for i in range(len(part))]


class Board:
    """What is known about the images of one pool while the methods run; `finish` hears of each that is decided."""

    def __init__(self, count: int, finish: Callable[[int, Judgement], None]) -> None:
        self.finish = finish
        self.margin: list[float | None] = [None] * count
        self.lower: list[dict[str, float]] = [{} for _ in range(count)]
        self.charged = [0.0] * count
        self.open = dict.fromkeys(range(count))
        self.trouble = ""

    def run(self, name: str, task: Task, show: Show) -> None:
        """One method on the images that are open; each is charged its share of the time, and ends with its timeout."""
        at, began = list(self.open), time.monotonic()
        verdicts: dict[int, Verdict] = {}
        too_late = Unknown(f"not decided within {task.config.search.timeout:.3g} s", "timeout")

        def tell(i: int, finding: Finding) -> None:
            if finding.lower is not None:
                self.lower[i][name] = finding.lower
            if finding.margin is not None:
                self.margin[i] = finding.margin
            if finding.verdict is not None:
                verdicts[i] = finding.verdict
            if finding.outcome is not None:
                late = isinstance(verdict := finding.outcome.verdict, Unknown) and verdict.kind == "timeout"
                charged = finding.outcome.charged + self.charged[i]
                self.close(i, replace(finding.outcome, verdict=too_late if late else verdict, charged=charged))

        try:
            STAGES[name](self.left(task, at), torch.tensor(at), tell, show)
        except OutOfMemory as error:
            self.trouble = f"{name}: {error}"
        share = (time.monotonic() - began) / len(at)
        for i in list(self.open):
            self.charged[i] += share
            if i in verdicts:
                self.close(i, Outcome(verdicts[i], 0, name, {name: share}, self.charged[i]))
            elif self.charged[i] >= task.config.search.timeout:
                self.close(i, Outcome(too_late, 0, name, {name: share}, self.charged[i]))

    def left(self, task: Task, at: Sequence[int]) -> Task:
        """The task with the time that each image has left at least."""
        left = task.config.search.timeout - max(self.charged[i] for i in at)
        return replace(task, config=replace(task.config, search=replace(task.config.search, timeout=left)))

    def close(self, i: int, outcome: Outcome) -> None:
        """An image is decided, or nobody looks at it any more."""
        del self.open[i]
        self.finish(i, Judgement(status_of(outcome), outcome, self.margin[i], self.lower[i]))

    def give_up(self, tried: str) -> None:
        """What is still open stays so."""
        for i in list(self.open):
            self.close(i, Outcome(Unknown(self.trouble or f"left open by {tried}"), 0, tried, {}, self.charged[i]))


def predictions(graph: Graph, images: Tensor) -> Tensor:
    """The original network's answers [N] (the first of equal logits; -1 where a logit is not finite)."""
    if graph.original is None:
        raise DataError("the graph has no original network to ask; trace a module or load a file")
    x = images.reshape(len(images), *graph.input.shape)
    with torch.no_grad():
        logits = torch.cat([graph.original(piece).flatten(1) for piece in x.split(512)])
    return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)


def status_of(outcome: Outcome) -> Status:
    """What a verdict means for an image."""
    if isinstance(outcome.verdict, Verified):
        return "verified"
    return "falsified" if isinstance(outcome.verdict, Falsified) else "unknown"


def shares(judged: Sequence[Judged]) -> dict[str, float]:
    """The fraction of images by status; raises DataError without images."""
    if not judged:
        raise DataError("verified accuracy needs at least one image")
    counts = Counter(item.status for item in judged)
    return {status: counts[status] / len(judged) for status in ("verified", "unknown", "falsified", "wrong")}


def summary(judged: Sequence[Judged]) -> dict[str, float | int]:
    """Fractions of all images: right answers, those that withstood the attack and the search, proven by each method
    or one before it, proven, undecided, in error.
    """
    n = len(judged)
    if not n:
        raise DataError("verified accuracy needs at least one image")

    def fraction(count: int) -> float:
        return count / n

    status = Counter(item.status for item in judged)
    right = n - status["wrong"] - status["error"]
    proven = {
        f"verified_{method.partition('-')[0]}": sum(item.proven_by(BOUNDS[: k + 1]) for item in judged)
        for k, method in enumerate(BOUNDS)
    }
    return {
        "n": n,
        "clean": fraction(right),
        "attacked": fraction(right - status["falsified"]),
        **{name: fraction(count) for name, count in proven.items()},
        "verified": fraction(status["verified"]),
        "unknown": fraction(status["unknown"]),
        "errors": fraction(status["error"]),
    }
