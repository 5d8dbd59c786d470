"""Reads properties in VNN-LIB 1.0, a subset of SMT-LIB, by a strict grammar.

A file is a list of commands:

    (declare-const X_i Real)   (declare-const Y_i Real)   (assert FORMULA)

    FORMULA   (and FORMULA ...) | (or FORMULA ...) | (<= TERM TERM) | (>= TERM TERM) | (= TERM TERM)
    TERM      number | X_i | Y_i | (+ TERM ...) | (- TERM ...) | (* TERM ...) | (/ TERM ...)    and linear

X_i is entry i of the network's flattened input, Y_i of its output, and an assignment that satisfies ALL
assertions, those after an `or` included, is a counterexample. Strict comparisons are refused, because their
counterexamples form an open set: closing it is sound for proofs but not for witnesses. Each term of the
disjunctive normal form must bound every input from both sides; a linear constraint over several inputs, or
over inputs and outputs together, is refused.

Numbers are kept exactly up to the end. Then boxes are rounded outwards to float64 and thresholds up, so the
float64 property contains the decimal one, and `Case.limits` and `Disjunct.exact` keep what was written.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import torch

from surebound.errors import SpecError
from surebound.properties import Case, Disjunct, Property
from surebound.regions import Box

MAX_CONJUNCTIONS = 100_000
MAX_CONSTRAINTS = 5_000_000
MAX_DEPTH = 100
MAX_LITERAL = 1000
MAX_EXPONENT = 1000

_TOKEN = re.compile(r"[()]|;[^\n\r]*|[^\s();]+")
_BREAK = re.compile(r"\r\n?|\n")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_VARIABLE = re.compile(r"[XY]_(?:0|[1-9][0-9]{0,8})")


class _Atom(NamedTuple):
    text: str
    start: int


class _Form(NamedTuple):
    items: tuple[_Expr, ...]
    start: int


_Expr = _Atom | _Form


class _Limit(NamedTuple):
    """X_entry <= value (upper) or >= value."""

    start: int
    entry: int
    upper: bool
    value: Fraction


class _Row(NamedTuple):
    """sum of coefficient * Y_index <= threshold."""

    start: int
    coefficients: tuple[tuple[int, Fraction], ...]
    threshold: Fraction


_Constraint = _Limit | _Row
_Term = Sequence[_Constraint]


class _Linear(NamedTuple):
    coefficients: dict[str, Fraction]
    constant: Fraction


@dataclass(frozen=True)
class _Source:
    """The text being read and the variables declared so far, with the offset of their declarations."""

    text: str
    file: str
    declared: dict[str, int] = field(default_factory=dict)

    def breaks(self, offset: int) -> list[int]:
        """Where the lines before an offset end: behind LF, CR or both."""
        return [match.end() for match in _BREAK.finditer(self.text, 0, offset)]

    def line(self, offset: int) -> int:
        return len(self.breaks(offset)) + 1

    def error(self, message: str, offset: int) -> SpecError:
        start = max(self.breaks(offset), default=0)
        return SpecError(message, self.file, self.line(offset), offset - start + 1)


def load_vnnlib(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> Property:
    """Read a VNN-LIB 1.0 file; it may be gzipped, also when only `path` + ".gz" exists.

    shape: of the regions, without the sample axis; default: one flat axis. Raises SpecError, naming the file
    and the line, for anything that is missing, damaged, not understood or contradictory.
    """
    return parse_vnnlib(_read(Path(path)), os.fspath(path), shape)


def parse_vnnlib(text: str, file: str = "<text>", shape: Sequence[int] | None = None) -> Property:
    """Read VNN-LIB 1.0 text; `file` is the name that messages give. See `load_vnnlib`."""
    source = _Source(text, file)
    asserted = [part for form in _forms(source) for part in _command(source, form)]
    inputs, outputs = _sizes(source)
    shape = (inputs,) if shape is None else tuple(shape)
    if math.prod(shape) != inputs:
        raise SpecError(f"the property has {inputs} inputs, which do not fill the input shape {shape}", file)
    return Property(_cases(source, asserted, inputs, outputs, shape))


def _read(path: Path) -> str:
    zipped = Path(f"{path}.gz")
    found = zipped if zipped.is_file() and not path.exists() else path
    try:
        data = found.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError("no such file, also not with .gz appended; check the path", str(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SpecError(f"damaged gzip file ({error}); fetch it again", str(found)) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"not a text file ({error}); give a VNN-LIB file", str(found)) from None
    except OSError as error:
        raise SpecError(f"cannot be read ({error.strerror or error})", str(found)) from None


def _forms(source: _Source) -> Iterator[_Form]:
    """The top-level parenthesised forms, each as soon as it is complete."""
    items: list[_Expr] = []
    outer: list[tuple[list[_Expr], int]] = []
    start = 0
    for match in _TOKEN.finditer(source.text):
        token, offset = match[0], match.start()
        if token == "(":
            if len(outer) == MAX_DEPTH:
                raise source.error(f"parentheses are nested deeper than {MAX_DEPTH}; flatten the formula", offset)
            outer.append((items, start))
            items, start = [], offset
        elif token == ")":
            if not outer:
                raise source.error("unexpected ')': it closes nothing; remove it", offset)
            form = _Form(tuple(items), start)
            items, start = outer.pop()
            if outer:
                items.append(form)
            else:
                yield form
        elif token[0] != ";":
            if not outer:
                raise source.error(f"expected '(' but found '{_short(token)}'; every command is parenthesised", offset)
            items.append(_Atom(token, offset))
    if outer:
        raise source.error("this '(' is never closed; add the missing ')'", start)


def _command(source: _Source, form: _Form) -> Sequence[list[_Term]]:
    """Obey one command; for an assertion its disjunctive normal form."""
    head = form.items[0].text if form.items and isinstance(form.items[0], _Atom) else ""
    if head == "declare-const":
        _declare(source, form)
        return ()
    if head == "assert":
        if len(form.items) != 2:
            raise source.error(f"assert takes one formula, got {len(form.items) - 1}", form.start)
        return (_normal(source, form.items[1]),)
    if head == "vnnlib-version":
        raise source.error("VNN-LIB 2.0 is not supported yet; give the property in VNN-LIB 1.0", form.start)
    raise source.error(f"unknown command '{_short(head)}'; VNN-LIB 1.0 has declare-const and assert", form.start)


def _declare(source: _Source, form: _Form) -> None:
    match form.items[1:]:
        case (_Atom(name, start), _Atom(sort, place)):
            pass
        case _:
            raise source.error("a declaration looks like (declare-const X_0 Real)", form.start)
    if not _VARIABLE.fullmatch(name):
        raise source.error(
            f"cannot declare '{_short(name)}'; inputs are X_0, X_1, ... and outputs Y_0, Y_1, ...", start
        )
    if sort != "Real":
        raise source.error(f"{name} is declared as '{_short(sort)}'; only Real is supported", place)
    if name in source.declared:
        raise source.error(f"{name} is declared twice, first in line {source.line(source.declared[name])}", start)
    source.declared[name] = start


def _sizes(source: _Source) -> tuple[int, int]:
    """The numbers of inputs and outputs, after checking that indices have no gaps."""
    if not source.declared:
        raise source.error("the file declares nothing; it needs declare-const and assert commands", len(source.text))
    counts: list[int] = []
    for letter, kind in (("X", "input"), ("Y", "output")):
        indices = sorted(int(name[2:]) for name in source.declared if name[0] == letter)
        if not indices:
            raise source.error(f"no {kind} is declared; add (declare-const {letter}_0 Real)", len(source.text))
        for expected, index in enumerate(indices):
            if index != expected:
                raise source.error(
                    f"{letter}_{index} is declared but {letter}_{expected} is not; indices must have no gaps",
                    source.declared[f"{letter}_{index}"],
                )
        counts.append(len(indices))
    return counts[0], counts[1]


def _normal(source: _Source, expr: _Expr) -> list[_Term]:
    """The disjunctive normal form of a formula, in the order of the file."""
    if isinstance(expr, _Atom) or not expr.items or not isinstance(expr.items[0], _Atom):
        raise source.error("expected a formula such as (<= X_0 1), (and ...) or (or ...)", expr.start)
    head, arguments = expr.items[0].text, expr.items[1:]
    if head in ("<=", ">=", "="):
        return [_compare(source, expr, head, arguments)]
    if head in ("and", "or"):
        if not arguments:
            raise source.error(f"({head}) has no arguments; give at least one formula", expr.start)
        parts = [_normal(source, argument) for argument in arguments]
        if head == "and":
            return _conjoin(source, parts, expr.start)
        terms = [term for part in parts for term in part]
        _check_size(source, len(terms), 0, expr.start)
        return terms
    if head in ("<", ">"):
        raise source.error(
            f"strict '{head}' is not supported, as its solutions are not closed; use {head}=", expr.start
        )
    if head in ("not", "=>"):
        raise source.error(f"'{head}' is not supported; write the formula with and, or, <=, >= and = only", expr.start)
    raise source.error(f"unknown operator '{_short(head)}'; formulas use and, or, <=, >= and =", expr.start)


def _conjoin(source: _Source, parts: Sequence[list[_Term]], start: int) -> list[_Term]:
    """The conjunction of formulas in normal form: every choice of one term from each (sorted in the end)."""
    fixed = [constraint for part in parts if len(part) == 1 for constraint in part[0]]
    choices = [part for part in parts if len(part) > 1]
    if not choices:
        return [fixed]
    _check_product(source, choices, len(fixed), start)
    return [list(chain(fixed, *combination)) for combination in product(*choices)]


def _check_product(source: _Source, choices: Sequence[list[_Term]], fixed: int, start: int) -> None:
    longest = sum(max(map(len, choice)) for choice in choices) if len(choices) > 1 else 0
    _check_size(source, math.prod(map(len, choices)), fixed + longest, start)


def _check_size(source: _Source, terms: int, length: int, start: int) -> None:
    if terms > MAX_CONJUNCTIONS or terms * length > MAX_CONSTRAINTS:
        raise source.error(
            f"the disjunctive normal form has {terms:,} conjunctions, with {length:,} constraints copied to each; "
            f"at most {MAX_CONJUNCTIONS:,} conjunctions and {MAX_CONSTRAINTS:,} constraints are supported: "
            "split the property into several files",
            start,
        )


def _place(constraint: _Constraint) -> int:
    return constraint.start


def _compare(source: _Source, form: _Form, head: str, arguments: Sequence[_Expr]) -> _Term:
    """The constraints of one comparison: two for an equation."""
    if len(arguments) != 2:
        raise source.error(f"'{head}' takes two terms, got {len(arguments)}", form.start)
    left, right = (_linear(source, argument) for argument in arguments)
    if head == "<=":
        return (_constraint(source, left, right, form.start),)
    if head == ">=":
        return (_constraint(source, right, left, form.start),)
    return (_constraint(source, left, right, form.start), _constraint(source, right, left, form.start))


def _constraint(source: _Source, small: _Linear, large: _Linear, start: int) -> _Constraint:
    """`small <= large` as a limit of one input or a row over outputs."""
    coefficients = dict(small.coefficients)
    for name, value in large.coefficients.items():
        coefficients[name] = coefficients.get(name, Fraction(0)) - value
    threshold = large.constant - small.constant
    inputs = [name for name in coefficients if name[0] == "X"]
    if not coefficients:
        raise source.error("this compares constants only; a constraint must name an input or an output", start)
    if not inputs:
        return _Row(start, tuple((int(name[2:]), value) for name, value in coefficients.items()), threshold)
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
    return _Limit(start, int(name[2:]), scale > 0, threshold / scale)


def _linear(source: _Source, expr: _Expr) -> _Linear:
    """A term as exact coefficients by variable, in the order of the text, and a constant."""
    if isinstance(expr, _Atom):
        if expr.text in source.declared:
            return _Linear({expr.text: Fraction(1)}, Fraction(0))
        if _NUMBER.fullmatch(expr.text):
            return _Linear({}, _number(source, expr))
        if _VARIABLE.fullmatch(expr.text):
            raise source.error(
                f"{expr.text} is used but not declared; add (declare-const {expr.text} Real) before this line",
                expr.start,
            )
        raise source.error(f"unknown symbol '{_short(expr.text)}'; expected a number, X_i or Y_i", expr.start)
    head = expr.items[0].text if expr.items and isinstance(expr.items[0], _Atom) else ""
    if head not in ("+", "-", "*", "/"):
        raise source.error(f"unknown function '{_short(head)}'; terms use +, -, * and /", expr.start)
    operands = [_linear(source, item) for item in expr.items[1:]]
    if not operands or (len(operands) == 1 and head != "-"):
        raise source.error(f"'{head}' is given {len(operands)} terms; it needs at least two", expr.start)
    if head == "-" and len(operands) == 1:
        return _times(operands[0], Fraction(-1))
    total = operands[0]
    for operand in operands[1:]:
        total = _combine(source, head, total, operand, expr.start)
    return total


def _combine(source: _Source, head: str, left: _Linear, right: _Linear, start: int) -> _Linear:
    if head == "/":
        if right.coefficients:
            raise source.error("division by a variable is not linear and not supported", start)
        if right.constant == 0:
            raise source.error("division by zero", start)
        return _times(left, 1 / right.constant)
    if head == "*":
        if left.coefficients and right.coefficients:
            raise source.error("a product of variables is not linear and not supported", start)
        return _times(left, right.constant) if left.coefficients else _times(right, left.constant)
    sign = 1 if head == "+" else -1
    coefficients = dict(left.coefficients)
    for name, value in right.coefficients.items():
        coefficients[name] = coefficients.get(name, Fraction(0)) + sign * value
    return _Linear(coefficients, left.constant + sign * right.constant)


def _times(term: _Linear, factor: Fraction) -> _Linear:
    return _Linear({name: value * factor for name, value in term.coefficients.items()}, term.constant * factor)


def _number(source: _Source, atom: _Atom) -> Fraction:
    number = Decimal(atom.text) if len(atom.text) <= MAX_LITERAL else None
    if number is None or (number and abs(number.adjusted()) > MAX_EXPONENT):
        raise source.error(f"the number '{_short(atom.text)}' is too long or beyond any float", atom.start)
    return Fraction(number) if number else Fraction(0)


@dataclass(frozen=True)
class _Limits:
    """The tightest limits of the inputs that some assertions give."""

    lower: dict[int, _Limit]
    upper: dict[int, _Limit]

    def tightened(self, limits: Sequence[_Limit]) -> _Limits:
        """Only those of `limits` that are tighter than these, the tightest per input."""
        found = _Limits({}, {})
        for limit in limits:
            known, new = (self.upper, found.upper) if limit.upper else (self.lower, found.lower)
            old = new.get(limit.entry, known.get(limit.entry))
            if old is None or (limit.value < old.value if limit.upper else limit.value > old.value):
                new[limit.entry] = limit
        return found

    def key(self) -> frozenset[tuple[int, bool, Fraction]]:
        return frozenset(
            (limit.entry, limit.upper, limit.value) for limit in chain(self.lower.values(), self.upper.values())
        )


def _cases(
    source: _Source, asserted: Sequence[list[_Term]], inputs: int, outputs: int, shape: tuple[int, ...]
) -> tuple[Case, ...]:
    """All assertions conjoined, terms with the same box gathered, in the order of the file."""
    common = [constraint for part in asserted if len(part) == 1 for constraint in part[0]]
    choices = [part for part in asserted if len(part) > 1]
    base = _Limits({}, {}).tightened(_limits(common))
    rows = _rows(common)
    _check_product(source, choices, len(rows), 0)
    boxes: dict[frozenset[tuple[int, bool, Fraction]], tuple[_Limits, int | None, list[Disjunct]]] = {}
    for combination in product(*choices):
        chosen = list(chain(*combination))
        both = sorted(chain(rows, _rows(chosen)), key=_place)
        branch = min(chosen, key=_place).start if chosen else None
        if not both:
            raise source.error(
                "no output is constrained here, so every input would be a counterexample; assert something about Y_i",
                len(source.text) if branch is None else branch,
            )
        own = base.tightened(_limits(chosen))
        _, _, disjuncts = boxes.setdefault(own.key(), (own, branch, []))
        disjuncts.append(_disjunct(source, both, outputs))
    frame = _Frame.of(source, base, inputs)
    return tuple(
        _case(source, frame, own, branch, tuple(disjuncts), shape) for own, branch, disjuncts in boxes.values()
    )


def _limits(constraints: Sequence[_Constraint]) -> list[_Limit]:
    return [constraint for constraint in constraints if isinstance(constraint, _Limit)]


def _rows(constraints: Sequence[_Constraint]) -> list[_Row]:
    return [constraint for constraint in constraints if isinstance(constraint, _Row)]


@dataclass(frozen=True)
class _Frame:
    """What all boxes have in common, per input: the limits, and their floats and decimals where they exist."""

    limits: _Limits
    missing: tuple[tuple[int, bool], ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    decimals: tuple[tuple[Decimal, Decimal], ...]

    @staticmethod
    def of(source: _Source, limits: _Limits, inputs: int) -> _Frame:
        lower, upper = [0.0] * inputs, [0.0] * inputs
        decimals = [(Decimal(0), Decimal(0))] * inputs
        missing: list[tuple[int, bool]] = []
        for index in range(inputs):
            low, high = limits.lower.get(index), limits.upper.get(index)
            if low is None or high is None:
                missing.extend((index, side) for side, known in ((False, low), (True, high)) if known is None)
            else:
                lower[index], upper[index], decimals[index] = _side_by_side(source, low, high)
        return _Frame(limits, tuple(missing), tuple(lower), tuple(upper), tuple(decimals))


def _case(
    source: _Source,
    frame: _Frame,
    own: _Limits,
    branch: int | None,
    disjuncts: tuple[Disjunct, ...],
    shape: tuple[int, ...],
) -> Case:
    """The case of one box: the common limits with the branch's own ones in their place."""
    for index, side in frame.missing:
        if index not in (own.upper if side else own.lower):
            raise _missing(source, index, side, branch)
    lower, upper, decimals = list(frame.lower), list(frame.upper), list(frame.decimals)
    for index in own.lower.keys() | own.upper.keys():
        low = own.lower.get(index) or frame.limits.lower[index]
        high = own.upper.get(index) or frame.limits.upper[index]
        lower[index], upper[index], decimals[index] = _side_by_side(source, low, high)
    corners = (torch.tensor(side, dtype=torch.float64).reshape(1, *shape) for side in (lower, upper))
    return Case(Box(*corners), disjuncts, tuple(decimals))


def _missing(source: _Source, index: int, upper: bool, branch: int | None) -> SpecError:
    kind, sign = ("upper", "<=") if upper else ("lower", ">=")
    where = "" if branch is None else f" in the conjunction that begins in line {source.line(branch)}"
    name = f"X_{index}"
    return source.error(f"{name} has no {kind} limit{where}; add ({sign} {name} NUMBER)", source.declared[name])


def _side_by_side(source: _Source, low: _Limit, high: _Limit) -> tuple[float, float, tuple[Decimal, Decimal]]:
    """Both limits of an input as floats rounded outwards and as decimals, rounded inwards if there are none."""
    name = f"X_{low.entry}"
    last = max(low.start, high.start)
    if low.value > high.value:
        raise source.error(
            f"the region is empty: {name} >= {_written(low.value)} (line {source.line(low.start)}) and "
            f"{name} <= {_written(high.value)} (line {source.line(high.start)}) exclude each other; correct one",
            last,
        )
    floats = _nearest(low.value), _nearest(high.value)
    if not all(map(math.isfinite, floats)):
        raise source.error(f"a limit of {name} is beyond the range of float64; bound it by finite floats", last)
    lower, upper = floats
    if Fraction(lower) > low.value:
        lower = math.nextafter(lower, -math.inf)
    if Fraction(upper) < high.value:
        upper = math.nextafter(upper, math.inf)
    decimals = _decimal(low.value, ROUND_CEILING), _decimal(high.value, ROUND_FLOOR)
    if decimals[0] > decimals[1]:
        raise source.error(f"no decimal number lies between the limits of {name}; write them as decimals", last)
    return lower, upper, decimals


def _disjunct(source: _Source, rows: Sequence[_Row], outputs: int) -> Disjunct:
    """The half-spaces of one conjunction; thresholds that no float64 equals are rounded up."""
    scaled = [_scaled(source, row) for row in rows]
    matrix = torch.zeros(len(rows), outputs, dtype=torch.float64)
    for position, row in enumerate(scaled):
        for index, value in row.coefficients:
            matrix[position, index] = float(value)
    exact = tuple(row.threshold for row in scaled)
    rounded = [_up(value) for value in exact]
    if not all(map(math.isfinite, rounded)):
        raise source.error("a threshold is beyond the range of float64", rows[0].start)
    inexact = any(Fraction(value) != limit for value, limit in zip(rounded, exact, strict=True))
    thresholds = torch.tensor(rounded, dtype=torch.float64)
    return Disjunct(matrix, thresholds, tuple(map(_text, scaled)), exact if inexact else ())


def _scaled(source: _Source, row: _Row) -> _Row:
    """The same half-space with coefficients that float64 holds exactly."""
    if all(_representable(value) for _, value in row.coefficients):
        return row
    factor = math.lcm(*(value.denominator for _, value in row.coefficients))
    coefficients = tuple((index, value * factor) for index, value in row.coefficients)
    if not all(_representable(value) for _, value in coefficients):
        raise source.error(
            "float64 cannot hold the coefficients of this constraint exactly, nor a common multiple of them; "
            "write them with fewer digits",
            row.start,
        )
    return _Row(row.start, coefficients, row.threshold * factor)


def _text(row: _Row) -> str:
    """`c.y - t` for readers: "Y_7 - Y_0", "Y_0 - 3.99", "2 Y_1 + Y_3 + 1.5"."""
    parts = [
        (value < 0, f"Y_{index}" if abs(value) == 1 else f"{_written(abs(value))} Y_{index}")
        for index, value in row.coefficients
        if value
    ]
    if row.threshold or not parts:
        parts.append((row.threshold > 0, _written(abs(row.threshold))))
    (negative, first), *rest = parts
    return ("-" if negative else "") + first + "".join(f" {'-' if minus else '+'} {part}" for minus, part in rest)


def _nearest(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _up(value: Fraction) -> float:
    """The least float64 that is not below `value`."""
    nearest = _nearest(value)
    if math.isinf(nearest) or Fraction(nearest) >= value:
        return nearest
    return math.nextafter(nearest, math.inf)


def _representable(value: Fraction) -> bool:
    nearest = _nearest(value)
    return math.isfinite(nearest) and Fraction(nearest) == value


def _exact_decimal(value: Fraction) -> Decimal | None:
    """The decimal equal to `value`, if its expansion ends."""
    denominator = value.denominator
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    digits = Decimal(value.numerator * (10**places // denominator))
    return Context(prec=1_000_000).scaleb(digits, -places)


def _decimal(value: Fraction, rounding: str) -> Decimal:
    exact = _exact_decimal(value)
    if exact is not None:
        return exact
    return Context(prec=60, rounding=rounding).divide(Decimal(value.numerator), Decimal(value.denominator))


def _written(value: Fraction) -> str:
    """A number for messages and row texts: its decimals if they end, otherwise the fraction."""
    exact = _exact_decimal(value)
    return str(value) if exact is None else str(exact)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
