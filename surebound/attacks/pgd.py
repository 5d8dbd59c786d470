"""Projected gradient descent on a specification's margin, batched over regions and restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.regions import Region


@dataclass(frozen=True)
class Descent:
    """steps: gradient steps per restart. stride, final: first and last step as fractions of the region's
    radius, geometric in between. restarts: random starting points per region; points: of a property, for its regions
    to share where that is more for each.
    """

    steps: int = 100
    stride: float = 0.5
    final: float = 0.002
    restarts: int = 5
    points: int = 0


def worst_row(outputs: Tensor, spec: Tensor, threshold: Tensor, real: Tensor) -> Tensor:
    """How far points are from violating: max over real rows of c y - t, [G, n]; <= 0 is a violation.

    outputs [G, n, m]; spec [G, S, m]; threshold, real [G, S].
    """
    slack = torch.einsum("gnm,gsm->gns", outputs, spec) - threshold.unsqueeze(1)
    return torch.where(real.unsqueeze(1), slack, torch.full_like(slack, -torch.inf)).amax(-1)


def hinge(outputs: Tensor, spec: Tensor, threshold: Tensor, real: Tensor) -> Tensor:
    """What is descended: the sum over real rows of max(c y - t, 0), [G, n]; shapes as in `worst_row`."""
    slack = torch.einsum("gnm,gsm->gns", outputs, spec) - threshold.unsqueeze(1)
    return torch.where(real.unsqueeze(1), slack.clamp(min=0), torch.zeros_like(slack)).sum(-1)


def pgd(
    network: Callable[[Tensor], Tensor],
    region: Region,
    objective: Callable[[Tensor, Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    starts: Tensor,
    descent: Descent,
    goes_on: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Descend `objective` of the network's outputs over the region, towards a `distance` of at most 0.

    network: [N, *shape] -> [N, m]. objective, distance: outputs [g, n, m] of the regions with numbers [g] -> [g, n].
    starts [G, n, *shape]. goes_on: after each step, from its number and the regions' least distances [G], which of
    them are descended in any further, [G]. Returns the best points [G, n, *shape] and their distances [G, n].
    """
    groups, count = starts.shape[:2]
    best_x = region.project(starts)
    best = torch.full((groups, count), torch.inf, dtype=best_x.dtype, device=best_x.device)
    live, here, x = torch.arange(groups, device=best_x.device), region, best_x
    for step in range(descent.steps + 1):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            outputs = network(x.flatten(0, 1)).reshape(len(live), count, -1)
            loss = objective(outputs, live).sum()
        value = distance(outputs.detach(), live)
        found = value < best[live]
        shape = (len(live), count, *([1] * len(region.shape)))
        best = best.index_copy(0, live, torch.where(found, value, best[live]))
        best_x = best_x.index_copy(0, live, torch.where(found.reshape(shape), x.detach(), best_x[live]))
        keep = goes_on(step, best.amin(1))[live]
        if step == descent.steps or not bool(keep.any()):
            break
        (gradient,) = torch.autograd.grad(loss, x)
        if not bool(keep.all()):
            live, x, gradient = live[keep], x[keep], gradient[keep]
            here = region.take(live)
        scale = descent.stride * (descent.final / descent.stride) ** (step / max(1, descent.steps - 1))
        half = ((here.upper - here.lower) / 2).unsqueeze(1)
        x = here.project(x.detach() - scale * half * gradient.sign())
    return best_x, best
