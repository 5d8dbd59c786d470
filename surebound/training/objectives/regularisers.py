"""What is added to a loss: small weights, few active units, tight and balanced intervals, stable neurons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from surebound.graph.ir import evaluate
from surebound.nets.grafted import GatedReLU
from surebound.ops.record import Interval
from surebound.training.balls import Ball
from surebound.training.objectives.objective import Objective, require
from surebound.training.scene import Scene


@dataclass(frozen=True)
class Plus:
    """objective + weight term."""

    objective: Objective
    term: Objective
    weight: float

    def __call__(self, scene: Scene) -> Tensor:
        return self.objective(scene) + self.weight * self.term(scene)


@dataclass(frozen=True)
class L1Weights:
    """sum |w| over the weights of linear layers and convolutions; biases and norms are left out."""

    def __call__(self, scene: Scene) -> Tensor:
        weights = [
            p for part in scene.network.modules() if isinstance(part, (nn.Linear, nn.Conv2d)) for p in [part.weight]
        ]
        return torch.stack([weight.abs().sum() for weight in weights]).sum()


@dataclass(frozen=True)
class L1Activations:
    """Mean over images of the sum of all |activation|, with the moments of the last pass."""

    def __call__(self, scene: Scene) -> Tensor:
        bounded = scene.within(0.0)
        names = [step.site.node.name for step in scene.trainee.plan.relaxed]
        values = evaluate(scene.trainee.graph, bounded.values, scene.images, names)
        found = [value.abs().sum() for value in values.values()]
        return torch.stack(found).sum() / len(scene.images) if found else scene.images.new_zeros(())


@dataclass(frozen=True)
class L1Scales:
    """sum |gamma| over the scales of all norms (network slimming, Liu et al. 2017)."""

    def __call__(self, scene: Scene) -> Tensor:
        scales = [norm.weight.abs().sum() for norm in scene.trainee.norms.values() if norm.affine]
        return torch.stack(scales).sum() if scales else scene.images.new_zeros(())


@dataclass(frozen=True)
class Gates:
    """Mean |gate| over all gated neurons: under it gates close and neurons become lines (SNL, Cho et al. 2022)."""

    def __call__(self, scene: Scene) -> Tensor:
        gates = [part.gate.abs().flatten() for part in scene.network.modules() if isinstance(part, GatedReLU)]
        return torch.cat(gates).mean() if gates else scene.images.new_zeros(())


@dataclass(frozen=True)
class FastIbp:
    """(1 - ramp) (L_tight + L_relu): keep intervals narrow and ReLUs balanced while the radius grows (Shi et al. 2021).

    With radius r0 of the input and r of a pre-activation, all means over the batch and the layer, and tol:
    L_tight = mean over layers of relu(tol - r0 / r) / tol.
    L_relu = mean over layers of [relu(tol - min(a, 1/a)) + relu(tol - min(b, 1/b))] / tol, where a and b compare
    active (l > 0) with inactive (u < 0) neurons: a = mean centre of the active over minus that of the inactive,
    b = sum of squared deviations of the active's centres over that of the inactive. Layers where a or b is no
    positive number leave their term out. At radius 0 the intervals are those at 1e-6.
    """

    tol: float = 0.5

    def __post_init__(self) -> None:
        require("tol", (self.tol,), 1e-6)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.ramp >= 1:
            return scene.images.new_zeros(())
        bounded = scene.within(max(scene.eps, 1e-6))
        root = bounded.balls[scene.trainee.plan.roots[0]].radius.mean()
        layers = bounded.pre_activations.values()
        if not layers:
            return scene.images.new_zeros(())
        tight = [(self.tol - root / layer.radius.mean().clamp(min=1e-12)).clamp(min=0) for layer in layers]
        relu = [term for layer in layers for term in self.balance(layer)]
        total = torch.stack([*tight, *relu]).sum() / (self.tol * len(tight))
        return (1 - scene.ramp) * total

    def balance(self, layer: Ball) -> list[Tensor]:
        """The terms of one layer."""
        lower, upper = layer.ends
        size = layer.centre.detach().abs().amax().clamp(min=torch.finfo(layer.centre.dtype).tiny)
        centre = layer.centre / size  # the ratios do not change with it, squares of tiny numbers would be zero
        active, inactive = (lower > 0).to(centre.dtype), (upper < 0).to(centre.dtype)
        spread = (centre - centre.mean()).square()
        ratios = (
            ((centre * active).mean(), -(centre * inactive).mean()),
            ((spread * active).sum(), (spread * inactive).sum()),
        )
        folded = [torch.minimum(a / b, b / a) for a, b in ratios if bool(a > 0) and bool(b > 0)]
        return [(self.tol - ratio).clamp(min=0) for ratio in folded]


def stable(ends: Interval, scale: Tensor | None, tiny: float) -> Tensor:
    """-tanh(1 + l u / (gamma^2 + tiny)) per neuron [B, *shape]; gamma per channel, 1 without a norm."""
    product = ends.lower * ends.upper
    if scale is not None:
        tail = [1] * (product.dim() - 2)
        product = product / (scale.detach().square() + tiny).reshape(-1, *tail)
    return -torch.tanh(1 + product)


@dataclass(frozen=True)
class RsLoss:
    """Mean over neurons of -tanh(1 + l u) with interval bounds of the pre-activations (Xiao et al. 2019).

    full: at the radius aimed at from the first step on, not at the scheduled one.
    """

    full: bool = True

    def __call__(self, scene: Scene) -> Tensor:
        bounded = scene.within(scene.target if self.full else scene.eps)
        parts = [stable(layer.ends, None, 0.0).flatten() for layer in bounded.pre_activations.values()]
        return torch.cat(parts).mean() if parts else scene.images.new_zeros(())


@dataclass(frozen=True)
class NrsLoss:
    """Mean over neurons of -tanh(1 + l u / gamma^2), gamma the scale of the norm in front (1 where there is none),
    which gets no gradient at all, neither through the bounds nor through moments (TMLR'22, equation of NRSLoss).
    """

    full: bool = True
    tiny: float = 1e-20

    def __call__(self, scene: Scene) -> Tensor:
        bounded = scene.within(scene.target if self.full else scene.eps, scales=False)
        scales = scene.trainee.scales
        parts = [
            stable(layer.ends, bounded.values[scales[name]] if name in scales else None, self.tiny).flatten()
            for name, layer in bounded.pre_activations.items()
        ]
        return torch.cat(parts).mean() if parts else scene.images.new_zeros(())


@dataclass(frozen=True)
class NrsReleased:
    """NRS as the published program computes it in certified training: only ReLUs behind a norm, averaged over images
    and positions for each channel and then over channels; gamma is held fixed in the denominator only.
    """

    full: bool = False
    tiny: float = 1e-8

    def __call__(self, scene: Scene) -> Tensor:
        bounded = scene.within(scene.target if self.full else scene.eps)
        scales: Mapping[str, str] = scene.trainee.scales
        channels = [
            stable(bounded.pre_activations[name].ends, bounded.values[scale], self.tiny)
            .transpose(0, 1)
            .flatten(1)
            .mean(1)
            for name, scale in scales.items()
        ]
        return torch.cat(channels).mean() if channels else scene.images.new_zeros(())


@dataclass(frozen=True)
class CrownStability:
    """Mean over neurons of log(1 + relu(-l) relu(u)) with CROWN bounds [l, u] of every pre-activation, in-between
    boxes by IBP. Unlike tanh it keeps its slope where neurons are far from stable.
    """

    full: bool = True

    def __call__(self, scene: Scene) -> Tensor:
        bounded = scene.within(scene.target if self.full else scene.eps)
        parts: list[Tensor] = []
        for ends in bounded.crown_boxes().values():
            parts.append(torch.log1p((-ends.lower).clamp(min=0) * ends.upper.clamp(min=0)).flatten())
        return torch.cat(parts).mean() if parts else scene.images.new_zeros(())
