"""Tables as values, shown in a terminal; `reports.html` shows the same value on a page."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table as RichTable

from surebound.errors import UsageError


@dataclass(frozen=True)
class Table:
    """columns: headings, the first that of the row names; rows: one text per column; emphasis: columns to stress."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    emphasis: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UsageError(f"a row of {len(row)} texts does not fit {len(self.columns)} columns: {row}")


def in_terminal(table: Table) -> RichTable:
    """For a rich console: numbers to the right, names to the left."""
    shown = RichTable(title=table.title or None, title_justify="left", header_style="bold")
    for number, column in enumerate(table.columns):
        style = "bold" if number in table.emphasis else None
        shown.add_column(column, justify="left" if number == 0 else "right", style=style)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def percent(share: float, count: int) -> str:
    """A fraction of `count` things, as precise as they allow: "62 %" of 100, "62.5 %" of 1000."""
    return f"{100 * share:.{0 if count <= 100 else 1}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """Milliseconds below a second, else seconds, two or three digits."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f}\N{NO-BREAK SPACE}ms"
    return f"{seconds:.{1 if seconds < 100 else 0}f}\N{NO-BREAK SPACE}s"
