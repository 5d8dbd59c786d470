"""Text in parentheses with places for messages: what VNN-LIB files are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from surebound.errors import SpecError

MAX_DEPTH = 100
TOKEN = re.compile(r"[()]|;[^\n\r]*|[^\s();]+")
BREAK = re.compile(r"\r\n?|\n")


class Atom(NamedTuple):
    """A word, and its offset."""

    text: str
    start: int


class Form(NamedTuple):
    """What is between two parentheses, and the offset of the first."""

    items: tuple[Expr, ...]
    start: int


Expr = Atom | Form


@dataclass(frozen=True)
class Source:
    """The text being read and the variables declared so far, with the offset of their declarations; shown: what the
    text calls them where that is something else.
    """

    text: str
    file: str
    declared: dict[str, int] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def breaks(self, offset: int) -> list[int]:
        """Where the lines before an offset end: behind LF, CR or both."""
        return [match.end() for match in BREAK.finditer(self.text, 0, offset)]

    def line(self, offset: int) -> int:
        return len(self.breaks(offset)) + 1

    def error(self, message: str, offset: int) -> SpecError:
        start = max(self.breaks(offset), default=0)
        return SpecError(message, self.file, self.line(offset), offset - start + 1)


def forms_of(source: Source) -> Iterator[Form]:
    """The top-level parenthesised forms, each as soon as it is complete."""
    items: list[Expr] = []
    outer: list[tuple[list[Expr], int]] = []
    start = 0
    for match in TOKEN.finditer(source.text):
        token, offset = match[0], match.start()
        if token == "(":
            if len(outer) == MAX_DEPTH:
                raise source.error(f"parentheses are nested deeper than {MAX_DEPTH}; flatten the formula", offset)
            outer.append((items, start))
            items, start = [], offset
        elif token == ")":
            if not outer:
                raise source.error("unexpected ')': it closes nothing; remove it", offset)
            form = Form(tuple(items), start)
            items, start = outer.pop()
            if outer:
                items.append(form)
            else:
                yield form
        elif token[0] != ";":
            if not outer:
                raise source.error(f"expected '(' but found '{short(token)}'; every command is parenthesised", offset)
            items.append(Atom(token, offset))
    if outer:
        raise source.error("this '(' is never closed; add the missing ')'", start)


def short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
