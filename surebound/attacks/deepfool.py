"""DeepFool: step by step onto the nearest of the linearised decision boundaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from surebound.attacks.adversarial import Network, margin, require_finite
from surebound.attacks.attack import Attack, Task
from surebound.attacks.balls import L2, Ball, spread
from surebound.attacks.losses import likeliest
from surebound.errors import UsageError


def gaps(network: Network, point: Tensor, labels: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The logits [n, K]; z_r - z_y of T rivals each, [n, T]; and their gradients by the pixels, [n, T, ...].

    All gradients come from one vectorised backward pass.
    """
    with torch.enable_grad():
        leaf = point.detach().requires_grad_(True)
        logits = network(leaf)
        found = logits.gather(1, rivals) - logits.gather(1, labels.unsqueeze(1))
        count = rivals.shape[1]
        rows = torch.eye(count, dtype=found.dtype, device=found.device).unsqueeze(1).expand(count, *found.shape)
        (slopes,) = torch.autograd.grad(found, leaf, rows, is_grads_batched=True)
    require_finite(slopes.transpose(0, 1), "the gradients of the logits by the images")
    return logits.detach(), found.detach(), slopes.transpose(0, 1)


@dataclass(frozen=True)
class DeepFool(Attack):
    """Moosavi-Dezfooli et al. 2016, algorithm 2, for l2.

    With f_k = z_k - z_y and w_k its gradient at the current point, the sum of steps r grows by
    |f_k| / |w_k|^2 w_k for the k of least |f_k| / |w_k|; the point is x + overshoot r, clipped to [0, 1].
    A sample stops as soon as it is misclassified, or after `steps`. classes: how many classes compete, counting
    the label; the others of largest logits at the image are taken.
    """

    minimal: ClassVar[bool] = True
    steps: int = 50
    overshoot: float = 1.02
    classes: int = 10
    ball: Ball = field(default=L2, init=False)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.classes < 2 or self.overshoot < 1:
            raise UsageError(
                "steps must be at least 1, classes at least 2 and overshoot at least 1; "
                f"got {self.steps}, {self.classes} and {self.overshoot}"
            )

    def explore(self, task: Task) -> Tensor:
        x, rivals = task.images, likeliest(task.logits, task.labels, self.classes - 1)
        point, total = x.clone(), torch.zeros_like(x)
        left = (margin(task.logits, task.labels) < 0).nonzero().squeeze(1)
        for _ in range(self.steps):
            logits, values, slopes = gaps(task.network, point[left], task.labels[left], rivals[left])
            right = margin(logits, task.labels[left]) < 0
            left, values, slopes = left[right], values[right], slopes[right]
            if len(left) == 0:
                break
            total[left] += onto_nearest(values, slopes)
            point[left] = (x[left] + self.overshoot * total[left]).clamp(0, 1)
        return point


def onto_nearest(values: Tensor, slopes: Tensor) -> Tensor:
    """The shortest of the steps |f_k| / |w_k|^2 w_k, [n, ...], for f [n, T] < 0 and w [n, T, ...].

    Rivals whose gradient is zero are out of reach; the step is zero when all are.
    """
    norms = slopes.flatten(2).norm(dim=2)
    distances = torch.where(norms > 0, values.abs() / norms, torch.inf)
    nearest = distances.argmin(1)
    each = torch.arange(len(values), device=values.device)
    distance, norm = distances[each, nearest], norms[each, nearest]
    factor = torch.where(norm > 0, distance / norm, 0)
    return spread(factor, slopes[:, 0]) * slopes[each, nearest]
