"""VNN-LIB 2.0, parsed and type-checked by the package `vnnlib`, as the formulas that 1.0 has.

Only `real` is accepted as an element type: what is shown here is shown about real arithmetic, and 2.0 makes of the
element types a statement about which execution a verdict covers. One network with one input and one output; X[i,j] is
the entry of the flattened input at that place, row-major.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from surebound.errors import SpecError, UnsupportedSpec, UsageError
from surebound.vnnlib.formula import Term, normal_form
from surebound.vnnlib.source import Atom, Expr, Form, Source

COMPARISONS = {
    "LessEqual": "<=",
    "GreaterEqual": ">=",
    "Equal": "=",
    "LessThan": "<",
    "GreaterThan": ">",
    "NotEqual": "!=",
}
CONNECTIVES = {"And": "and", "Or": "or"}
SUMS = {"Plus": "+", "Multiply": "*"}

SYNTAX = re.compile(r"line (\d+), column (\d+)(.*)", re.DOTALL)


def read_query(source: Source) -> tuple[list[list[Term]], int, int]:
    """The assertions in normal form, the numbers of inputs and outputs. Raises UsageError without the package,
    UnsupportedSpec for queries that are valid but of another kind.
    """
    try:
        import vnnlib
    except ImportError:
        raise UsageError(
            f"{source.file}: VNN-LIB 2.0 is read with the package vnnlib; pip install 'surebound[vnnlib2]'"
        ) from None
    try:
        query = vnnlib.parse_query_string(source.text)
    except vnnlib.VNNLibException as error:
        raise refused(source, str(error)) from None
    network = only(source, query.networks, "network")
    if network.hidden:
        raise unsupported(source, network.hidden[0].name, "constraints on hidden values are not supported")
    sizes = []
    for letter, kind, values in (("X", "input", network.inputs), ("Y", "output", network.outputs)):
        value = only(source, values, kind)
        if value.dtype.name != "Real":
            raise unsupported(
                source,
                value.name,
                f"{value.name} is not declared as real: verdicts are about real arithmetic and would not be proofs "
                "about another; declare it as real where that is what is asked",
            )
        sizes.append(math.prod(value.shape))
        at = declaration(source, value.name)
        source.declared.update((f"{letter}_{i}", at) for i in range(sizes[-1]))
        source.shown.update(
            (f"{letter}_{i}", value.name + str(list(unravelled(i, value.shape))).replace(" ", ""))
            for i in range(sizes[-1] if value.shape else 0)
        )
    translation = Translation(source, (0, *source.breaks(len(source.text))))
    asserted = [normal_form(source, translation.formula(assertion.expr)) for assertion in query.assertions]
    return asserted, sizes[0], sizes[1]


def only(source: Source, values: Any, kind: str) -> Any:
    """The one network, input or output of a query."""
    if len(values) != 1:
        names = ", ".join(value.name for value in values)
        raise unsupported(source, values[-1].name, f"queries about one {kind} are supported, this has {names}")
    return values[0]


def declaration(source: Source, name: str) -> int:
    """Where a name is declared."""
    found = re.search(rf"declare-\w+\s+({re.escape(name)})\b", source.text)
    return 0 if found is None else found.start(1)


def unsupported(source: Source, name: str, message: str) -> UnsupportedSpec:
    """A valid query that is not ours to answer."""
    error = source.error(message, declaration(source, name))
    return UnsupportedSpec(message, error.file, error.line, error.column)


def refused(source: Source, message: str) -> SpecError:
    """What the package says of an invalid query, its first error."""
    syntax = SYNTAX.search(message)
    if syntax is not None:
        return SpecError(f"no VNN-LIB 2.0: syntax error{syntax[3]}", source.file, int(syntax[1]), int(syntax[2]))
    try:
        first = json.loads(message)["errors"][0]
        text = f"{first['message']}: {first['offendingSymbol']}. {first['hint']}"
        return SpecError(text, source.file, int(first["line"]))
    except (ValueError, LookupError, TypeError):
        return SpecError(f"no VNN-LIB 2.0: {message}", source.file)


def unravelled(flat: int, shape: list[int]) -> tuple[int, ...]:
    """The indices of a flat position."""
    found = []
    for size in reversed(shape):
        flat, at = divmod(flat, size)
        found.append(at)
    return tuple(reversed(found))


@dataclass(frozen=True)
class Translation:
    """From the package's syntax tree to ours; lines: offsets at which lines start."""

    source: Source
    lines: tuple[int, ...]

    def formula(self, expr: Any) -> Expr:
        """A comparison, conjunction or disjunction."""
        kind = type(expr).__name__
        if kind in CONNECTIVES:
            return joined(CONNECTIVES[kind], [self.formula(part) for part in expr.args])
        return joined(COMPARISONS[kind], [self.term(expr.lhs), self.term(expr.rhs)])

    def term(self, expr: Any) -> Expr:
        """A number, an entry, or an operation on terms."""
        kind = type(expr).__name__
        if kind == "Var":
            return Atom(f"{'X' if expr.kind.name == 'Input' else 'Y'}_{flat_index(expr)}", self.lines[expr.line - 1])
        if kind in SUMS:
            return joined(SUMS[kind], [self.term(part) for part in expr.args])
        if kind == "Minus":
            return joined("-", [self.term(expr.head), *map(self.term, expr.rest)])
        if kind == "Negate":
            return joined("-", [self.term(expr.expr)])
        return Atom(expr.lexeme, self.lines[expr.line - 1])


def flat_index(entry: Any) -> int:
    """The row-major position of an entry."""
    flat = 0
    for index, size in zip(entry.indices, entry.shape, strict=True):
        flat = flat * size + index
    return flat


def joined(head: str, parts: list[Expr]) -> Form:
    """An operator with its operands, where the first of them is."""
    return Form((Atom(head, parts[0].start), *parts), parts[0].start)
