"""The transpose of a convolution, in the form that is fastest for its shape, with a written gradient.

Libraries compute transposed convolutions with few output channels (an image's 1 or 3) at a tenth of the speed
of convolutions. Those are computed here as one convolution that gives whole blocks of output pixels as
channels, which are then dealt out (Shi et al. 2016, sub-pixel convolution).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 8
"""Output channels below which blocks are computed, and that a block should make of them."""


class Shape(NamedTuple):
    """Attributes of the convolution that is transposed, and the height and width of its input."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]


def direct(rows: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """By the library's transposed convolution."""
    stride, padding, dilation, groups, size = shape
    missing = [
        size[i] - ((rows.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + 1)
        for i in (0, 1)
    ]
    return F.conv_transpose2d(rows, weight, None, stride, padding, missing, groups, dilation)


def block_of(stride: tuple[int, int], channels: int) -> tuple[int, int]:
    """Height and width of a block: multiples of the strides that make FEW channels or more."""
    high, wide = stride
    while channels * high * wide < FEW:
        high, wide = high + stride[0], wide + stride[1]
    return high, wide


@lru_cache(maxsize=256)
def taps(size: int, stride: int, block: int) -> Tensor:
    """Along one axis, which of a kernel's `size` taps output a of a block takes from the rows' entry e, [a, e].

    Output block j + a collects entry (block / stride) j + e with tap a - stride e; `size` stands for none.
    """
    entry = torch.arange(-((size - 1) // stride), block // stride)
    tap = torch.arange(block).unsqueeze(1) - stride * entry
    return torch.where((tap >= 0) & (tap < size), tap, size)


def blocked(rows: Tensor, weight: Tensor, shape: Shape) -> Tensor:
    """By a convolution that computes blocks of output pixels; ungrouped, undilated."""
    block = block_of(shape.stride, weight.shape[1])
    entries, channels = weight.shape[:2]
    down, across = (taps(weight.shape[2 + i], shape.stride[i], block[i]).to(weight.device) for i in (0, 1))
    both = F.pad(weight, (0, 1, 0, 1))[:, :, down[:, :, None, None], across]  # [co, ci, a, e, b, f]
    kernel = both.permute(1, 2, 4, 0, 3, 5).reshape(-1, entries, both.shape[3], both.shape[5])
    steps = [block[i] // shape.stride[i] for i in (0, 1)]
    before = [(weight.shape[2 + i] - 1) // shape.stride[i] for i in (0, 1)]
    odd = [(rows.shape[2 + i] + before[i]) % steps[i] for i in (0, 1)]
    if any(odd):
        rows = F.pad(rows, (0, steps[1] - odd[1] if odd[1] else 0, 0, steps[0] - odd[0] if odd[0] else 0))
    found = F.conv2d(rows, kernel, None, steps, before)
    found = found.reshape(len(rows), channels, *block, *found.shape[2:]).permute(0, 1, 4, 2, 5, 3)
    found = found.reshape(len(rows), channels, block[0] * found.shape[2], block[1] * found.shape[4])
    (top, left), (height, width) = shape.padding, shape.size
    short = top + height - found.shape[2], left + width - found.shape[3]
    if max(short) > 0:
        found = F.pad(found, (0, max(0, short[1]), 0, max(0, short[0])))
    if found.shape[2:] == (height, width):
        return found
    return found[:, :, top : top + height, left : left + width].clone(memory_format=torch.contiguous_format)


class ConvTranspose(torch.autograd.Function):
    """rows [N, co, h, w], weight [co, ci/groups, kh, kw], bias [co] or None -> A J [N, ci, *size] and A b [N] for a
    convolution's rows A.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
        ctx.shape = shape
        sums, added = None, rows.new_zeros(len(rows))
        if bias is not None:
            sums = rows.sum((2, 3))
            added = sums @ bias
        ctx.save_for_backward(rows if weight.requires_grad else None, sums, weight, bias)
        few = weight.shape[1] < FEW and shape.groups == 1 and tuple(shape.dilation) == (1, 1)
        found = (blocked if few else direct)(rows, weight, shape)
        return found.clone() if found._is_view() else found, added  # the caller may write into it

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (g, c), (rows, sums, weight, bias), shape = grad_outputs, ctx.saved_tensors, ctx.shape
        attributes = shape.stride, shape.padding, shape.dilation, shape.groups
        of_rows = of_weight = None
        if ctx.needs_input_grad[0]:
            of_rows = F.conv2d(g, weight, None, *attributes)
            if bias is not None:
                of_rows.add_((c.unsqueeze(1) * bias)[..., None, None])
        if ctx.needs_input_grad[1]:
            of_weight = torch.nn.grad.conv2d_weight(  # pyright: ignore[reportAttributeAccessIssue]
                g, weight.shape, rows, *attributes
            )
        return of_rows, of_weight, c @ sums if ctx.needs_input_grad[2] else None, None


def conv_transpose(rows: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> tuple[Tensor, Tensor]:
    """A J and A b (0 without bias) for rows A over a convolution's result; differentiable once in all of them."""
    return ConvTranspose.apply(rows, weight, bias, shape)  # pyright: ignore[reportReturnType]
