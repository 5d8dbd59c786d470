"""Loss fusion: an upper bound of log sum_k exp(z_k - z_y) over a box from one row of the network.

Xu et al. 2020, section 3.3. With bounds low_k <= d_k <= up_k of d_k = z_k - z_y, exp lies below its chord,
exp(d) <= slope_k d + intercept_k, so the sum is at most one linear function of the logits, bounded by one backward
walk. M = max_k up_k is taken out before any exponential; the sum is at least exp(d_y) = 1 and so is its bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.bounds.memory import pieces
from surebound.training.scene import Bounded

AT_ONCE = 1 << 21
"""Differences of weights, for every class and image, that are held at once."""


TINY = 1e-6


def differences(bounded: Bounded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """IBP bounds [B, K] of z_k - z_y, the last linear layer merged with the difference; 0 for k = y."""
    graph = bounded.trainee.graph
    output = graph.output
    if output.op == "linear" and graph[output.inputs[1]].op == "parameter":
        weight, *bias = (bounded.fixed[name] for name in output.inputs[1:])
        x = bounded.balls[output.inputs[0]]
        centre = F.linear(x.centre, weight, bias[0] if bias else None)
        spread = Distance.apply(weight, x.radius, labels)
    else:
        z = bounded.balls[output.name]
        centre, radius = z.centre.flatten(1), z.radius.flatten(1)
        spread = radius + radius.gather(1, labels.unsqueeze(1))
        spread = spread.scatter(1, labels.unsqueeze(1), 0.0)
    middle = centre - centre.gather(1, labels.unsqueeze(1))
    return middle - spread, middle + spread


class Distance(torch.autograd.Function):
    """(w [K, n], r [B, n], y [B]) -> sum_n |w_kn - w_yn| r_n, [B, K]; images are taken a few at a time."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, r: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(w, r, y)
        found = [torch.bmm((w - w[y[at], None]).abs_(), r[at, :, None]).squeeze(2) for at in some(w, y)]
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        w, r, y = ctx.saved_tensors
        of_w, of_r = torch.zeros_like(w), torch.empty_like(r)
        for at in some(w, y):
            apart, g = w - w[y[at], None], grad_outputs[0][at]
            of_r[at] = torch.bmm(g.unsqueeze(1), apart.abs()).squeeze(1)
            part = apart.sign_().mul_(g.unsqueeze(2)).mul_(r[at].unsqueeze(1))
            of_w += part.sum(0)
            of_w.index_add_(0, y[at], part.sum(1), alpha=-1)
        return of_w, of_r, None


def some(w: Tensor, y: Tensor) -> Iterator[slice]:
    """Pieces of the images that are worked on at once."""
    return pieces(len(y), max(1, AT_ONCE // w.numel()))


def fused(bounded: Bounded, labels: Tensor, beta: float) -> Tensor:
    """Mean over the batch of log(beta S_CROWN + (1 - beta) S_IBP), upper bounds of S = sum_k exp(z_k - z_y)."""
    low, up = differences(bounded, labels)
    top = up.amax(1, keepdim=True).detach()
    high = (up - top).exp()
    total = (1 - beta) * high.sum(1)
    if beta > 0:
        width = up - low
        chord = (high - (low - top).exp()) / width.clamp(min=TINY)
        # Where the interval is a point its upper end is the bound.
        slope = torch.where(width > TINY, chord, torch.zeros_like(chord))
        intercept = (high - slope * up).sum(1)
        own = F.one_hot(labels, up.shape[1]).to(slope.dtype)
        row = slope - own * slope.sum(1, keepdim=True)
        shape = bounded.trainee.graph.output.shape
        crown = intercept - bounded.crown(-row.reshape(len(row), 1, *shape)).squeeze(1)
        floor = (-top.squeeze(1)).exp().clamp(min=torch.finfo(up.dtype).tiny)
        total = total + beta * torch.maximum(crown, floor)
    return (total.log() + top.squeeze(1)).mean()
