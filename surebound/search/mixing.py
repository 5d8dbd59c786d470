"""Conjunctions from linear bounds: the best convex combination of rows that are linear in the input.

Rows L_k(x) = a_k x + b_k bound the atoms s_k of a conjunction "all s_k <= 0" from below on a box. For any
weights w on the simplex, min_x sum_k w_k L_k(x) > 0 refutes it; on a piece where the network is affine
the best w is exact (Farkas). The maximum over w is concave and is climbed by mirror ascent.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 16


def combined(weights: Tensor, a: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """min_x sum_k w_k (a_k x + b_k) over boxes [N, n], and where; w [N, K], a [N, K, n], b [N, K]."""
    mixed = torch.bmm(weights.unsqueeze(1), a).squeeze(1)
    point = torch.where(mixed > 0, lower, upper)
    return (mixed * point).sum(1) + (weights * b).sum(1), point


def best_weights(a: Tensor, b: Tensor, lower: Tensor, upper: Tensor, scale: Tensor, real: Tensor) -> Tensor:
    """Weights [N, K] on the simplex that make `combined` large: the best single atom, or what mirror ascent
    finds from equal shares of s_k / scale_k, whichever is better.

    scale [N, K] > 0 makes the atoms commensurable; padded atoms (real False) get weight 0.
    """
    a, b = a / scale.unsqueeze(2), b / scale
    logits = torch.where(real, torch.zeros_like(b), -torch.inf)
    alone = torch.where(a > 0, a * lower.unsqueeze(1), a * upper.unsqueeze(1)).sum(2) + b
    best_value, first = torch.where(real, alone, -torch.inf).max(1)
    best = torch.nn.functional.one_hot(first, b.shape[1]).to(b.dtype)
    for step in range(ROUNDS):
        weights = torch.softmax(logits, 1)
        value, point = combined(weights, a, b, lower, upper)
        up = value > best_value
        best_value, best = torch.where(up, value, best_value), torch.where(up.unsqueeze(1), weights, best)
        slack = torch.bmm(a, point.unsqueeze(2)).squeeze(2) + b
        spread = torch.where(real, slack.abs(), torch.zeros_like(slack)).amax(1, keepdim=True).clamp(min=1e-30)
        logits = logits + torch.where(real, slack / spread, torch.zeros_like(slack)) * (2.0 / (1 + step) ** 0.5)
    unscaled = torch.where(real, best / scale, torch.zeros_like(best))
    return unscaled / unscaled.sum(1, keepdim=True)
