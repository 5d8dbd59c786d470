"""Independent answers about tiny networks: the triangle LP, exact minima by activation patterns, sharp samples.

Written with NumPy and SciPy's HiGHS on the graph's nodes; nothing here uses the package's bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from surebound.graph.ir import Graph, evaluate
from surebound.linear.maps import Dense
from surebound.regions import Region

Array = NDArray[np.float64]
Ends = tuple[Array, Array]
TIGHT = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def solve(cost: Array, a_ub: Any, b_ub: Any, a_eq: Any, b_eq: Any, bounds: Any, whole: int = 0) -> float:
    """The minimum of a linear program whose last `whole` variables are integers; infinity where it is infeasible."""
    integrality, gap = np.arange(len(cost)) >= len(cost) - whole, {"mip_rel_gap": 0.0} if whole else {}
    result = linprog(cost, a_ub, b_ub, a_eq, b_eq, bounds, "highs", None, TIGHT | gap, None, integrality)
    if result.status == 2:
        return np.inf
    assert result.status == 0, result.message
    return float(result.fun)


class LinearProgram:
    """Variables for all values of a ReLU network of `linear`, `relu` and `add`, and the constraints between them; then
    binary ones.
    """

    def __init__(self, graph: Graph, params: Mapping[str, Tensor], binaries: int = 0):
        self.columns: dict[str, slice] = {}
        count = 0
        for node in graph.nodes:
            if node.op != "parameter":
                self.columns[node.name] = slice(count, count + node.numel)
                count += node.numel
        self.binaries, self.count = binaries, count + binaries
        self.bounds: list[tuple[float | None, float | None]] = [(None, None)] * count + [(0.0, 1.0)] * binaries
        self.equal: list[tuple[Array, float]] = []
        self.below: list[tuple[Array, float]] = []
        for node in graph.nodes:
            if node.op == "linear":
                weight = params[node.inputs[1]].numpy()
                bias = params[node.inputs[2]].numpy() if len(node.inputs) > 2 else np.zeros(len(weight))
                for i in range(node.numel):
                    row = self.unit(node.name, i)
                    row[self.columns[node.inputs[0]]] -= weight[i]
                    self.equal.append((row, float(bias[i])))
            elif node.op == "add":
                for i in range(node.numel):
                    row = self.unit(node.name, i)
                    for name in node.inputs:
                        row -= self.unit(name, i)
                    self.equal.append((row, 0.0))
            else:
                assert node.op in ("input", "parameter", "relu"), node.op

    def unit(self, name: str, i: int) -> Array:
        row = np.zeros(self.count)
        row[self.columns[name].start + i] = 1.0
        return row

    def within(self, name: str, ends: Ends) -> None:
        """Keep a node's values in a box."""
        for i, pair in enumerate(zip(*ends, strict=True)):
            self.bounds[self.columns[name].start + i] = (float(pair[0]), float(pair[1]))

    def minimum(self, name: str, spec: Array) -> Array:
        """The minimum of each row over a node's values."""
        a_ub, b_ub = (np.stack([r for r, _ in self.below]), [b for _, b in self.below]) if self.below else (None, None)
        a_eq, b_eq = np.stack([row for row, _ in self.equal]), [value for _, value in self.equal]
        found = []
        for row in spec:
            cost = np.zeros(self.count)
            cost[self.columns[name]] = row
            found.append(solve(cost, a_ub, b_ub, a_eq, b_eq, self.bounds, self.binaries))
        return np.array(found)


def triangle_minimum(
    graph: Graph,
    params: Mapping[str, Tensor],
    root: Ends,
    boxes: Mapping[str, Ends],
    spec: Array,
    signs: Mapping[tuple[str, int], int] | None = None,
    within_boxes: bool = False,
) -> Array:
    """Minimum of spec rows over the triangle relaxation with the given boxes of the relus' operands.

    signs: neurons (operand node, position) whose phase is decided, +1 or -1. within_boxes: also keep the
    operands in their boxes.
    """
    signs = signs or {}
    program = LinearProgram(graph, params)
    program.within(graph.input.name, root)
    for node in graph.nodes:
        if node.op != "relu":
            continue
        name = node.inputs[0]
        if within_boxes:
            program.within(name, boxes[name])
        for i in range(node.numel):
            low, high = float(boxes[name][0][i]), float(boxes[name][1][i])
            y, z, sign = program.unit(node.name, i), program.unit(name, i), signs.get((name, i), 0)
            if sign:
                program.below.append((-sign * z, 0.0))
            if sign > 0 or low >= 0:
                program.equal.append((y - z, 0.0))
            elif sign < 0 or high <= 0:
                program.equal.append((y, 0.0))
            else:
                slope = high / (high - low)
                program.below += [(-y, 0.0), (z - y, 0.0), (y - slope * z, -slope * low)]
    return program.minimum(graph.output.name, spec)


def intervals(graph: Graph, params: Mapping[str, Tensor], root: Ends) -> dict[str, Ends]:
    """Interval arithmetic."""
    found: dict[str, Ends] = {graph.input.name: root}
    for node in graph.nodes:
        ends = [found[name] for name in node.inputs if name in found]
        if node.op == "linear":
            weight = params[node.inputs[1]].numpy()
            bias = params[node.inputs[2]].numpy() if len(node.inputs) > 2 else np.zeros(len(weight))
            middle, half = (ends[0][0] + ends[0][1]) / 2, (ends[0][1] - ends[0][0]) / 2
            centre, spread = weight @ middle + bias, abs(weight) @ half
            found[node.name] = (centre - spread, centre + spread)
        elif node.op == "add":
            found[node.name] = (ends[0][0] + ends[1][0], ends[0][1] + ends[1][1])
        elif node.op == "relu":
            found[node.name] = (np.maximum(ends[0][0], 0), np.maximum(ends[0][1], 0))
    return found


def mixed_integer_minimum(graph: Graph, params: Mapping[str, Tensor], root: Ends, spec: Array) -> Array:
    """The true minimum of each spec row over a box, by a binary variable for each neuron (Tjeng et al. 2019)."""
    relus = [node for node in graph.nodes if node.op == "relu"]
    boxes = intervals(graph, params, root)
    program = LinearProgram(graph, params, sum(node.numel for node in relus))
    program.within(graph.input.name, root)
    last = program.count - program.binaries
    for node in relus:
        for i in range(node.numel):
            y, z, a = program.unit(node.name, i), program.unit(node.inputs[0], i), np.zeros(program.count)
            a[last] = 1.0
            last += 1
            low, high = (float(end[i]) for end in boxes[node.inputs[0]])
            low, high = min(low, 0.0), max(high, 0.0)
            program.below += [(-y, 0.0), (z - y, 0.0), (y - high * a, 0.0), (y - z - low * a, -low)]
    return program.minimum(graph.output.name, spec)


def linear_pieces(graph: Graph, params: Mapping[str, Tensor], root: Ends) -> list[tuple[Array, Array, Array, Array]]:
    """The network's affine pieces on a box: (J, k, A, b) with y = J x + k wherever A x <= b."""
    lower, upper = root
    bounds = list(zip(lower, upper, strict=True))
    dim = len(lower)
    states: list[tuple[dict[str, tuple[Array, Array]], list[tuple[Array, float]]]] = [
        ({graph.input.name: (np.eye(dim), np.zeros(dim))}, [])
    ]
    for node in graph.nodes:
        if node.op == "linear":
            weight = params[node.inputs[1]].numpy()
            bias = params[node.inputs[2]].numpy() if len(node.inputs) > 2 else np.zeros(len(weight))
            for forms, _ in states:
                jac, const = forms[node.inputs[0]]
                forms[node.name] = (weight @ jac, weight @ const + bias)
        elif node.op == "add":
            for forms, _ in states:
                (j1, k1), (j2, k2) = (forms[name] for name in node.inputs)
                forms[node.name] = (j1 + j2, k1 + k2)
        elif node.op == "relu":
            for forms, _ in states:
                jac, const = forms[node.inputs[0]]
                forms[node.name] = (np.zeros_like(jac), np.zeros_like(const))
            for i in range(node.numel):
                grown = []
                for forms, limits in states:
                    jac, const = (part[i] for part in forms[node.inputs[0]])
                    for active in (True, False):
                        extra = (-jac, const) if active else (jac, -const)
                        kept = [*limits, extra]
                        a, b = np.stack([row for row, _ in kept]), [value for _, value in kept]
                        if solve(np.zeros(dim), a, b, None, None, bounds) == np.inf:
                            continue
                        out_j, out_k = (part.copy() for part in forms[node.name])
                        if active:
                            out_j[i], out_k[i] = jac, const
                        grown.append(({**forms, node.name: (out_j, out_k)}, kept))
                states = grown
    found = []
    for forms, limits in states:
        a = np.stack([row for row, _ in limits]) if limits else np.zeros((1, dim))
        b = np.array([value for _, value in limits]) if limits else np.zeros(1)
        found.append((*forms[graph.output.name], a, b))
    return found


def exact_minimum(graph: Graph, params: Mapping[str, Tensor], root: Ends, spec: Array) -> Array:
    """The true minimum of each spec row over a box: the least over all activation patterns that occur."""
    bounds = list(zip(*root, strict=True))
    best = np.full(len(spec), np.inf)
    for jac, const, a, b in linear_pieces(graph, params, root):
        for s, row in enumerate(spec):
            best[s] = min(best[s], row @ const + solve(row @ jac, a, b, None, None, bounds))
    return best


def outputs_at(graph: Graph, params: Mapping[str, Tensor], points: Mapping[str, Tensor], *wanted: str) -> list[Tensor]:
    """Values [G, n, *shape] of nodes at points [G, n, *shape] of the inputs."""
    groups, count = next(iter(points.values())).shape[:2]
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in points.items()}
    values = evaluate(graph, params, flat, wanted or graph.outputs)
    return [value.reshape(groups, count, *value.shape[1:]) for value in values.values()]


def row_values(spec: Tensor, y: Tensor) -> Tensor:
    """spec [G or 1, S, *shape] at y [G, n, *shape]: [G, S, n]."""
    return torch.einsum("gsm,gnm->gsn", spec.flatten(2).expand(len(y), -1, -1), y.flatten(2))


def sharp_points(graph: Graph, params: Mapping[str, Tensor], region: Region, spec: Tensor, count: int = 200) -> Tensor:
    """Points [G, n, *shape] of the region: random ones, and for each row ones led downhill by gradients."""
    points = region.sample(count)
    (y,) = outputs_at(graph, params, {graph.input.name: points})
    worst = row_values(spec, y).argmin(2)
    walkers = points[torch.arange(len(points)).unsqueeze(1), worst]
    found = [points]
    for step in range(6):
        start = walkers.clone().requires_grad_()
        (y,) = outputs_at(graph, params, {graph.input.name: start})
        value = (spec.expand(len(y), *spec.shape[1:]) * y).sum()
        (gradient,) = torch.autograd.grad(value, start)
        size = (region.upper - region.lower).unsqueeze(1) / 2 ** (step // 2 + 1)
        corner = region.minimiser(Dense(gradient))
        near = region.project(walkers - size * gradient.sign())
        walkers = corner if step % 2 == 0 else near
        found += [corner, near]
    return torch.cat(found, 1).detach()
