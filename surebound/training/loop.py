"""The training loop: read it from top to bottom.

Everything random in a step is drawn from the run's seed and the step's number, so a run continues bit for bit from
any step (`checkpoint`), and two runs with equal seeds and threads give equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.data.dataset import Part, in_unit
from surebound.errors import DataError, UsageError
from surebound.training.averaging import Averaging
from surebound.training.checkpoint import Checkpoint, State
from surebound.training.distributed import average, mean, share, weight, workers
from surebound.training.objectives.objective import Objective
from surebound.training.radii import Fixed, Radii
from surebound.training.scene import Scene
from surebound.training.schedules import Schedule, cosine
from surebound.training.trainee import Trainee

OPTIMISERS = ("sgd", "adam", "adamw", "radam")


@dataclass(frozen=True)
class Group:
    """Parameters that share a base learning rate and a weight decay."""

    parameters: Sequence[nn.Parameter]
    rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """What one epoch was like: mean training loss, the score that epochs are chosen by, the rate's factor and the
    radius at its last step.
    """

    number: int
    loss: float
    score: float
    factor: float
    eps: float = 0.0


@dataclass(frozen=True)
class Run:
    """How long and in what steps.

    optimiser: one of `OPTIMISERS`; the rate follows `schedule`. eps: the radius aimed at; radii: that of every step,
    default always eps. clip: largest norm of the whole gradient. averaging: of weights over steps; the averaged ones
    are then what is scored and kept. choose: keep the best epoch's weights, among those that ended at the radius aimed
    at and the last one; else the last one's. seed: order and noise.
    """

    epochs: int
    batch: int = 128
    momentum: float = 0.9
    schedule: Schedule = cosine
    seed: int = 0
    optimiser: str = "sgd"
    eps: float = 0.0
    radii: Radii | None = None
    clip: float | None = None
    averaging: Averaging | None = None
    choose: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(
                f"training needs at least one epoch and one image per step, got {self.epochs} and {self.batch}"
            )
        if self.optimiser not in OPTIMISERS:
            raise UsageError(f"there is no optimiser '{self.optimiser}'; choose among {', '.join(OPTIMISERS)}")

    def could_choose(self, epoch: Epoch) -> bool:
        """Is an epoch one to choose among?"""
        return epoch.eps >= self.eps or epoch.number == self.epochs - 1


def train(
    network: nn.Module,
    data: Part,
    objective: Objective,
    groups: Iterable[Group],
    run: Run,
    score: Callable[[nn.Module], float],
    progress: Callable[[Epoch], None] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
    step_done: Callable[[int, int], None] | None = None,
) -> tuple[Epoch, ...]:
    """Train `network` in place and leave it in evaluation mode with the weights that `run` chooses.

    score: what epochs are chosen by, larger is better, the first of equals wins; it has to look at validation
    images, never at test images. augment: changes the images of a step. checkpoint: where the run is kept; what is
    there is continued. step_done: told the steps done and all steps.
    Raises DataError for an empty part, UsageError for a loss that is not finite and for a step of a single image where
    batch norm needs several.
    """
    if len(data) == 0:
        raise DataError("there are no training images")
    trainee = Trainee(network, shown(data.images[:1], augment, drawn(run.seed, 0)))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimiser = optimiser_of(groups, run)
    base = [float(group["lr"]) for group in optimiser.param_groups]
    sizes = batch_sizes(len(data), run.batch)
    require_moments(trainee, sizes)
    per_epoch = len(sizes)
    steps = run.epochs * per_epoch
    radii = run.radii or Fixed(run.eps)
    state = State(network, optimiser, run.averaging)
    if checkpoint is not None:
        checkpoint.load(state)
    while state.step < steps:
        number, place = divmod(state.step, per_epoch)
        order = torch.randperm(len(data), generator=drawn(run.seed, -1 - number)).split(sizes)
        network.train()
        for index in order[place:]:
            generator = drawn(run.seed, state.step)
            for group, rate in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = rate * run.schedule(state.step / steps)
            mine = share(index)
            images, labels = data.images[mine], data.labels[mine]
            images = shown(images, augment, generator)
            radius = radii.advance(state.radius, state.step, state.loss)
            with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
                torch.default_generator.manual_seed(-1 - generator.initial_seed())
                loss = objective(Scene(trainee, images, labels, radius.eps, run.eps, generator))
            loss = loss * weight(index)
            value = mean(loss.detach())
            if not math.isfinite(value):
                raise UsageError(f"the training loss is {value} in epoch {number}; lower the learning rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            average(network)
            if run.clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), run.clip)
            optimiser.step()
            state.stepped(value, len(index), radius)
            if step_done is not None:
                step_done(state.step, steps)
            if checkpoint is not None and state.step % per_epoch:
                checkpoint.if_due(state)
        network.eval()
        with state.averaged():
            factor = run.schedule((state.step - 1) / steps)
            epoch = Epoch(number, state.total / len(data), score(network), factor, state.radius.eps)
            state.finish(epoch, not run.choose or better(epoch, state.epochs, run))
        if progress is not None:  # before the checkpoint: an epoch may be told twice, but is told
            progress(epoch)
        if checkpoint is not None:
            checkpoint.save(state)
    state.restore()
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    return tuple(state.epochs)


def batch_sizes(count: int, batch: int) -> list[int]:
    """How many images each step of an epoch takes. An image that is left alone joins the step before: batch norm
    cannot be trained with one.
    """
    whole, rest = divmod(count, batch)
    if rest == 1 and whole:
        return [batch] * (whole - 1) + [batch + 1]
    return [batch] * whole + [rest] * (rest > 0)


def require_moments(trainee: Trainee, sizes: Sequence[int]) -> None:
    """Raise UsageError where a step has one image, of which a norm without pixels has no moments."""
    if min(sizes) // workers() <= 1 and any(isinstance(norm, nn.BatchNorm1d) for norm in trainee.norms.values()):
        raise UsageError(
            f"a step of {min(sizes)} images leaves a single one for a process, and batch norm takes no moments of one; "
            "change run.batch or the number of images"
        )


def shown(images: Tensor, augment: Callable[[Tensor, torch.Generator], Tensor] | None, by: torch.Generator) -> Tensor:
    """Images as the network is given them in training: changed at random, as numbers in [0, 1].

    Channels lie next to each other in memory, as do those of the weights: convolutions are a third faster so.
    """
    images = in_unit(images if augment is None else augment(images, by))
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


def better(epoch: Epoch, earlier: Sequence[Epoch], run: Run) -> bool:
    """Is an epoch the one to choose so far?"""
    rivals = [other for other in earlier if run.could_choose(other)]
    return run.could_choose(epoch) and all(epoch.score > other.score for other in rivals)


def drawn(seed: int, number: int) -> torch.Generator:
    """Random numbers of one step (or, below 0, of one epoch's order) of a run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def optimiser_of(groups: Iterable[Group], run: Run) -> torch.optim.Optimizer:
    """The optimiser of a run."""
    settings = [
        {"params": list(group.parameters), "lr": group.rate, "weight_decay": group.weight_decay}
        for group in groups
        if group.parameters
    ]
    if run.optimiser == "sgd":
        return torch.optim.SGD(settings, lr=0.0, momentum=run.momentum)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[run.optimiser]
    return made(settings, lr=0.0)
