"""l1 and l2 balls, cut to a box of admissible inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.errors import SpecError
from surebound.linear.maps import LinearMap, merged
from surebound.regions.region import Region

BISECTIONS = 50


@dataclass(frozen=True)
class LpBall(Region):
    """{x : ||x - centre||_p <= radius, lower <= x <= upper} for p = 1 or 2 (p = inf is a `Box`).

    centre [G, *shape], radius [G]; lower and upper [G, *shape] contain the centre (infinite where free).
    """

    centre: Tensor
    radius: Tensor
    p: int
    lower: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    upper: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise SpecError(f"LpBall knows p = 1 and p = 2, got {self.p}; p = inf is a Box")
        if not bool((self.radius >= 0).all()):
            raise SpecError("the region is empty: a ball's radius must be at least 0")
        if not bool(((self.lower <= self.centre) & (self.centre <= self.upper)).all()):
            raise SpecError("a ball's centre must lie between the lower and upper limits")
        reach = self.radius.reshape(-1, *([1] * len(self.shape)))
        object.__setattr__(self, "lower", torch.maximum(self.lower, self.centre - reach))
        object.__setattr__(self, "upper", torch.minimum(self.upper, self.centre + reach))

    def room(self, a: Tensor) -> Tensor:
        """How far each coordinate may move against the sign of a [G, S, n]."""
        down, up = merged(self.centre - self.lower, 1), merged(self.upper - self.centre, 1)
        return torch.where(a > 0, down.unsqueeze(1), up.unsqueeze(1))

    def multiplier(self, a: Tensor) -> Tensor:
        """p = 2: the multiplier mu [G, S, 1] at which min(|a| / mu, room) just fits into the radius."""
        tiny = torch.finfo(a.dtype).tiny ** 0.5
        budget = self.radius[:, None, None]
        high = (a.norm(dim=-1, keepdim=True) / budget.clamp(min=tiny)).clamp(min=tiny)
        low, room, size = torch.zeros_like(high), self.room(a), a.abs()
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = torch.minimum(size / middle.clamp(min=tiny**2), room).norm(dim=-1, keepdim=True) <= budget
            high = torch.where(inside, middle, high)
            low = torch.where(inside, low, middle)
        return high.clamp(min=tiny**2)

    def steps(self, a: Tensor) -> Tensor:
        """Minimising steps from the centre for coefficients a [G, S, n], feasible up to rounding.

        p = 1: spend the radius on the largest |a| first, each coordinate up to its room (a fractional
        knapsack). p = 2: |step| = min(|a| / mu, room).
        """
        room = self.room(a)
        if self.p == 2:
            return -torch.sign(a) * torch.minimum(a.abs() / self.multiplier(a), room)
        order = a.abs().argsort(dim=-1, descending=True)
        caps = room.gather(-1, order)
        before = caps.cumsum(-1) - caps
        spent = torch.minimum((self.radius[:, None, None] - before).clamp(min=0), caps)
        return -torch.sign(a) * torch.zeros_like(room).scatter(-1, order, spent)

    def minimise(self, rows: LinearMap) -> Tensor:
        """A c + min over feasible steps; for p = 2 by its Lagrangian bound, sound for every mu > 0:

        min a d >= sum_i min_{|d_i| <= room_i} (a_i d_i + mu d_i^2 / 2) - mu radius^2 / 2.
        """
        a = merged(rows.dense(), 2)
        base = rows.dot(self.centre.unsqueeze(1))
        if self.p == 1:
            return base + (a * self.steps(a)).sum(-1)
        mu = self.multiplier(a).detach()
        best = torch.minimum(a.abs() / mu, self.room(a))
        inner = (mu * best.square() / 2 - a.abs() * best).sum(-1)
        return base + inner - mu.squeeze(-1) * self.radius[:, None].square() / 2

    def minimiser(self, rows: LinearMap) -> Tensor:
        step = self.steps(merged(rows.dense(), 2)).reshape(*rows.rows, *self.shape)
        return self.project(self.centre.unsqueeze(1) + step)

    def project(self, x: Tensor) -> Tensor:
        """Clip to the limits, then shrink towards the centre until the norm fits."""
        clipped = torch.maximum(torch.minimum(x, self.upper.unsqueeze(1)), self.lower.unsqueeze(1))
        step = clipped - self.centre.unsqueeze(1)
        size = merged(step, 2).norm(p=self.p, dim=-1)
        shrink = (self.radius[:, None] / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1)
        return self.centre.unsqueeze(1) + step * shrink.reshape(*shrink.shape, *([1] * len(self.shape)))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Directions uniform on the sphere (or simplex), radii uniform in volume, then projected."""
        noise = torch.randn(self.groups, count, *self.shape, dtype=self.centre.dtype, generator=generator)
        noise = noise.to(self.centre.device)
        size = merged(noise, 2).norm(p=self.p, dim=-1).clamp(min=torch.finfo(noise.dtype).tiny)
        reach = torch.rand(self.groups, count, dtype=self.centre.dtype, generator=generator).to(size.device)
        scale = self.radius[:, None] * reach.sqrt() / size
        step = noise * scale.reshape(*scale.shape, *([1] * len(self.shape)))
        return self.project(self.centre.unsqueeze(1) + step)

    def take(self, groups: Tensor) -> LpBall:
        return LpBall(self.centre[groups], self.radius[groups], self.p, self.lower[groups], self.upper[groups])

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> LpBall:
        parts = [value.to(device=device, dtype=dtype) for value in (self.centre, self.radius, self.lower, self.upper)]
        centre, radius, lower, upper = parts
        lower, upper = torch.minimum(lower, centre), torch.maximum(upper, centre)
        return LpBall(centre, radius, self.p, lower, upper)
