"""Products of two values that move, divisions and softmax, written with ops that have linear bounds.

x y becomes  product(factors(stack of x and y), x, y),  whose interval is the exact one; a matrix product becomes the
products of its entries and their sums; x / y the product of x and 1 / y; x x a square. The softmax is

    1 / (sum over j of exp(x_j - x_i)),

where j = i gives exactly 1, so that the sum is never less: no product, and no number that overflows early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from surebound.graph.ir import Graph, Node
from surebound.graph.passes import Expand, Expansion, Shape, expanded


def expand_products(graph: Graph) -> Graph:
    """Every product of batched values, division by one and softmax in the forms above."""
    return expanded(graph, PRODUCTS)


def times(expansion: Expansion, x: Node, y: Node, shape: Shape) -> Node:
    """x y for values that broadcast to `shape`."""
    if not (x.batched and y.batched):
        return expansion.emit("mul", (x, y), shape)
    x = expansion.spread(x, shape)
    if x.name == y.name:
        return expansion.emit("square", (x,), shape)
    both = [x, expansion.spread(y, shape)]
    layers = [expansion.emit("reshape", (value,), (1, *shape), {"shape": (1, *shape)}) for value in both]
    stack = expansion.emit("concat", layers, (2, *shape), {"axis": 0})
    return expansion.emit("product", (expansion.emit("factors", (stack,), (2, *shape)), *both), shape)


def expand_mul(expansion: Expansion, operands: Sequence[Node]) -> Node | None:
    x, y = operands
    return times(expansion, x, y, expansion.node.shape) if x.batched and y.batched else None


def expand_div(expansion: Expansion, operands: Sequence[Node]) -> Node | None:
    x, y = operands
    if not y.batched:
        return None
    return times(expansion, x, expansion.emit("reciprocal", (y,), y.shape), expansion.node.shape)


def expand_matmul(expansion: Expansion, operands: Sequence[Node]) -> Node | None:
    """[.., n, k] times [.., k, m]: products [.., n, m, k], summed over k."""
    x, y = operands
    if not (x.batched and y.batched):
        return None
    *lead, n, m = expansion.node.shape
    k = x.shape[-1]
    x = expansion.reshaped(x, (*x.shape[:-2], n, 1, k))
    rank = len(y.shape)
    perm = (*range(rank - 2), rank - 1, rank - 2)
    turned = expansion.emit("transpose", (y,), (*y.shape[:-2], m, k), {"perm": perm})
    y = expansion.reshaped(turned, (*y.shape[:-2], 1, m, k))
    terms = times(expansion, x, y, (*lead, n, m, k))
    return expansion.emit("sum", (terms,), (*lead, n, m), {"axes": (len(lead) + 2,), "keepdim": False})


def expand_softmax(expansion: Expansion, operands: Sequence[Node]) -> Node | None:
    (x,) = operands
    axis, shape = expansion.node.attrs["axis"], x.shape
    n = shape[axis]
    others = expansion.reshaped(x, (*shape[:axis], 1, *shape[axis:]))
    own = expansion.reshaped(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    pairs = (*shape[:axis], n, *shape[axis:])
    gaps = expansion.emit("sub", (others, own), pairs)
    parts = expansion.emit("exp", (gaps,), pairs)
    total = expansion.emit("sum", (parts,), shape, {"axes": (axis + 1,), "keepdim": False})
    return expansion.emit("reciprocal", (total,), shape)


PRODUCTS: Mapping[str, Expand] = MappingProxyType(
    {"mul": expand_mul, "div": expand_div, "matmul": expand_matmul, "softmax": expand_softmax}
)
