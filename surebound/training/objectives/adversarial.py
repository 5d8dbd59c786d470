"""Adversarial training: attack first (in evaluation mode), then learn what was found (in training mode).

Every objective has a function `attack` from a scene to images; eps = 0 attacks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.attacks.adversarial import cross_entropy, evaluating, fgsm, input_gradient, project, random_start
from surebound.attacks.balls import L2
from surebound.errors import UsageError
from surebound.training.objectives.objective import require
from surebound.training.scene import Scene


def grad_align(scene: Scene, both: bool = False) -> Tensor:
    """1 - mean_b cos(g1, g2): g1 = dCE/dx at x, held fixed unless `both`; g2 at x + eta, eta ~ U(-eps, eps),
    differentiated.

    Samples in which either gradient is zero are left out; 0 when none is left (Andriushchenko & Flammarion 2020).
    """
    images, labels, network = scene.images, scene.labels, scene.network
    noise = torch.rand(images.shape, dtype=images.dtype, generator=scene.generator).to(images.device)
    here = images.detach().requires_grad_(True)
    near = (images + (2 * noise - 1) * scene.eps).detach().requires_grad_(True)
    of_here = F.cross_entropy(network(here), labels, reduction="sum")
    (at_image,) = torch.autograd.grad(of_here, here, create_graph=both)
    (moving,) = torch.autograd.grad(F.cross_entropy(network(near), labels, reduction="sum"), near, create_graph=True)
    nonzero = ((each.detach() != 0).flatten(1).any(1) for each in (at_image, moving))
    kept = torch.logical_and(*nonzero).nonzero().squeeze(1)
    if len(kept) == 0:
        return images.new_zeros(())
    first, second = (L2.steepest(each[kept]) for each in (at_image, moving))
    return 1 - (first * second).flatten(1).sum(1).mean()


@dataclass(frozen=True)
class Fgsm:
    """CE at one signed gradient step: from the image (start "zero") or from a random point (Wong et al. 2020).

    delta0 ~ U(-eps, eps), clipped so that x + delta0 is an image; delta = clip(delta0 + step eps sign(g), +-eps),
    x + delta clipped to [0, 1]. align: weight of GradAlign; align_both: differentiate both of its gradients.
    """

    step: float = 1.25
    start: str = "uniform"
    align: float = 0.0
    align_both: bool = False

    def __post_init__(self) -> None:
        require("step and align", (self.step, self.align), 0)
        if self.start not in ("zero", "uniform"):
            raise UsageError(f"start must be 'zero' or 'uniform', got '{self.start}'")

    def attack(self, scene: Scene) -> Tensor:
        start = scene.images if self.start == "zero" else random_start(scene.images, scene.eps, scene.generator)
        with evaluating(scene.network):
            return fgsm(scene.network, scene.images, scene.labels, scene.eps, self.step * scene.eps, start)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        loss = F.cross_entropy(scene.forward(self.attack(scene)), scene.labels)
        return loss if self.align == 0 else loss + self.align * grad_align(scene, self.align_both)


@dataclass(frozen=True)
class NFgsm:
    """CE at x + eta + step eps sign(g(x + eta)), eta ~ U(-noise eps, noise eps), not clipped to eps, clipped to
    images (de Jorge et al. 2022).
    """

    step: float = 1.0
    noise: float = 2.0

    def __post_init__(self) -> None:
        require("step and noise", (self.step, self.noise), 0)

    def attack(self, scene: Scene) -> Tensor:
        start = random_start(scene.images, self.noise * scene.eps, scene.generator)
        with evaluating(scene.network):
            gradient = input_gradient(scene.network, cross_entropy, start, scene.labels)
        return (start + self.step * scene.eps * gradient.sign()).clamp(0, 1)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        return F.cross_entropy(scene.forward(self.attack(scene)), scene.labels)


@dataclass(frozen=True)
class Pgd:
    """CE at the end of `steps` signed gradient steps of size `step` (times eps) from a random start (Madry 2018).

    reach: the attack's radius as a multiple of eps. decay: factor of the step at a half and at three quarters.
    """

    steps: int = 8
    step: float = 0.25
    reach: float = 1.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        require("steps", (self.steps,), 1)
        require("step, reach and decay", (self.step, self.reach, self.decay), 0)

    def attack(self, scene: Scene) -> Tensor:
        eps = self.reach * scene.eps
        point, size = random_start(scene.images, eps, scene.generator), self.step * eps
        with evaluating(scene.network):
            for count in range(self.steps):
                if count > 0 and count in (self.steps // 2, 3 * self.steps // 4):
                    size *= self.decay
                gradient = input_gradient(scene.network, cross_entropy, point, scene.labels)
                point = project(point + size * gradient.sign(), scene.images, eps)
        return point

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        return F.cross_entropy(scene.forward(self.attack(scene)), scene.labels)


@dataclass(frozen=True)
class Trades:
    """CE(f(x), y) + weight KL(f(x) || f(x')), x' raising the KL by signed steps from x + 0.001 N(0, 1) (Zhang 2019).

    The divergence is summed over classes and averaged over the batch; both terms are differentiated in f.
    """

    weight: float = 6.0
    steps: int = 10
    step: float = 0.25

    def __post_init__(self) -> None:
        require("steps", (self.steps,), 1)
        require("weight and step", (self.weight, self.step), 0)

    def attack(self, scene: Scene) -> Tensor:
        x, network = scene.images, scene.network
        with evaluating(network):
            with torch.no_grad():
                target = network(x).log_softmax(1)

            def divergence(logits: Tensor, labels: Tensor) -> Tensor:
                return F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="none").sum(1)

            noise = torch.randn(x.shape, dtype=x.dtype, generator=scene.generator).to(x.device)
            point = project(x + 0.001 * noise, x, scene.eps)
            for _ in range(self.steps):
                gradient = input_gradient(network, divergence, point, scene.labels)
                point = project(point + self.step * scene.eps * gradient.sign(), x, scene.eps)
        return point

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        found = self.attack(scene)
        clean = scene.clean
        moved = scene.forward(found).log_softmax(1)
        divergence = F.kl_div(moved, clean.log_softmax(1), log_target=True, reduction="batchmean")
        return F.cross_entropy(clean, scene.labels) + self.weight * divergence
