"""Transposing affine ops: `pull(site, ...)` turns rows over an op's value into rows over its operands.

For an op affine in its perturbed operands, y = J x + f(0), a row A y becomes (A J) x + A f(0). The default
obtains A J as a vector-Jacobian product and f(0) by running the op on zeros; the rules in `FAST`, and those
in `WINDOWED` for maps that read little of a feature map, are optimisations that the tests hold equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Node, Site
from surebound.linear.conv import Shape, conv_transpose
from surebound.linear.maps import Columns, Dense, LinearMap, Rows, merged
from surebound.linear.patches import Patches, Windows, single_windows
from surebound.linear.sparse import is_sparse, times
from surebound.ops.affine import norm_scale
from surebound.ops.reshape import positions

Maps = Sequence[LinearMap | None]
Pulled = tuple[Maps, Tensor | None]
"""One map per operand (None where it is not perturbed) and the constant A f(0) [G, S], None for zero."""

Values = Sequence[Tensor | None]
"""Operand values, None for the perturbed: unbatched [*shape], batched [G or 1, *shape]."""

Forward = Callable[..., Tensor]

Rule = Callable[[Site, Values, LinearMap], Pulled | None]
"""A transpose by hand; None where it does not apply."""

Convolved = Callable[[Site, Any, Tensor, Mapping[str, Any]], LinearMap]
"""Rows of one form over a convolution's result, its weight and its attributes -> rows over its operand."""


def pull(site: Site, forward: Forward, values: Values, rows: LinearMap, live: Tensor | None = None) -> Pulled:
    """Rows over the operands of an op that is affine in the operands whose value is None.

    live [G, n]: flat positions at which operand 0 may differ from zero; a rule may leave out the others.
    """
    if live is not None and site.node.op == "linear" and vector(site.shape) and not sparse_layer(values):
        return pull_linear_columns(site, values, rows, live)
    for rule in (WINDOWED.get((site.node.op, type(rows))), FAST.get(site.node.op)):
        pulled = None if rule is None else rule(site, values, rows)
        if pulled is not None:
            return pulled
    return transpose(site, forward, values, rows)


def transpose(site: Site, forward: Forward, values: Values, rows: LinearMap) -> Pulled:
    """The rule that needs no rule: A J by a vector-Jacobian product, f(0) by evaluation."""
    groups, count = rows.rows
    spread = []
    zeros = []
    for node, value in zip(site.operands, values, strict=True):
        if value is None:
            like = torch.zeros(groups * count, *node.shape, dtype=rows.dtype, device=rows.device)
            spread.append(like)
            zeros.append(torch.zeros(1, *node.shape, dtype=rows.dtype, device=rows.device))
        elif node.batched:
            spread.append(value.unsqueeze(1).expand(groups, count, *node.shape).reshape(-1, *node.shape))
            zeros.append(value)
        else:
            spread.append(value)
            zeros.append(value)
    moving = [i for i, value in enumerate(values) if value is None]

    def of_moving(*operands: Tensor) -> Tensor:
        full = list(spread)
        for i, operand in zip(moving, operands, strict=True):
            full[i] = operand
        return forward(site, *full)

    back = torch.func.vjp(of_moving, *(spread[i] for i in moving))[1]
    gradients = back(rows.dense().reshape(groups * count, *site.shape))
    maps: list[LinearMap | None] = [None] * len(values)
    for i, gradient in zip(moving, gradients, strict=True):
        maps[i] = Dense(gradient.reshape(groups, count, *site.operands[i].shape))
    return maps, rows.dot(forward(site, *zeros).unsqueeze(1))


def reduce_to(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum [G, S, *broadcast shape] down to [G, S, *shape]: the transpose of broadcasting."""
    extra = rows.dim() - 2 - len(shape)
    if extra:
        rows = rows.sum(tuple(range(2, 2 + extra)))
    axes = tuple(i + 2 for i, size in enumerate(shape) if size == 1 and rows.shape[i + 2] != 1)
    return rows.sum(axes, keepdim=True) if axes else rows


def onto(site: Site, node: Node, rows: LinearMap) -> LinearMap:
    """Rows over the result of a broadcasting op as rows over one operand."""
    if node.shape == site.shape:
        return rows
    if prod(node.shape) == prod(site.shape):
        return rows.reshaped(node.shape)
    return Dense(reduce_to(rows.dense(), node.shape))


def constant(site: Site, node: Node, value: Tensor) -> Tensor:
    """An unperturbed operand as [G or 1, 1, *shape], a shape that broadcasts to the result's."""
    lead = value.shape[0] if node.batched else 1
    missing = len(site.shape) - len(node.shape)
    return value.reshape(lead, 1, *([1] * missing), *node.shape)


def sparse_layer(values: Values) -> bool:
    """Is the weight of a linear layer one of the sparse ones?"""
    return values[1] is not None and is_sparse(values[1])


def pull_linear(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
        return None
    if isinstance(rows, Columns) and vector(rows.shape):
        pulled = torch.bmm(rows.coefficients, weight[rows.index])
        added = None if bias is None else rows.dot(bias.expand(1, 1, *site.shape))
    elif isinstance(rows, Rows) and vector(rows.shape):
        pulled = weight[rows.index] * rows.coefficients.unsqueeze(-1)
        added = None if bias is None else bias[rows.index] * rows.coefficients
    else:
        dense = rows.dense()
        pulled = times(dense, weight)
        added = None if bias is None else (dense @ bias).reshape(*rows.rows, -1).sum(-1)
    return [Dense(pulled.reshape(*rows.rows, *site.operands[0].shape))] + [None] * (len(values) - 1), added


def vector(shape: Sequence[int]) -> bool:
    """Does only the last axis hold more than one value?"""
    return prod(shape[:-1]) == 1


def pull_linear_columns(site: Site, values: Values, rows: LinearMap, live: Tensor) -> Pulled:
    """Rows over the live entries of a linear layer's operand: products with the part of the weights in use."""
    weight, bias = values[1], values[2] if len(values) > 2 else None
    assert weight is not None
    if isinstance(rows, Rows | Columns):
        used = weight[rows.index.unsqueeze(2), live.unsqueeze(1)]
    else:
        used = weight.t()[live].transpose(1, 2)
    if isinstance(rows, Rows):
        pulled = used * rows.coefficients.unsqueeze(2)
    else:
        pulled = torch.bmm(merged(rows.coefficients, 2), used)
    added = None if bias is None else rows.dot(bias.expand(1, 1, *site.shape))
    return [Columns(live, pulled, site.operands[0].shape)] + [None] * (len(values) - 1), added


def shape_of(attrs: Mapping[str, Any], size: Sequence[int]) -> Shape:
    """A convolution's attributes, and the height and width of its operand."""
    return Shape(attrs["stride"], attrs["padding"], attrs["dilation"], attrs["groups"], (size[0], size[1]))


def pull_conv2d(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
        return None
    a, into = site.attrs, site.operands[0].shape
    dense = rows.dense().flatten(0, 1)
    pulled, added = conv_transpose(dense, weight, bias, shape_of(a, into[1:]))
    return [Dense(pulled.reshape(*rows.rows, *into))] + [None] * (len(values) - 1), added.reshape(rows.rows)


def pull_conv_transpose2d(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    """The convolution that the transposed one is made from; its last pixels may be of `output_padding` only."""
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
        return None
    a, into = site.attrs, site.operands[0].shape
    dense = rows.dense()
    pulled = F.conv2d(dense.flatten(0, 1), weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])
    pulled = pulled[:, :, : into[1], : into[2]]
    added = None if bias is None else rows.dot(bias.reshape(1, 1, -1, 1, 1))
    return [Dense(pulled.reshape(*rows.rows, *into))] + [None] * (len(values) - 1), added


def pull_batch_norm(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    if values[0] is not None:
        return None
    weight, bias, mean, var = values[1:]
    assert weight is not None and bias is not None and mean is not None and var is not None
    scale, shift = norm_scale(site, weight, bias, mean, var)
    maps: list[LinearMap | None] = [rows.scaled(scale[None, None]), None, None, None, None]
    return maps, rows.dot(shift[None, None])


def pull_add(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return pull_signed_sum(site, values, rows, negate_second=False)


def pull_sub(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return pull_signed_sum(site, values, rows, negate_second=True)


def pull_signed_sum(site: Site, values: Values, rows: LinearMap, negate_second: bool) -> Pulled:
    maps: list[LinearMap | None] = []
    added = None
    for i, (node, value) in enumerate(zip(site.operands, values, strict=True)):
        minus = negate_second and i == 1
        if value is None:
            maps.append(onto(site, node, rows.negated() if minus else rows))
        else:
            maps.append(None)
            added = rows.dot(constant(site, node, -value if minus else value))
    return maps, added


def pull_neg(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return [rows.negated()], None


def pull_factor(site: Site, values: Values, rows: LinearMap, factor: Tensor, moving: int) -> Pulled:
    maps: list[LinearMap | None] = [None, None]
    maps[moving] = onto(site, site.operands[moving], rows.scaled(factor))
    return maps, None


def pull_mul(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    moving = 0 if values[0] is None else 1
    value = values[1 - moving]
    return None if value is None else pull_factor(
        site, values, rows, constant(site, site.operands[1 - moving], value), moving
    )  # fmt: skip


def pull_div(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    value = values[1]
    return None if value is None else pull_factor(
        site, values, rows, 1 / constant(site, site.operands[1], value), 0
    )  # fmt: skip


def pull_reshape(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return [rows.reshaped(site.operands[0].shape)], None


def pull_max_merge(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    """b + r; the third operand has no coefficient."""
    if any(value is not None for value in values[:2]):
        return None
    return [*(onto(site, node, rows) for node in site.operands[:2]), None], None


def pull_product(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """The same coefficients for both halves; the factors have none."""
    terms = site.operands[0].shape
    dense = rows.dense().unsqueeze(2)
    return [Dense(dense.expand(*rows.rows, *terms)), None, None], None


def kernel_of_rows(weight: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    """What one result of a convolution reads in its window: [out, in / groups, *kernel] as [out, in, kh, kw]."""
    groups, (down, across) = attrs["groups"], attrs["dilation"]
    if groups == 1 and down == across == 1:
        return weight
    count, channels, height, width = weight.shape
    size = (down * (height - 1) + 1, across * (width - 1) + 1)
    kernel = weight.new_zeros(groups, count // groups, groups, channels, *size)
    each = torch.arange(groups, device=weight.device)
    kernel[each, :, each, :, ::down, ::across] = weight.reshape(groups, count // groups, *weight.shape[1:])
    return kernel.reshape(count, groups * channels, *size)


def windows_of_operand(site: Site, windows: Windows, kernel: tuple[int, int], attrs: Mapping[str, Any]) -> Windows:
    """The windows of a convolution's operand that windows of its result read."""
    shape = site.operands[0].shape
    return windows.of_operand(shape, kernel, attrs["stride"], attrs["padding"], attrs["dilation"])


def convolved_rows(site: Site, rows: Rows, weight: Tensor, attrs: Mapping[str, Any]) -> LinearMap:
    """Single neurons of a convolution over its operand: each row is its channel's kernel, placed."""
    start = single_windows(rows)
    windows = windows_of_operand(site, start, (weight.shape[2], weight.shape[3]), attrs)
    channel = start.anchors.channel.flatten()
    kernels = kernel_of_rows(weight, attrs).index_select(0, channel).unflatten(0, rows.rows)
    return Patches(windows.cut(kernels * rows.coefficients[..., None, None, None]), windows).kept()


def convolved_patches(site: Site, rows: Patches, weight: Tensor, attrs: Mapping[str, Any]) -> LinearMap:
    """Windows of a convolution's result over its operand: every window is pulled back by itself."""
    windows = windows_of_operand(site, rows.windows, (weight.shape[2], weight.shape[3]), attrs)
    shape = shape_of({**attrs, "padding": (0, 0)}, windows.size)
    pulled, _ = conv_transpose(rows.coefficients.flatten(0, 1), weight, None, shape)
    return Patches(windows.cut(pulled.unflatten(0, rows.rows)), windows).kept()


def conv_rule(convolved: Convolved) -> Rule:
    """The rule of conv2d for one form of rows."""

    def rule(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
        weight, bias = values[1], values[2] if len(values) > 2 else None
        if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
            return None
        added = None if bias is None else rows.dot(bias[None, None, :, None, None])
        return [convolved(site, rows, weight, site.attrs)] + [None] * (len(values) - 1), added

    return rule


def pool_rule(convolved: Convolved) -> Rule:
    """The rule of avg_pool2d for one form of rows: a convolution of each channel with a constant kernel.

    Not where the divisor differs from window to window: padding that does not count, or windows that
    `ceil_mode` lets hang over the padding.
    """

    def rule(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
        a, shape = site.attrs, site.operands[0].shape
        inside = all(
            (site.shape[1 + i] - 1) * a["stride"][i] + a["kernel"][i] <= shape[1 + i] + 2 * a["padding"][i]
            for i in (0, 1)
        )
        if not inside or not (a["count_include_pad"] or tuple(a["padding"]) == (0, 0)):
            return None
        share = torch.full((shape[0], 1, *a["kernel"]), 1 / prod(a["kernel"]), dtype=rows.dtype, device=rows.device)
        depthwise = {"stride": a["stride"], "padding": a["padding"], "dilation": (1, 1), "groups": shape[0]}
        return [convolved(site, rows, share, depthwise)], None

    return rule


def pull_pad_windows(site: Site, values: Values, rows: Patches) -> Pulled | None:
    """Padding of rows and columns: the windows move, and what they read of the padding is a constant."""
    pads = site.attrs["pads"]
    if len(pads) != 3 or tuple(pads[0]) != (0, 0):
        return None
    (top, left), (_, down, across) = rows.windows.offset, pads
    windows = replace(rows.windows, shape=site.operands[0].shape, offset=(top - down[0], left - across[0]))
    added = None
    if windows.overhang is not None and site.attrs["value"] != 0:
        padding = torch.where(windows.overhang, rows.coefficients, 0)
        added = padding.sum((2, 3, 4)) * site.attrs["value"]
    return [Patches(windows.cut(rows.coefficients.clone()), windows).kept()], added


def pull_concat(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    """Each operand gets its part of the coefficients."""
    if any(value is not None for value in values):
        return None
    axis = site.attrs["axis"] + 2
    return [Dense(part) for part in rows.dense().split([node.shape[axis - 2] for node in site.operands], axis)], None


def pull_gather(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    """Coefficients go back to where the values came from."""
    node, axis = site.operands[0], site.attrs["axis"] + 2
    index = positions(site.attrs["indices"]).to(rows.device)
    zeros = torch.zeros(*rows.rows, *node.shape, dtype=rows.dtype, device=rows.device)
    return [Dense(zeros.index_add(axis, index, rows.dense()))], None


def pull_transpose(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """The axes back in their old order."""
    perm = site.attrs["perm"]
    back = sorted(range(len(perm)), key=lambda axis: perm[axis])
    return [Dense(rows.dense().permute(0, 1, *(axis + 2 for axis in back)))], None


def pull_expand(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """Sums over what was repeated."""
    return [onto(site, site.operands[0], rows)], None


def pull_sum(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """The same coefficient for all that was added."""
    shape, axes = site.operands[0].shape, site.attrs["axes"]
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return [Dense(rows.dense().reshape(*rows.rows, *kept).expand(*rows.rows, *shape))], None


def pull_mean(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """The same part of the coefficient for all that was averaged."""
    (added,), none = pull_sum(site, values, rows)
    assert added is not None
    count = prod(site.operands[0].shape[axis] for axis in site.attrs["axes"])
    return [added.holding(added.coefficients / count)], none


def pull_slice(site: Site, values: Values, rows: LinearMap) -> Pulled:
    """Zeros where nothing was read."""
    node, a = site.operands[0], site.attrs
    zeros = torch.zeros(*rows.rows, *node.shape, dtype=rows.dtype, device=rows.device)
    place = (slice(None),) * (a["axis"] + 2)
    zeros[(*place, slice(a["start"], a["stop"], a["step"]))] = rows.dense()
    return [Dense(zeros)], None


FAST: dict[str, Rule] = {
    "linear": pull_linear,
    "conv2d": pull_conv2d,
    "conv_transpose2d": pull_conv_transpose2d,
    "batch_norm": pull_batch_norm,
    "add": pull_add,
    "sub": pull_sub,
    "neg": pull_neg,
    "mul": pull_mul,
    "div": pull_div,
    "reshape": pull_reshape,
    "max_merge": pull_max_merge,
    "product": pull_product,
    "concat": pull_concat,
    "gather": pull_gather,
    "transpose": pull_transpose,
    "expand": pull_expand,
    "sum": pull_sum,
    "mean": pull_mean,
    "slice": pull_slice,
}
"""Hand-written transposes by op; a rule returns None where it does not apply."""

WINDOWED: dict[tuple[str, type[LinearMap]], Callable[[Site, Values, Any], Pulled | None]] = {
    ("conv2d", Rows): conv_rule(convolved_rows),
    ("conv2d", Patches): conv_rule(convolved_patches),
    ("avg_pool2d", Rows): pool_rule(convolved_rows),
    ("avg_pool2d", Patches): pool_rule(convolved_patches),
    ("pad", Patches): pull_pad_windows,
}
"""Transposes that keep rows on windows, by op and form of the rows; they come before those of `FAST`."""
