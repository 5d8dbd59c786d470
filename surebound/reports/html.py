"""One self-contained HTML page: text, tables, pictures; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from surebound.reports.table import Table

STYLE = """
:root { color-scheme: light; --ink: #1d2b3a; --faint: #5d6b79; --line: #e3e8ed; --soft: #f5f7f9; --good: #2a7f62; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 17px/1.6 Georgia, "Times New Roman", serif; }
main { max-width: 46rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1, h2, table, code, figcaption, .lead { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.02em; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; letter-spacing: -.01em; }
p { margin: .6rem 0; }
.lead { font-size: 1.05rem; color: var(--faint); margin-bottom: 2rem; }
table { width: 100%; border-collapse: collapse; font-size: .88rem; line-height: 1.35; margin: 1.2rem 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--faint); font-weight: 600; border-bottom: 2px solid var(--ink); }
tbody th { font-weight: 400; }
.stress { font-weight: 650; background: var(--soft); }
thead .stress { color: var(--ink); }
figure { margin: 1.4rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: var(--faint); margin-top: .4rem; }
blockquote { margin: 1.2rem 0; padding: 1rem 1.3rem; background: var(--soft); border-left: 4px solid var(--good);
  font-size: 1.1rem; }
pre { background: var(--soft); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; margin: 1rem 0; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .85rem; }
.scroll { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Quote:
    """A statement that deserves a line of its own."""

    text: str


@dataclass(frozen=True)
class Code:
    """Something to type or to read letter by letter."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG with a caption; alt: the picture in words."""

    png: bytes
    alt: str
    caption: str = ""


Part = Heading | Text | Quote | Code | Picture | Table


def page(title: str, lead: str, parts: Sequence[Part]) -> str:
    """The HTML text of a page; all texts are escaped."""
    body = "\n".join(_part(part) for part in parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _part(part: Part) -> str:
    if isinstance(part, Heading):
        return f"<h2>{escape(part.text)}</h2>"
    if isinstance(part, Text):
        return f"<p>{escape(part.text)}</p>"
    if isinstance(part, Quote):
        return f"<blockquote>{escape(part.text)}</blockquote>"
    if isinstance(part, Code):
        return f"<pre><code>{escape(part.text)}</code></pre>"
    if isinstance(part, Picture):
        data = base64.b64encode(part.png).decode("ascii")
        caption = f"<figcaption>{escape(part.caption)}</figcaption>" if part.caption else ""
        return f'<figure><img alt="{escape(part.alt)}" src="data:image/png;base64,{data}">{caption}</figure>'
    return _table(part)


def _table(table: Table) -> str:
    def cell(tag: str, number: int, text: str, scope: str = "") -> str:
        stress = ' class="stress"' if number in table.emphasis else ""
        return f"<{tag}{scope}{stress}>{escape(text)}</{tag}>"

    head = "".join(cell("th", number, text, ' scope="col"') for number, text in enumerate(table.columns))
    rows = "".join(
        "<tr>"
        + "".join(
            cell("th", number, text, ' scope="row"') if number == 0 else cell("td", number, text)
            for number, text in enumerate(row)
        )
        + "</tr>\n"
        for row in table.rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>'
