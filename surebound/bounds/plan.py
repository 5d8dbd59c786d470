"""What a pass over one graph needs to know in advance: which nodes move, how each is handled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from surebound.errors import SpecError, UnsupportedOp
from surebound.graph.ir import Graph, Node, Site
from surebound.ops.record import Op, Relaxation

ELEMENTWISE = frozenset({"add", "sub", "neg", "mul", "div", "batch_norm", "reshape", "transpose", "slice", "gather"})
"""Affine ops of one perturbed operand whose results each depend on a single value of it."""


MOVES = frozenset({"reshape", "transpose", "expand", "concat", "slice", "gather"})
"""Ops whose results are values of their operands."""

SUMS = frozenset({"add", "sub", "neg"})
MANY, MADE = 4096, 4
"""Of so many values, made from so many times fewer by sums, those they are made from are bounded instead: the n^2
differences that a softmax of n numbers is made of.
"""


@dataclass(frozen=True)
class Step:
    """One perturbed, computed node: its site, its op, and which operands are perturbed."""

    site: Site
    op: Op
    perturbed: tuple[bool, ...]

    @cached_property
    def affine(self) -> bool:
        """Is the op affine in what is perturbed?"""
        return self.op.affine(self.perturbed)

    @property
    def relaxation(self) -> Relaxation:
        """The relaxation of a non-affine step."""
        assert self.op.relax is not None
        return self.op.relax


def rules(op: Op) -> str:
    """Which rules an op has, for messages."""
    return "interval (IBP), linear bounds" if op.relax is not None else "interval (IBP) only"


@dataclass(frozen=True)
class Plan:
    """The perturbed part of a graph for given roots; building it checks that every rule exists."""

    graph: Graph
    roots: tuple[str, ...]
    steps: dict[str, Step]

    @cached_property
    def relaxed(self) -> tuple[Step, ...]:
        """The non-affine steps in topological order."""
        return tuple(step for step in self.steps.values() if not step.affine)

    @cached_property
    def operands(self) -> dict[str, tuple[Step, ...]]:
        """By node: the non-affine steps that read it as their perturbed operand."""
        readers: dict[str, list[Step]] = {}
        for step in self.relaxed:
            readers.setdefault(step.site.node.inputs[0], []).append(step)
        return {name: tuple(steps) for name, steps in readers.items()}

    @cached_property
    def bounded(self) -> frozenset[str]:
        """The nodes whose boxes are worth a walk: operands of relaxed steps, or what these are made from, where it is
        less.
        """
        return frozenset().union(*map(self.worth_bounding, self.operands))

    def worth_bounding(self, name: str) -> set[str]:
        """The nodes to bound for the box of one."""
        size = self.graph[name].numel
        for ops, least, times in ((MOVES, 0, 1), (MOVES | SUMS, MANY, MADE)):
            sources = self.made_from(name, ops)
            if size >= least and times * sum(self.graph[source].numel for source in sources) < size:
                return sources
        return {name}

    def made_from(self, name: str, ops: frozenset[str]) -> set[str]:
        """The perturbed nodes that a node is made from by some ops."""
        waiting, found = [name], set[str]()
        while waiting:
            here = waiting.pop()
            step = self.steps.get(here)
            if step is not None and step.site.node.op in ops:
                waiting += [
                    source for source, moves in zip(step.site.node.inputs, step.perturbed, strict=True) if moves
                ]
            else:
                found.add(here)
        return found

    def one_affine_map(self, start: str) -> bool:
        """Is `start` reached from one root through a chain of affine steps of which at most one mixes values?

        Interval bounds of such a node over a box are exact, a backward walk cannot improve them.
        """
        mixing, name = 0, start
        while name in self.steps:
            step = self.steps[name]
            if not step.affine or sum(step.perturbed) != 1:
                return False
            mixing += step.site.node.op not in ELEMENTWISE
            name = step.site.node.inputs[step.perturbed.index(True)]
        return mixing <= 1

    @cached_property
    def orders(self) -> dict[str, tuple[str, ...]]:
        """The orders asked for so far."""
        return {}

    @cached_property
    def widths(self) -> dict[str, int]:
        """By start, how many numbers a row of a walk holds, as far as asked for."""
        return {}

    def order(self, start: str) -> tuple[str, ...]:
        """Names of the perturbed nodes that `start` is computed from, itself first, roots last."""
        if start not in self.orders:
            needed = self.graph.ancestors([start])
            moving = self.steps.keys() | set(self.roots)
            self.orders[start] = tuple(
                node.name for node in reversed(self.graph.nodes) if node.name in needed and node.name in moving
            )
        return self.orders[start]


def check_roots(graph: Graph, roots: tuple[str, ...]) -> None:
    """Every root is a node that can move, and every input is a root or behind one; else SpecError."""
    for name in roots:
        if name not in graph.by_name:
            raise SpecError(
                f"a region is given for '{name}', which is no node of the network; inputs are {graph.inputs}"
            )
        if graph[name].op == "parameter":
            raise SpecError(f"a region is given for the parameter '{name}'; only inputs and computed nodes may move")
        if not graph[name].batched:
            raise SpecError(
                f"a region is given for '{name}', which no input reaches: it has one value for all samples, not a "
                "region for each; give the region to an input or to a node that depends on one"
            )
    waiting, seen = list(graph.outputs), set(roots)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if graph[name].op == "input":
            raise SpecError(f"input '{name}' has no region; give one, a box of one point if it is fixed")
        waiting.extend(graph[name].inputs)


def plan(graph: Graph, roots: tuple[str, ...]) -> Plan:
    """Plan passes over `graph` with perturbed `roots`; made once per graph.

    Raises SpecError for regions that fit no node, UnsupportedOp where no linear bound rule exists.
    """
    plans: dict[tuple[str, ...], Plan] = graph.derived.setdefault("plans", {})
    if roots not in plans:
        plans[roots] = planned(graph, roots)
    return plans[roots]


def planned(graph: Graph, roots: tuple[str, ...]) -> Plan:
    """`plan`, made anew."""
    check_roots(graph, roots)
    moving = graph.dependents(roots)
    needed = graph.ancestors(graph.outputs)
    steps: dict[str, Step] = {}
    for node in graph.nodes:
        if node.name not in moving or node.name in roots or node.name not in needed:
            continue
        op = graph.ops[node.op]
        step = Step(Site(node, graph.operands(node)), op, tuple(name in moving for name in node.inputs))
        if not step.affine and op.relax is None:
            raise UnsupportedOp(node.op, node.name, node.origin, "it is not affine in what is perturbed", rules(op))
        if not step.affine and any(step.perturbed[1:]):
            raise UnsupportedOp(node.op, node.name, node.origin, "only its first operand may be perturbed", rules(op))
        if not step.affine and step.relaxation.together:
            check_together(graph, node)
        steps[node.name] = step
    return Plan(graph, roots, steps)


def check_together(graph: Graph, node: Node) -> None:
    """Only sums over its first axis read a node whose lines mean nothing one by one; else UnsupportedOp."""
    readers = [graph[name] for name in graph.consumers[node.name]]
    fine = all(reader.op == "product" and reader.inputs.count(node.name) == 1 for reader in readers)
    if not fine or node.name in graph.outputs or any(reader.inputs[0] != node.name for reader in readers):
        raise UnsupportedOp(node.op, node.name, node.origin, "only a product may read it", "the products of two values")


def operand(step: Step) -> Node:
    """The perturbed operand of a non-affine step."""
    return step.site.operands[0]
