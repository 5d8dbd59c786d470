"""HYDRA: which weights to keep is learned under the objective (Sehwag et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from surebound.sparsify.basis import Basis, own_copy
from surebound.sparsify.masks import unmasked
from surebound.sparsify.select import kept
from surebound.training.loop import Group, Run, train
from surebound.training.objectives.objective import Objective
from surebound.training.scene import Scene
from surebound.training.schedules import multistep
from surebound.training.trainee import Trainee


class StraightThrough(torch.autograd.Function):
    """w where mask, else 0; the score's gradient is what |s| would get if it stood in the mask's place: sign(s) w g."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, score)
        return torch.where(mask, weight, torch.zeros_like(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, score = ctx.saved_tensors
        return None, grads[0] * weight * score.sign(), None


class Bank:
    """The scores of all layers and the masks that follow from them, worked out when scores have changed."""

    def __init__(self, scores: dict[str, nn.Parameter], keep: float, scope: str) -> None:
        self.scores, self.keep, self.scope = scores, keep, scope
        self.of: tuple[int, ...] = ()
        self.masks: dict[str, Tensor] = {}

    def mask(self, name: str) -> Tensor:
        """The mask of one layer."""
        now = tuple(score._version for score in self.scores.values())
        if now != self.of:
            self.of, self.masks = (
                now,
                kept({n: s.detach().abs() for n, s in self.scores.items()}, self.keep, self.scope),
            )
        return self.masks[name]


class Popup(nn.Module):
    """A weight under the mask that its learned score gives it."""

    def __init__(self, bank: Bank, name: str) -> None:
        super().__init__()
        self.bank, self.name, self.score = bank, name, bank.scores[name]

    def forward(self, weight: Tensor) -> Tensor:
        return StraightThrough.apply(weight, self.score, self.bank.mask(self.name))  # pyright: ignore


@dataclass(frozen=True)
class Traced:
    """The objective on a graph that was traced before the weights got masks: it reads them live, with gradients."""

    objective: Objective
    trainee: Trainee

    def __call__(self, scene: Scene) -> Tensor:
        return self.objective(replace(scene, trainee=self.trainee))


@dataclass(frozen=True)
class Hydra:
    """|s| of scores learned for `epochs` with frozen weights under the mask of the largest, starting from
    s = sqrt(6 / fan_in) w / max|w|; Adam at `rate`, divided by 10 after half and three quarters. scope: where scores
    compete, "layer" as published or "global".
    """

    epochs: int = 20
    rate: float = 0.01
    scope: str = "layer"

    def __call__(self, network: nn.Module, basis: Basis, names: Collection[str]) -> dict[str, Tensor]:
        own = own_copy(unmasked(network)).requires_grad_(False)
        trainee = Trainee(own, basis.example)
        _ = trainee.plan  # traced now
        bank = Bank(
            {name: nn.Parameter(first_score(own.get_parameter(name))) for name in names}, basis.keep, self.scope
        )
        for name in names:
            path, _, leaf = name.rpartition(".")
            parametrize.register_parametrization(own.get_submodule(path), leaf, Popup(bank, name), unsafe=True)
        run = Run(
            self.epochs, basis.batch, optimiser="adam", schedule=multistep([0.5, 0.75], 0.1), seed=basis.seed,
            eps=basis.eps, choose=False,
        )  # fmt: skip
        group = Group(list(bank.scores.values()), self.rate)
        train(own, basis.data, Traced(basis.objective, trainee), [group], run, lambda candidate: 0.0)
        return {name: score.detach().abs().double() for name, score in bank.scores.items()}


def first_score(weight: Tensor) -> Tensor:
    """sqrt(6 / fan_in) w / max|w|; 0 for a layer of zeros."""
    fan_in = weight[0].numel()
    return (
        math.sqrt(6 / fan_in) * weight.detach() / weight.detach().abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
    )
