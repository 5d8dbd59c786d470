"""VNN-LIB 1.0: commands that declare X_i and Y_i one by one, and assertions.

(declare-const X_i Real)   (declare-const Y_i Real)   (assert FORMULA)
"""

from __future__ import annotations

from collections.abc import Sequence

from surebound.vnnlib.formula import VARIABLE, Term, normal_form
from surebound.vnnlib.source import Atom, Form, Source, short


def read_commands(source: Source, forms: Sequence[Form]) -> tuple[list[list[Term]], int, int]:
    """The assertions in normal form, the numbers of inputs and outputs."""
    asserted = [part for form in forms for part in command(source, form)]
    return asserted, *sizes(source)


def command(source: Source, form: Form) -> Sequence[list[Term]]:
    """Obey one command; for an assertion its disjunctive normal form."""
    head = form.items[0].text if form.items and isinstance(form.items[0], Atom) else ""
    if head == "declare-const":
        declare(source, form)
        return ()
    if head == "assert":
        if len(form.items) != 2:
            raise source.error(f"assert takes one formula, got {len(form.items) - 1}", form.start)
        return (normal_form(source, form.items[1]),)
    raise source.error(f"unknown command '{short(head)}'; VNN-LIB 1.0 has declare-const and assert", form.start)


def declare(source: Source, form: Form) -> None:
    match form.items[1:]:
        case (Atom(name, start), Atom(sort, place)):
            pass
        case _:
            raise source.error("a declaration looks like (declare-const X_0 Real)", form.start)
    if not VARIABLE.fullmatch(name):
        raise source.error(f"cannot declare '{short(name)}'; inputs are X_0, X_1, ... and outputs Y_0, Y_1, ...", start)
    if sort != "Real":
        raise source.error(f"{name} is declared as '{short(sort)}'; only Real is supported", place)
    if name in source.declared:
        raise source.error(f"{name} is declared twice, first in line {source.line(source.declared[name])}", start)
    source.declared[name] = start


def sizes(source: Source) -> tuple[int, int]:
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
