"""Transposing affine ops: `pull(site, ...)` turns rows over an op's value into rows over its operands.

For an op affine in its perturbed operands, y = J x + f(0), a row A y becomes (A J) x + A f(0). The default
obtains A J as a vector-Jacobian product and f(0) by running the op on zeros; the rules in `FAST` are
optimisations that the tests hold equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from surebound.graph.ir import Node, Site
from surebound.linear.maps import Dense, LinearMap, Rows
from surebound.ops.affine import norm_scale

Maps = Sequence[LinearMap | None]
Pulled = tuple[Maps, Tensor | None]
"""One map per operand (None where it is not perturbed) and the constant A f(0) [G, S], None for zero."""

Values = Sequence[Tensor | None]
"""Operand values, None for the perturbed: unbatched [*shape], batched [G or 1, *shape]."""

Forward = Callable[..., Tensor]


def pull(site: Site, forward: Forward, values: Values, rows: LinearMap) -> Pulled:
    """Rows over the operands of an op that is affine in the operands whose value is None."""
    rule = FAST.get(site.node.op)
    pulled = None if rule is None else rule(site, values, rows)
    return transpose(site, forward, values, rows) if pulled is None else pulled


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
    """An unperturbed operand as [G or 1, 1, *result shape]."""
    lead = value.shape[0] if node.batched else 1
    missing = len(site.shape) - len(node.shape)
    return value.reshape(lead, 1, *([1] * missing), *node.shape).expand(lead, 1, *site.shape)


def pull_linear(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
        return None
    if isinstance(rows, Rows) and len(rows.shape) == 1:
        pulled = weight[rows.index] * rows.coefficients.unsqueeze(-1)
        added = None if bias is None else bias[rows.index] * rows.coefficients
    else:
        dense = rows.dense()
        pulled = dense @ weight
        added = None if bias is None else (dense @ bias).reshape(*rows.rows, -1).sum(-1)
    return [Dense(pulled)] + [None] * (len(values) - 1), added


def pull_conv2d(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    weight, bias = values[1], values[2] if len(values) > 2 else None
    if weight is None or values[0] is not None or (len(values) > 2 and bias is None):
        return None
    a, into = site.attrs, site.operands[0].shape
    dense = rows.dense().flatten(0, 1)
    missing = [
        into[1 + i] - ((dense.shape[2 + i] - 1) * a["stride"][i] - 2 * a["padding"][i])
        - a["dilation"][i] * (weight.shape[2 + i] - 1) - 1
        for i in (0, 1)
    ]  # fmt: skip
    pulled = F.conv_transpose2d(dense, weight, None, a["stride"], a["padding"], missing, a["groups"], a["dilation"])
    added = None if bias is None else (dense.sum((2, 3)) @ bias).reshape(rows.rows)
    return [Dense(pulled.reshape(*rows.rows, *into))] + [None] * (len(values) - 1), added


def pull_batch_norm(site: Site, values: Values, rows: LinearMap) -> Pulled | None:
    if values[0] is not None:
        return None
    weight, bias, mean, var = values[1:]
    assert weight is not None and bias is not None and mean is not None and var is not None
    scale, shift = norm_scale(site, weight, bias, mean, var)
    scale = scale.expand(site.shape)[None, None]
    maps: list[LinearMap | None] = [rows.scaled(scale), None, None, None, None]
    shift = shift.expand(site.shape)[None, None]
    return maps, rows.dot(shift)


def pull_add(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return pull_signed_sum(site, values, rows, negate_second=False)


def pull_sub(site: Site, values: Values, rows: LinearMap) -> Pulled:
    return pull_signed_sum(site, values, rows, negate_second=True)


def pull_signed_sum(site: Site, values: Values, rows: LinearMap, negate_second: bool) -> Pulled:
    maps: list[LinearMap | None] = []
    added = None
    for i, (node, value) in enumerate(zip(site.operands, values, strict=True)):
        signed = rows.negated() if negate_second and i == 1 else rows
        if value is None:
            maps.append(onto(site, node, signed))
        else:
            maps.append(None)
            added = signed.dot(constant(site, node, value))
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
    maps: list[LinearMap | None] = [rows if value is None else None for value in values[:2]]
    fixed = [value for value in values[:2] if value is not None]
    return None if fixed else ([*maps, None], None)


FAST: dict[str, Callable[[Site, Values, LinearMap], Pulled | None]] = {
    "linear": pull_linear,
    "conv2d": pull_conv2d,
    "batch_norm": pull_batch_norm,
    "add": pull_add,
    "sub": pull_sub,
    "neg": pull_neg,
    "mul": pull_mul,
    "div": pull_div,
    "reshape": pull_reshape,
    "max_merge": pull_max_merge,
}
"""Hand-written transposes by op; a rule returns None where it does not apply."""
