"""Carlini and Wagner's attack: the shortest l2 step that changes the answer, by gradient descent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from surebound.attacks.adversarial import margin, require_finite
from surebound.attacks.attack import Attack, Task
from surebound.attacks.balls import L2, Ball, spread
from surebound.errors import UsageError

INSIDE = 1 - 1e-6
"""Pixels are drawn this little towards 1/2 before atanh, which is infinite for black and white."""

WORTHWHILE = 0.9999
"""A descent goes on while the loss falls below this part of what it was at the last look."""

LOOKS = 10
"""How often in a descent that is looked at."""


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """min |x(w) - x|_2^2 + c max(z_y - max_{j != y} z_j + confidence, 0), x(w) = (tanh(w) + 1) / 2, by Adam
    (Carlini & Wagner 2017, section VI.A).

    c starts at `weight` and, after each of `rounds` descents of `steps` steps, is multiplied by 10 until there is a
    success and halved towards the largest c without one afterwards: for each sample on its own, as is the end
    of a descent that brings nothing any more. The nearest success of all descents is kept.

    Of several classes the descent may settle on one that is not the nearest, since the maximum is not convex; and
    distances of the order of `rate` are resolved badly.
    """

    minimal: ClassVar[bool] = True
    rounds: int = 9
    steps: int = 1000
    rate: float = 0.01
    weight: float = 1e-3
    confidence: float = 0.0
    ball: Ball = field(default=L2, init=False)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise UsageError(f"rounds and steps must be at least 1, got {self.rounds} and {self.steps}")
        if not (self.rate > 0 and self.weight > 0 and self.confidence >= 0):
            raise UsageError(
                "rate and weight must be positive and confidence at least 0, "
                f"got {self.rate}, {self.weight} and {self.confidence}"
            )

    def explore(self, task: Task) -> Tensor:
        right = (margin(task.logits, task.labels) < 0).nonzero().squeeze(1)
        x, labels = task.images[right], task.labels[right]
        best, nearest = x, x.new_full((len(x),), torch.inf)
        low, high, c = torch.zeros_like(nearest), nearest, torch.full_like(nearest, self.weight)
        for _ in range(self.rounds):
            points, squares = self.descend(task, x, labels, c)
            closer = squares < nearest
            best, nearest = torch.where(spread(closer, x), points, best), torch.where(closer, squares, nearest)
            found = torch.isfinite(squares)
            low, high = torch.where(found, low, c), torch.where(found, c, high)
            c = torch.where(torch.isfinite(high), (low + high) / 2, 10 * c)
        return task.images.index_copy(0, right, best)

    def descend(self, task: Task, x: Tensor, labels: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest success met for one c per sample, and its squared distance (infinite if there was none)."""
        w = ((2 * x - 1) * INSIDE).atanh()
        adam = torch.optim.Adam([w], self.rate)
        best, nearest = x.clone(), torch.full_like(c, torch.inf)
        live, looked = torch.arange(len(x), device=x.device), torch.full_like(c, torch.inf)
        for step in range(self.steps):
            with torch.enable_grad():
                leaf = w[live].requires_grad_(True)
                points = (leaf.tanh() + 1) / 2
                squares = (points - x[live]).flatten(1).square().sum(1)
                reached = margin(task.network(points), labels[live]) - self.confidence
                losses = squares + c[live] * (-reached).clamp(min=0)
                (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            require_finite(gradient, "the gradient of the loss by the images")
            points, squares, losses = points.detach(), squares.detach(), losses.detach()
            closer = (reached.detach() >= 0) & (squares < nearest[live])
            best[live[closer]], nearest[live[closer]] = points[closer], squares[closer]
            if step % max(1, self.steps // LOOKS) == 0:
                falling = losses < WORTHWHILE * looked[live]
                looked[live] = losses
                live, gradient = live[falling], gradient[falling]
            if len(live) == 0:
                break
            w.grad = torch.zeros_like(w).index_copy(0, live, gradient)
            adam.step()
        return best, nearest
