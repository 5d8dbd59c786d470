"""One hidden layer of ReLUs over a box, bounded with the concave envelope of each over all inputs at once.

    h(x) = r x + c + sum_j a_j relu(z_j),   z = W x + b,   lower <= x <= upper,   l <= z <= u

Where a_j < 0, relu(z_j) needs something above it. Seen from z_j alone nothing is tighter than the chord. Over the box
there is (Tjandraatmadja et al. 2020, theorem 1): with inputs counted as shares t in [0, 1] of the box, each from the
end at which z_j is least, and in falling order of t, let p_1, p_2, ... be what they add to z_j between their ends. Then

    env_j(t) = relu(m) + sum_q t_q (relu(m + p_1 + .. + p_q) - relu(m + p_1 + .. + p_q-1)),   m the least z_j,

is the concave envelope: relu is convex, so what an entry adds grows with those before it. The differences are the
slopes of a plane that is above relu(z_j) on the whole box, whatever point the order was taken from.

With the envelopes h becomes convex, and each point gives a plane below it. Any mixture of such planes is below h, and
its least value over the box is a bound. What is known of z by splits (l, u) is a penalty where it is not met.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from surebound.ops.record import Interval

ROUNDS, STEPS, RATE = 16, 10, 3.0
"""Planes per group, steps on their weights after each, and how far a step goes: the logit's change for the plane that
gains most.
"""

LOOKS = frozenset({6, 10})
"""Rounds before which groups leave that are proven, or cannot be: a value of the convex function is negative."""

LEAVE = 0.75
"""They leave when at most this part would stay."""

PENALTY = 3.0
"""What it costs to miss l <= z <= u by 1, in mean coefficients."""


@dataclass(frozen=True)
class Hidden:
    """Groups of functions as above, float64: a [N, U], r [N, n], c [N]; weight [U, n], bias [U]; the boxes' lower and
    upper ends [N, n]; known: l and u [N, U].
    """

    a: Tensor
    r: Tensor
    c: Tensor
    weight: Tensor
    bias: Tensor
    lower: Tensor
    upper: Tensor
    known: Interval


class Enveloped(NamedTuple):
    """lower [N]: bounds of h; point [N, n]: where the convex function is nearly least; slope [N, n]: of the mixture,
    per width of the box; gaps [N, U]: what each neuron's envelope takes off h at the point.
    """

    lower: Tensor
    point: Tensor
    slope: Tensor
    gaps: Tensor


class Bundle(NamedTuple):
    """Planes below the convex function in shares: slopes [N, K, n], constants [N, K], logits [N, K] of the weights."""

    slopes: Tensor
    constants: Tensor
    logits: Tensor

    def joined(self, slope: Tensor, constant: Tensor) -> Bundle:
        """With one more plane [N, n], [N], of the weight of the heaviest."""
        return Bundle(
            torch.cat([self.slopes, slope.unsqueeze(1)], 1),
            torch.cat([self.constants, constant.unsqueeze(1)], 1),
            torch.cat([self.logits, self.logits.amax(1, keepdim=True)], 1),
        )

    def at(self, groups: Tensor) -> Bundle:
        """Those of some groups."""
        return Bundle(*(part[groups] for part in self))

    def mixture(self) -> tuple[Tensor, Tensor]:
        """Slope [N, n] and constant [N] of the weighted mean."""
        weights = torch.softmax(self.logits, 1)
        return torch.bmm(weights.unsqueeze(1), self.slopes).squeeze(1), (weights * self.constants).sum(1)

    def climbed(self) -> tuple[Bundle, Tensor, Tensor]:
        """After `STEPS` steps on the weights: the best bound [N] met, and the mean [N, n] of where the last half of the
        mixtures were least, which is nearly where the largest of the planes is.
        """
        logits, best = self.logits, torch.full_like(self.constants[:, 0], -torch.inf)
        spread = torch.full_like(best, 1e-30).unsqueeze(1)
        mean = torch.zeros_like(self.slopes[:, 0])
        for step in range(STEPS):
            slope, constant = self._replace(logits=logits).mixture()
            bound = slope.clamp(max=0).sum(1) + constant
            best = torch.maximum(best, bound)
            corner = (slope < 0).to(slope.dtype)
            gain = torch.bmm(self.slopes, corner.unsqueeze(2)).squeeze(2) + self.constants - bound.unsqueeze(1)
            spread = torch.maximum(spread, gain.abs().amax(1, keepdim=True))
            logits = logits + RATE / (1 + step) ** 0.5 * gain / spread
            if step >= STEPS // 2:
                mean = mean + corner / (STEPS - STEPS // 2)
        return self._replace(logits=logits - logits.amax(1, keepdim=True)), best, mean


@dataclass(frozen=True)
class Shares:
    """The functions with inputs as shares of the boxes: what h becomes for a weight per width, and the planes below it.

    l, u: what is known of z, also from the box. linear, below: coefficients of neurons that are active, and of those
    that are wanted below; own [m]: neurons that some group wants above, with the coefficients `above` [N, m], the ends
    of z over the boxes, and what each input adds, counted from its lower or its upper end, [N, m, 2 n].
    """

    own: Tensor
    weight: Tensor
    bias: Tensor
    r: Tensor
    c: Tensor
    l: Tensor  # noqa: E741 - the field's name for it
    u: Tensor
    penalty: Tensor
    linear: Tensor
    below: Tensor
    above: Tensor
    least: Tensor
    most: Tensor
    adds: Tensor

    @classmethod
    def of(cls, hidden: Hidden) -> Shares:
        """Of functions over boxes."""
        width = hidden.upper - hidden.lower
        weight = hidden.weight * width.unsqueeze(1)
        bias = hidden.lower @ hidden.weight.T + hidden.bias
        least, most = bias + weight.clamp(max=0).sum(2), bias + weight.clamp(min=0).sum(2)
        l, u = torch.maximum(hidden.known.lower, least), torch.minimum(hidden.known.upper, most)  # noqa: E741
        still, bent = torch.zeros_like(hidden.a), (l < 0) & (u > 0)
        above = torch.where(bent & (hidden.a < 0), hidden.a, still)
        own = (above != 0).any(0).nonzero().squeeze(1)
        return cls(
            own,
            weight,
            bias,
            r=hidden.r * width,
            c=hidden.c + (hidden.r * hidden.lower).sum(1),
            l=l,
            u=u,
            penalty=PENALTY * hidden.a.abs().mean(1, keepdim=True),
            linear=torch.where(l >= 0, hidden.a, still),
            below=torch.where(bent & (hidden.a > 0), hidden.a, still),
            above=above[:, own],
            least=least[:, own],
            most=most[:, own],
            adds=torch.cat([weight[:, own].clamp(min=0), -weight[:, own].clamp(max=0)], 2),
        )

    def at(self, groups: Tensor) -> Shares:
        """Those of some groups."""
        parts = {part.name: getattr(self, part.name)[groups] for part in fields(self) if part.name != "own"}
        return replace(self, **parts)

    def values(self, t: Tensor) -> Tensor:
        """z [N, U] at shares [N, n]."""
        return torch.bmm(self.weight, t.unsqueeze(2)).squeeze(2) + self.bias

    def chords(self) -> tuple[Tensor, Tensor]:
        """CROWN's plane: chords over the boxes' own intervals of z, and lines through zero."""
        chord = self.most / (self.most - self.least).clamp(min=1e-30)
        steeper = self.u > -self.l
        steep = self.linear + torch.where(steeper, self.below, torch.zeros_like(self.below))
        steep[:, self.own] += self.above * chord
        constant = self.c + (steep * self.bias).sum(1) - (self.above * chord * self.least).sum(1)
        return self.r + torch.bmm(steep.unsqueeze(1), self.weight).squeeze(1), constant

    def reached(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of shares [N, n], counted from either end: in what order inputs come [N, 2 n], the shares in that order, and
        relu of what the neurons have come to with each [N, m, 2 n].
        """
        shares, order = torch.cat([t, 1 - t], 1).sort(dim=1, descending=True)
        added = self.adds.gather(2, order.unsqueeze(1).expand(-1, self.adds.shape[1], -1))
        return order, shares, added.cumsum(2).add_(self.least.unsqueeze(2)).clamp_(min=0)

    def plane(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Slope [N, n] and constant [N] of the plane that touches the convex function at shares [N, n]."""
        z, zero = self.values(t), torch.zeros_like(self.below)
        low, high = z < self.l, z > self.u
        missed = torch.where(high, self.penalty, zero) - torch.where(low, self.penalty, zero)
        by = missed * torch.where(low, self.l, torch.where(high, self.u, zero))
        steep = self.linear + torch.where(z > 0, self.below, zero) + missed
        order, _, reached = self.reached(t)
        first = (self.above * self.least.clamp(min=0)).sum(1, keepdim=True)
        gains = torch.bmm(self.above.unsqueeze(1), reached).squeeze(1).diff(dim=1, prepend=first)
        gains = torch.zeros_like(gains).scatter(1, order, gains)
        up, down = gains.chunk(2, 1)
        slope = self.r + torch.bmm(steep.unsqueeze(1), self.weight).squeeze(1) + up - down
        return slope, self.c + (steep * self.bias - by).sum(1) + first.squeeze(1) + down.sum(1)

    def gaps(self, t: Tensor, neurons: int) -> Tensor:
        """-a_j (env_j - relu(z_j)) [N, U] at shares [N, n]."""
        _, shares, reached = self.reached(t)
        falls = -shares.diff(dim=1, append=torch.zeros_like(shares[:, :1]))
        envelope = torch.bmm(reached, falls.unsqueeze(2)).squeeze(2) + self.least.clamp(min=0) * (1 - shares[:, :1])
        found = torch.zeros(len(t), neurons, dtype=t.dtype, device=t.device)
        found[:, self.own] = -self.above * (envelope - self.values(t)[:, self.own].clamp(min=0))
        return found


def least(of: Hidden) -> Enveloped:
    """Lower bounds of h over the boxes, and what they are made of."""
    whole = part = Shares.of(of)
    slope, constant = part.chords()
    bundle = Bundle(slope.unsqueeze(1), constant.unsqueeze(1), torch.zeros_like(constant).unsqueeze(1))
    lower, t = slope.clamp(max=0).sum(1) + constant, (0.5 + (slope < 0).to(slope.dtype)) / 2
    found, point, final = lower.clone(), t.clone(), slope.clone()
    hopeful, at = torch.ones_like(lower, dtype=torch.bool), torch.arange(len(lower), device=lower.device)
    for number in range(ROUNDS):
        slope, constant = part.plane(t)
        hopeful &= (slope * t).sum(1) + constant > 0
        bundle = bundle.joined(slope, constant)
        stay = hopeful & ~(lower > 0)
        if number in LOOKS and stay.sum() <= LEAVE * len(at):
            found[at], point[at], final[at] = lower, t, bundle.mixture()[0]
            kept = stay.nonzero().squeeze(1)
            at, part, bundle = at[kept], part.at(kept), bundle.at(kept)
            lower, t, hopeful = lower[kept], t[kept], hopeful[kept]
            if not len(at):
                break
        bundle, bound, t = bundle.climbed()
        lower = torch.maximum(lower, bound)
    found[at], point[at], final[at] = lower, t, bundle.mixture()[0]
    x = torch.clamp(of.lower + point * (of.upper - of.lower), of.lower, of.upper)
    return Enveloped(found, x, final, whole.gaps(point, of.a.shape[1]))
