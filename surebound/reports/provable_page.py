"""What `surebound make-provable` tells its reader: what came, what it became, what was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surebound.reports.html import Code, Heading, Part, Picture, Text, page
from surebound.reports.table import Table, duration, percent

ROWS = (
    ("Accuracy", "clean"),
    ("Right under attack and search", "attacked"),
    ("Verified accuracy", "verified"),
    ("of it by interval bounds alone", "verified_ibp"),
    ("of it by CROWN alone", "verified_crown"),
    ("Undecided", "unknown"),
    ("Neurons that are lines", "grafted"),
    ("Weights that are not zero", "weights"),
    ("Neurons that CROWN leaves unstable", "crown"),
)


def comparison(before: Mapping[str, Any], after: Mapping[str, Any], count: int) -> Table:
    """Two networks side by side."""
    rows = [(words, percent(before[key], count), percent(after[key], count)) for words, key in ROWS]
    rows.append(("Time per image", duration(before["seconds"]), duration(after["seconds"])))
    rows.append(("Sub-problems per image", f"{before['nodes']:,.0f}", f"{after['nodes']:,.0f}"))
    return Table(("", "as it came", "made provable"), tuple(rows), emphasis=frozenset({2}))


def provable_page(
    found: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    compression: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, bytes],
    values: Mapping[str, Any],
    chosen: str,
) -> str:
    """The HTML text. found: rows before and after, of validation and of test images."""
    settings, curve = values["provable"], values["curve"]
    tried = Table(
        ("Step", "clean", "attacked", "verified", "lines", "weights", "per image"),
        tuple(
            (row["name"], *(percent(row[key], curve["images"]) for key in ("clean", "attacked", "verified")),
             percent(row["grafted"], 1000), percent(row["weights"], 1000), duration(row["seconds"]))
            for row in rows
        ),
    )  # fmt: skip
    sizes = Table(
        ("Compression", "parameters", "neurons", "largest difference"),
        tuple(
            (step["name"], f"{step['parameters']:,}", f"{step['neurons']:,}", f"{step['gap']:.1g}")
            for step in compression
        ),
    )
    tested = settings["test_images"]
    parts: list[Part] = [
        Heading("On test images"),
        Text(
            f"The first {tested} test images, which no choice looked at; each may change by {values['eps']:g} in every "
            f"pixel, and the search may spend {curve['timeout']:g} s on it."
        ),
        comparison(found["test_before"], found["test_after"], tested),
        Heading("What was tried"),
        Text(
            f"Each step starts from the best network before it and trains for {settings['epochs']} epochs; it counts "
            f"as better when more of {curve['images']} validation images are verified"
            + (
                ", or as many in less time"
                if settings["target"] == "verified"
                else " or as many, in less time per image"
            )
            + f", at no more than {100 * settings['loss']:g} points of clean accuracy lost. Chosen: {chosen}."
        ),
        tried,
        Picture(pictures["accuracy"], "accuracies of the candidates", "Validation images; the dotted line is chosen."),
        Picture(pictures["seconds"], "seconds per image of the candidates"),
        Heading("The network"),
        Text("Outputs are the same before and after each of these, up to the difference given, for pixels in [0, 1]."),
        sizes,
        Code("surebound info model.onnx"),
    ]
    before, after = (percent(found[name]["verified"], tested) for name in ("test_before", "test_after"))
    lead = f"{values['data']}, radius {values['eps']:g}: verified accuracy {before} before, {after} after."
    return page("Made provable", lead, parts)
