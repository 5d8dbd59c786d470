"""Per-sample broadcasting between operands with and without a sample axis."""

from __future__ import annotations

from torch import Tensor

from surebound.graph.ir import Node, Site


def align(node: Node, value: Tensor, rank: int) -> Tensor:
    """View a batched operand [B, *shape] so that its per-sample shape has `rank` axes: [B, 1.., *shape]."""
    missing = rank - len(node.shape)
    if not node.batched or missing <= 0:
        return value
    return value.reshape(value.shape[0], *([1] * missing), *node.shape)


def aligned(site: Site, values: tuple[Tensor, ...]) -> list[Tensor]:
    """All operands aligned to the rank of the result."""
    return [align(node, value, len(site.shape)) for node, value in zip(site.operands, values, strict=True)]


def sample_axes(site: Site, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of operand 0's tensor for per-sample `axes`."""
    shift = int(site.operands[0].batched)
    return tuple(axis + shift for axis in axes)
