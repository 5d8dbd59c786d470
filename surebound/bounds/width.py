"""How many numbers a walk holds for each row."""

from __future__ import annotations

from math import prod

from surebound.bounds.plan import Plan, Step
from surebound.graph.ir import Node
from surebound.graph.passes import ELEMENTWISE
from surebound.linear.patches import worth

Pair = tuple[int, int]


def width(of: Plan, start: str) -> int:
    """Numbers that a row for one entry of `start` holds where it is widest: a whole value, or a window of one."""
    if start not in of.widths:
        of.widths[start] = widest_window(of, start)
    return of.widths[start]


def widest_window(of: Plan, start: str) -> int:
    """`width`, computed anew."""
    windows: dict[str, Pair | None] = {start: (1, 1) if len(of.graph[start].shape) == 3 else None}
    most = 1
    for name in of.order(start):
        shape, window, step = of.graph[name].shape, windows.pop(name), of.steps.get(name)
        if window is not None and not worth((shape[0], *window), shape):
            window = None
        most = max(most, prod(shape) if window is None else shape[0] * prod(window))
        if step is None:
            continue
        for source, moves in zip(step.site.operands, step.perturbed, strict=True):
            if moves:
                read, known = read_by(step, source, window), windows.get(source.name, (1, 1))
                both = None if read is None or known is None else (max(read[0], known[0]), max(read[1], known[1]))
                windows[source.name] = both
    return most


def read_by(step: Step, source: Node, window: Pair | None) -> Pair | None:
    """What a window of a step's value reads of an operand; None for all of it."""
    node = step.site.node
    if window is None or len(source.shape) != 3:
        return None
    if node.op in ELEMENTWISE or node.op == "batch_norm":
        return window if source.shape == node.shape else None
    if node.op not in ("conv2d", "avg_pool2d"):
        return None
    kernel = node.attrs["kernel"] if node.op == "avg_pool2d" else step.site.operands[1].shape[2:]
    dilation, stride = node.attrs.get("dilation", (1, 1)), node.attrs["stride"]
    size = [(window[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    return size[0], size[1]
