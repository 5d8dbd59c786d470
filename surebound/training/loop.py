"""The training loop: read it from top to bottom."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.data.dataset import Part
from surebound.errors import DataError, UsageError
from surebound.training.objectives.objective import Objective
from surebound.training.schedules import Schedule, cosine


@dataclass(frozen=True)
class Group:
    """Parameters that share a base learning rate and a weight decay."""

    parameters: Sequence[nn.Parameter]
    rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """What one epoch was like: mean training loss, the score that epochs are chosen by, the schedule's last factor."""

    number: int
    loss: float
    score: float
    factor: float


@dataclass(frozen=True)
class Run:
    """How long and in what steps: SGD with momentum; the rate follows `schedule`. seed: order and noise."""

    epochs: int
    batch: int = 128
    momentum: float = 0.9
    schedule: Schedule = cosine
    seed: int = 0


def train(
    network: nn.Module,
    data: Part,
    objective: Objective,
    groups: Iterable[Group],
    run: Run,
    score: Callable[[nn.Module], float],
    progress: Callable[[Epoch], None] | None = None,
) -> tuple[Epoch, ...]:
    """Train `network` in place and leave it in evaluation mode with the weights of the best epoch.

    score: what epochs are chosen by, larger is better, the first of equals wins; it has to look at validation
    images, never at test images. Two runs with equal seeds and threads give equal weights.
    Raises DataError for an empty part, UsageError for a loss that is not finite or for no epochs.
    """
    if len(data) == 0:
        raise DataError("there are no training images")
    if run.epochs < 1 or run.batch < 1:
        raise UsageError(f"training needs at least one epoch and one image per step, got {run.epochs} and {run.batch}")
    settings = [
        {"params": list(group.parameters), "lr": group.rate, "weight_decay": group.weight_decay}
        for group in groups
        if group.parameters
    ]
    optimiser = torch.optim.SGD(settings, lr=0.0, momentum=run.momentum)
    base = [float(group["lr"]) for group in optimiser.param_groups]
    generator = torch.Generator().manual_seed(run.seed)
    steps = run.epochs * math.ceil(len(data) / run.batch)
    epochs: list[Epoch] = []
    best: Mapping[str, Tensor] = {}
    done = 0
    for number in range(run.epochs):
        network.train()
        total = 0.0
        for index in torch.randperm(len(data), generator=generator).split(run.batch):
            for group, rate in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = rate * run.schedule(done / steps)
            loss = objective(network, data.images[index], data.labels[index], generator)
            if not bool(torch.isfinite(loss.detach())):
                raise UsageError(
                    f"the training loss is {float(loss.detach())} in epoch {number}; lower the learning rate"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(index)
            done += 1
        network.eval()
        epoch = Epoch(number, total / len(data), score(network), run.schedule((done - 1) / steps))
        if not epochs or epoch.score > max(earlier.score for earlier in epochs):
            best = copy.deepcopy(network.state_dict())
        epochs.append(epoch)
        if progress is not None:
            progress(epoch)
    network.load_state_dict(best)
    return tuple(epochs)
