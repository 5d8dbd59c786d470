"""Formulas over inputs and outputs in disjunctive normal form, with exact numbers.

    FORMULA   (and FORMULA ...) | (or FORMULA ...) | (<= TERM TERM) | (>= TERM TERM) | (= TERM TERM)
    TERM      number | X_i | Y_i | (+ TERM ...) | (- TERM ...) | (* TERM ...) | (/ TERM ...)    and linear

Strict comparisons are refused, because their counterexamples form an open set: closing it is sound for proofs but not
for witnesses. A linear constraint over several inputs, or over inputs and outputs together, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import chain, product
from typing import NamedTuple

from surebound.vnnlib.source import Atom, Expr, Form, Source, short

MAX_CONJUNCTIONS = 1_000_000
MAX_CONSTRAINTS = 5_000_000
MAX_LITERAL = 1000
MAX_EXPONENT = 1000
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
VARIABLE = re.compile(r"[XY]_(?:0|[1-9][0-9]{0,8})")


class Limit(NamedTuple):
    """X_entry <= value (upper) or >= value."""

    start: int
    entry: int
    upper: bool
    value: Fraction


class Row(NamedTuple):
    """sum of coefficient * Y_index <= threshold."""

    start: int
    coefficients: tuple[tuple[int, Fraction], ...]
    threshold: Fraction


Constraint = Limit | Row
Term = Sequence[Constraint]


class Linear(NamedTuple):
    """A linear term: coefficients by variable, and a constant."""

    coefficients: dict[str, Fraction]
    constant: Fraction


def normal_form(source: Source, expr: Expr) -> list[Term]:
    """The disjunctive normal form of a formula, in the order of the file."""
    if isinstance(expr, Atom) or not expr.items or not isinstance(expr.items[0], Atom):
        raise source.error("expected a formula such as (<= X_0 1), (and ...) or (or ...)", expr.start)
    head, arguments = expr.items[0].text, expr.items[1:]
    if head in ("<=", ">=", "="):
        return [compared(source, expr, head, arguments)]
    if head in ("and", "or"):
        if not arguments:
            raise source.error(f"({head}) has no arguments; give at least one formula", expr.start)
        parts = [normal_form(source, argument) for argument in arguments]
        if head == "and":
            return conjoined(source, parts, expr.start)
        terms = [term for part in parts for term in part]
        check_size(source, len(terms), 0, expr.start)
        return terms
    if head in ("<", ">"):
        raise source.error(
            f"strict '{head}' is not supported, as its solutions are not closed; use {head}=", expr.start
        )
    if head in ("not", "=>"):
        raise source.error(f"'{head}' is not supported; write the formula with and, or, <=, >= and = only", expr.start)
    raise source.error(f"unknown operator '{short(head)}'; formulas use and, or, <=, >= and =", expr.start)


def conjoined(source: Source, parts: Sequence[list[Term]], start: int) -> list[Term]:
    """The conjunction of formulas in normal form: every choice of one term from each (sorted in the end)."""
    fixed = [constraint for part in parts if len(part) == 1 for constraint in part[0]]
    choices = [part for part in parts if len(part) > 1]
    if not choices:
        return [fixed]
    check_product(source, choices, len(fixed), start)
    return [list(chain(fixed, *combination)) for combination in product(*choices)]


def check_product(source: Source, choices: Sequence[list[Term]], fixed: int, start: int) -> None:
    longest = sum(max(map(len, choice)) for choice in choices) if len(choices) > 1 else 0
    check_size(source, math.prod(map(len, choices)), fixed + longest, start)


def check_size(source: Source, terms: int, length: int, start: int) -> None:
    if terms > MAX_CONJUNCTIONS or terms * length > MAX_CONSTRAINTS:
        raise source.error(
            f"the disjunctive normal form has {terms:,} conjunctions, with {length:,} constraints copied to each; "
            f"at most {MAX_CONJUNCTIONS:,} conjunctions and {MAX_CONSTRAINTS:,} constraints are supported: "
            "split the property into several files",
            start,
        )


def compared(source: Source, form: Form, head: str, arguments: Sequence[Expr]) -> Term:
    """The constraints of one comparison: two for an equation."""
    if len(arguments) != 2:
        raise source.error(f"'{head}' takes two terms, got {len(arguments)}", form.start)
    left, right = (linear_term(source, argument) for argument in arguments)
    if head == "<=":
        return (constraint_of(source, left, right, form.start),)
    if head == ">=":
        return (constraint_of(source, right, left, form.start),)
    return (constraint_of(source, left, right, form.start), constraint_of(source, right, left, form.start))


def constraint_of(source: Source, small: Linear, large: Linear, start: int) -> Constraint:
    """`small <= large` as a limit of one input or a row over outputs."""
    coefficients = dict(small.coefficients)
    for name, value in large.coefficients.items():
        coefficients[name] = coefficients.get(name, Fraction(0)) - value
    threshold = large.constant - small.constant
    inputs = [name for name in coefficients if name[0] == "X"]
    if not coefficients:
        raise source.error("this compares constants only; a constraint must name an input or an output", start)
    if not inputs:
        return Row(start, tuple((int(name[2:]), value) for name, value in coefficients.items()), threshold)
    if len(inputs) < len(coefficients):
        raise source.error("a constraint over inputs and outputs together is not supported", start)
    if len(inputs) > 1:
        raise source.error(
            f"a linear constraint over several inputs ({', '.join(inputs[:3])}) is not supported; "
            "inputs may only be bounded one by one",
            start,
        )
    (name,) = inputs
    scale = coefficients[name]
    if scale == 0:
        raise source.error(f"{name} cancels out of this constraint; remove it or correct the terms", start)
    return Limit(start, int(name[2:]), scale > 0, threshold / scale)


def linear_term(source: Source, expr: Expr) -> Linear:
    """A term as exact coefficients by variable, in the order of the text, and a constant."""
    if isinstance(expr, Atom):
        if expr.text in source.declared:
            return Linear({expr.text: Fraction(1)}, Fraction(0))
        if NUMBER.fullmatch(expr.text):
            return Linear({}, number_of(source, expr))
        if VARIABLE.fullmatch(expr.text):
            raise source.error(
                f"{expr.text} is used but not declared; add (declare-const {expr.text} Real) before this line",
                expr.start,
            )
        raise source.error(f"unknown symbol '{short(expr.text)}'; expected a number, X_i or Y_i", expr.start)
    head = expr.items[0].text if expr.items and isinstance(expr.items[0], Atom) else ""
    if head not in ("+", "-", "*", "/"):
        raise source.error(f"unknown function '{short(head)}'; terms use +, -, * and /", expr.start)
    operands = [linear_term(source, item) for item in expr.items[1:]]
    if not operands or (len(operands) == 1 and head != "-"):
        raise source.error(f"'{head}' is given {len(operands)} terms; it needs at least two", expr.start)
    if head == "-" and len(operands) == 1:
        return times(operands[0], Fraction(-1))
    total = operands[0]
    for operand in operands[1:]:
        total = combined(source, head, total, operand, expr.start)
    return total


def combined(source: Source, head: str, left: Linear, right: Linear, start: int) -> Linear:
    if head == "/":
        if right.coefficients:
            raise source.error("division by a variable is not linear and not supported", start)
        if right.constant == 0:
            raise source.error("division by zero", start)
        return times(left, 1 / right.constant)
    if head == "*":
        if left.coefficients and right.coefficients:
            raise source.error("a product of variables is not linear and not supported", start)
        return times(left, right.constant) if left.coefficients else times(right, left.constant)
    sign = 1 if head == "+" else -1
    coefficients = dict(left.coefficients)
    for name, value in right.coefficients.items():
        coefficients[name] = coefficients.get(name, Fraction(0)) + sign * value
    return Linear(coefficients, left.constant + sign * right.constant)


def times(term: Linear, factor: Fraction) -> Linear:
    return Linear({name: value * factor for name, value in term.coefficients.items()}, term.constant * factor)


def number_of(source: Source, atom: Atom) -> Fraction:
    number = Decimal(atom.text) if len(atom.text) <= MAX_LITERAL else None
    if number is None or (number and abs(number.adjusted()) > MAX_EXPONENT):
        raise source.error(f"the number '{short(atom.text)}' is too long or beyond any float", atom.start)
    return Fraction(number) if number else Fraction(0)
