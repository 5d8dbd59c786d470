"""Ops that move, copy or average values: affine with non-negative weights, hence monotone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from surebound.graph.ir import Site
from surebound.ops.broadcast import align, sample_axes
from surebound.ops.record import Interval, Op, always


def monotone(forward: Callable[..., Tensor]) -> Callable[..., Interval]:
    """The interval rule of a function that grows in each operand: its values at the ends."""

    def interval(site: Site, *operands: Interval) -> Interval:
        lower = forward(site, *(operand.lower for operand in operands))
        upper = forward(site, *(operand.upper for operand in operands))
        return Interval(lower, upper)

    return interval


def leading(site: Site, x: Tensor) -> tuple[int, ...]:
    """The sample axis of operand 0, if it has one."""
    return (x.shape[0],) if site.operands[0].batched else ()


def reshape(site: Site, x: Tensor) -> Tensor:
    return x.reshape((*leading(site, x), *site.attrs["shape"]))


def transpose(site: Site, x: Tensor) -> Tensor:
    lead = tuple(range(int(site.operands[0].batched)))
    return x.permute(*lead, *sample_axes(site, site.attrs["perm"]))


def expand(site: Site, x: Tensor) -> Tensor:
    shape = site.attrs["shape"]
    return align(site.operands[0], x, len(shape)).expand((*leading(site, x), *shape))


def concat(site: Site, *values: Tensor) -> Tensor:
    batch = max((v.shape[0] for node, v in zip(site.operands, values, strict=True) if node.batched), default=None)
    if batch is None:
        return torch.cat(values, site.attrs["axis"])
    parts = [value.expand(batch, *node.shape) for node, value in zip(site.operands, values, strict=True)]
    return torch.cat(parts, site.attrs["axis"] + 1)


def take_slice(site: Site, x: Tensor) -> Tensor:
    (axis,) = sample_axes(site, (site.attrs["axis"],))
    index = [slice(None)] * x.dim()
    index[axis] = slice(site.attrs["start"], site.attrs["stop"], site.attrs["step"])
    return x[tuple(index)]


@lru_cache(maxsize=64)
def numbers(indices: tuple[int, ...]) -> NDArray[np.int64]:
    """Indices as an array, made once: there may be thousands of them in a network that a search walks often."""
    return np.asarray(indices, np.int64)


def positions(indices: Sequence[int]) -> Tensor:
    """Indices as a tensor of its own: one that was made in inference mode, say, could not be used outside of it."""
    return torch.from_numpy(numbers(tuple(indices)))


def gather(site: Site, x: Tensor) -> Tensor:
    (axis,) = sample_axes(site, (site.attrs["axis"],))
    return x.index_select(axis, positions(site.attrs["indices"]).to(x.device))


def total(site: Site, x: Tensor) -> Tensor:
    return x.sum(sample_axes(site, site.attrs["axes"]), keepdim=site.attrs["keepdim"])


def mean(site: Site, x: Tensor) -> Tensor:
    return x.mean(sample_axes(site, site.attrs["axes"]), keepdim=site.attrs["keepdim"])


def pad(site: Site, x: Tensor) -> Tensor:
    widths = [width for pair in reversed(site.attrs["pads"]) for width in pair]
    return F.pad(x, widths, value=site.attrs["value"])


def avg_pool2d(site: Site, x: Tensor) -> Tensor:
    a = site.attrs
    return F.avg_pool2d(x, a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"])


RESHAPE = {
    name: Op(forward, always, monotone(forward))
    for name, forward in {
        "reshape": reshape,
        "transpose": transpose,
        "expand": expand,
        "concat": concat,
        "slice": take_slice,
        "gather": gather,
        "sum": total,
        "mean": mean,
        "pad": pad,
        "avg_pool2d": avg_pool2d,
    }.items()
}
