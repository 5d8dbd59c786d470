"""Between adversarial and certified: what an attack finds and what intervals allow, mixed (De Palma et al. 2024), and
intervals around what an attack finds (Mueller et al. 2023).

The attack comes first, in evaluation mode. Its images are then passed in training mode, and the intervals use the
moments of that pass; SABR, which passes no attacked images, uses those of the clean ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.ops.record import Interval
from surebound.training.objectives.adversarial import Pgd
from surebound.training.objectives.objective import of_margins, require
from surebound.training.scene import Scene, images_within


@dataclass(frozen=True)
class Mixed:
    """What the mixing objectives share. alpha in [0, 1]: 0 is adversarial training, 1 is IBP; attack: see `Pgd`."""

    alpha: float = 0.5
    attack: Pgd = field(default_factory=lambda: Pgd(1, 10.0))

    def __post_init__(self) -> None:
        require("alpha", (self.alpha,), 0, 1)

    def parts(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Logits of the attacked images and lower bounds of the margins, both where the radius is now."""
        logits = scene.forward(self.attack.attack(scene))
        return logits, scene.bounded.ibp(scene.margins)


@dataclass(frozen=True)
class CcIbp(Mixed):
    """CE(-[alpha lower + (1 - alpha) margins at the attacked image]): a convex combination of the margins."""

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        logits, lower = self.parts(scene)
        margins = torch.einsum("bsk,bk->bs", scene.margins, logits)
        return of_margins(self.alpha * lower + (1 - self.alpha) * margins)


@dataclass(frozen=True)
class MtlIbp(Mixed):
    """alpha L_IBP + (1 - alpha) L_adversarial: a convex combination of the losses."""

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        logits, lower = self.parts(scene)
        return self.alpha * of_margins(lower) + (1 - self.alpha) * F.cross_entropy(logits, scene.labels)


@dataclass(frozen=True)
class ExpIbp(Mixed):
    """L_IBP^alpha L_adversarial^(1 - alpha), sample by sample, computed in logarithms."""

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        logits, lower = self.parts(scene)
        least = torch.finfo(lower.dtype).tiny
        bound = F.softplus((-lower).logsumexp(1)).clamp(min=least).log()
        attacked = F.cross_entropy(logits, scene.labels, reduction="none").clamp(min=least).log()
        return (self.alpha * bound + (1 - self.alpha) * attacked).exp().mean()


@dataclass(frozen=True)
class Sabr:
    """IBP on a small box around an attacked image, inside the box of the radius (Mueller et al. 2023).

    With the clipped box [l, u] and its half width h: centre clamp(x', l + part h, u - part h), half width part h.
    shrink: factor on the upper ends of unstable ReLUs; 1 is none.
    """

    part: float = 0.4
    attack: Pgd = field(default_factory=Pgd)
    shrink: float = 1.0

    def __post_init__(self) -> None:
        require("part and shrink", (self.part, self.shrink), 0, 1)

    def __call__(self, scene: Scene) -> Tensor:
        if scene.eps == 0:
            return F.cross_entropy(scene.clean, scene.labels)
        found = self.attack.attack(scene)
        whole = images_within(scene.images, scene.eps)
        half = self.part * (whole.upper - whole.lower) / 2
        centre = torch.maximum(torch.minimum(found, whole.upper - half), whole.lower + half)
        _ = scene.clean
        small = scene.over(Interval(centre - half, centre + half), self.shrink)
        return of_margins(small.ibp(scene.margins))
