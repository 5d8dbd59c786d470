"""Affine ops with weights: linear, matmul, convolution, its transpose, batch norm, element-wise arithmetic, padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.broadcast import aligned
from surebound.ops.record import Interval, Op, always, at_most_one, only_first


def centre_and_radius(x: Interval) -> tuple[Tensor, Tensor]:
    """c and r with c - r <= lower and upper <= c + r in the arithmetic at hand, however far apart the ends are."""
    centre = (x.lower + x.upper) / 2
    radius = torch.maximum(x.upper - centre, centre - x.lower)
    short = (centre - radius > x.lower) | (centre + radius < x.upper)
    return centre, torch.where(short, radius * (1 + 2 * torch.finfo(radius.dtype).eps), radius)


def centred(apply: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Interval, w: Interval, b: Interval | None):
    """Interval of w x + b for fixed w and b:  w c + b -+ |w| r  with centre c and radius r (IBP)."""
    if not w.point or (b is not None and not b.point):
        raise NotImplementedError("interval of a product of two perturbed operands")
    centre, radius = centre_and_radius(x)
    middle = apply(centre, w.lower, None if b is None else b.lower)
    spread = apply(radius, w.lower.abs(), None)
    return Interval(middle - spread, middle + spread)


def linear_forward(site: Site, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """x w' + b over the last axis."""
    return F.linear(x, w, b)


def linear_interval(site: Site, x: Interval, w: Interval, b: Interval | None = None) -> Interval:
    return centred(F.linear, x, w, b)


def matmul_forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


def matmul_interval(site: Site, x: Interval, y: Interval) -> Interval:
    if y.point:
        return centred(lambda a, w, _: torch.matmul(a, w), x, y, None)
    return centred(lambda a, w, _: torch.matmul(w, a), y, x, None)


def convolve(site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The site's convolution as a function of (x, weight, bias)."""
    a = site.attrs
    return lambda x, w, b: F.conv2d(x, w, b, a["stride"], a["padding"], a["dilation"], a["groups"])


def conv2d_forward(site: Site, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return convolve(site)(x, w, b)


def conv2d_interval(site: Site, x: Interval, w: Interval, b: Interval | None = None) -> Interval:
    return centred(convolve(site), x, w, b)


def deconvolve(site: Site) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The site's transposed convolution as a function of (x, weight, bias)."""
    a = site.attrs
    return lambda x, w, b: F.conv_transpose2d(
        x, w, b, a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"]
    )


def conv_transpose2d_forward(site: Site, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return deconvolve(site)(x, w, b)


def conv_transpose2d_interval(site: Site, x: Interval, w: Interval, b: Interval | None = None) -> Interval:
    return centred(deconvolve(site), x, w, b)


def norm_scale(site: Site, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation is x s + t per channel; s and t shaped to broadcast over the sample's axes."""
    scale = weight / torch.sqrt(var + site.attrs["eps"])
    shift = bias - mean * scale
    tail = (1,) * (len(site.shape) - 1)
    return scale.reshape(-1, *tail), shift.reshape(-1, *tail)


def batch_norm_forward(site: Site, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    scale, shift = norm_scale(site, weight, bias, mean, var)
    return x * scale + shift


def batch_norm_interval(site: Site, x: Interval, *statistics: Interval) -> Interval:
    scale, shift = norm_scale(site, *(value.lower for value in statistics))
    return centred(lambda a, w, b: a * w if b is None else a * w + b, x, Interval(scale, scale), Interval(shift, shift))


def add_forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return x + y


def add_interval(site: Site, x: Interval, y: Interval) -> Interval:
    return Interval(add_forward(site, x.lower, y.lower), add_forward(site, x.upper, y.upper))


def sub_forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return x - y


def sub_interval(site: Site, x: Interval, y: Interval) -> Interval:
    return Interval(sub_forward(site, x.lower, y.upper), sub_forward(site, x.upper, y.lower))


def neg_forward(site: Site, x: Tensor) -> Tensor:
    return -x


def neg_interval(site: Site, x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


def mul_forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return x * y


def mul_interval(site: Site, x: Interval, y: Interval) -> Interval:
    corners = [mul_forward(site, a, b) for a in set_of(x) for b in set_of(y)]
    return Interval(minimum_of(corners), maximum_of(corners))


def div_forward(site: Site, x: Tensor, y: Tensor) -> Tensor:
    x, y = aligned(site, (x, y))
    return x / y


def div_interval(site: Site, x: Interval, y: Interval) -> Interval:
    if not y.point:
        raise NotImplementedError("interval of a division by a perturbed operand")
    corners = [div_forward(site, a, y.lower) for a in set_of(x)]
    return Interval(minimum_of(corners), maximum_of(corners))


def set_of(x: Interval) -> tuple[Tensor, ...]:
    """The distinct ends of an interval."""
    return (x.lower,) if x.point else (x.lower, x.upper)


def minimum_of(values: list[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.minimum(result, value)
    return result


def maximum_of(values: list[Tensor]) -> Tensor:
    result = values[0]
    for value in values[1:]:
        result = torch.maximum(result, value)
    return result


def where_forward(site: Site, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    condition, x, y = aligned(site, (condition, x, y))
    return torch.where(condition, x, y)


def where_interval(site: Site, condition: Interval, x: Interval, y: Interval) -> Interval:
    mask = condition.lower
    return Interval(where_forward(site, mask, x.lower, y.lower), where_forward(site, mask, x.upper, y.upper))


def max_merge_forward(site: Site, b: Tensor, r: Tensor, a: Tensor) -> Tensor:
    """max(a, b) as b + r, where r = relu(a - b) is a node of its own; a only serves the interval."""
    return b + r


def max_merge_interval(site: Site, b: Interval, r: Interval, a: Interval) -> Interval:
    return Interval(torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


def condition_fixed(perturbed: tuple[bool, ...]) -> bool:
    """Affine in both branches while the condition is fixed."""
    return not perturbed[0]


AFFINE = {
    "linear": Op(linear_forward, only_first, linear_interval),
    "matmul": Op(matmul_forward, at_most_one, matmul_interval),
    "conv2d": Op(conv2d_forward, only_first, conv2d_interval),
    "conv_transpose2d": Op(conv_transpose2d_forward, only_first, conv_transpose2d_interval),
    "batch_norm": Op(batch_norm_forward, only_first, batch_norm_interval),
    "add": Op(add_forward, always, add_interval),
    "sub": Op(sub_forward, always, sub_interval),
    "neg": Op(neg_forward, always, neg_interval),
    "mul": Op(mul_forward, at_most_one, mul_interval),
    "div": Op(div_forward, only_first, div_interval),
    "where": Op(where_forward, condition_fixed, where_interval),
    "max_merge": Op(max_merge_forward, always, max_merge_interval),
}
