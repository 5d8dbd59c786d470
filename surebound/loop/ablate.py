"""What each part of linearity grafting is good for: the same run grafted in many ways, side by side.

OUT/NAME is the grafting of one variation (`loop.settings.VARIATIONS`); OUT/ablation.csv has a row for each of its
networks, and one for the run they start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surebound.loop.curve import COLUMNS, Curve, Row
from surebound.loop.dense import Dense, require_other, require_same_network
from surebound.loop.graft import graft_run
from surebound.loop.settings import TUNING, VARIATIONS, recipe_in, settings_of
from surebound.loop.work import Say, quiet
from surebound.reports.figures import side_by_side
from surebound.rowfile import claimed, replace_file, table
from surebound.same_settings import same_settings
from surebound.training.recipe import DEFAULTS


@dataclass(frozen=True)
class Variation:
    """A way of grafting and one of its networks."""

    variation: str
    row: Row


def ablate(
    run: Path, out: Path, parts: Sequence[Mapping[str, Any]], data_dir: Path | None = None, say: Say = quiet
) -> tuple[Variation, ...]:
    """Graft the network of a run folder in every way; parts: settings with the tables `graft`, `curve` and `ablate`.

    What is there with the same settings goes on. Raises UsageError, DataError, ModelError.
    """
    with claimed(out):
        dense = Dense.read(run)
        require_other(out, run)
        values = settings_of(("ablate", "graft", "curve"), dense.recipe, (TUNING, *parts))
        require_same_network(values, dense)
        names = values["ablate"]["only"] or list(VARIATIONS)
        folder = same_settings(out, {"start": dense.digest, **values}, (out / names[0] / "curve.csv").exists())
        shared = {name: values[name] for name in ("graft", "curve")} | changed(recipe_in(values))
        found: list[Variation] = []
        lines: list[dict[str, Any]] = []
        for name in names:

            def tell(words: str, done: int, total: int, name: str = name) -> None:
                say(f"{name}: {words}", done, total)

            first, own = out / names[0] / "curve.csv", out / name / "curve.csv"
            if found and not own.exists():  # the dense network is measured once
                own.parent.mkdir(exist_ok=True)
                replace_file(own, table(COLUMNS, [asdict(Curve(first).rows()[0])]))
            rows = graft_run(run, out / name, [shared, {"graft": VARIATIONS[name]}], data_dir, tell).rows
            found += [Variation(name, row) for row in rows[0 if not found else 1 :]]
            lines = [{"variation": each.variation, **asdict(each.row)} for each in found]
            replace_file(out / "ablation.csv", table(("variation", *COLUMNS), lines))
        shares = {
            each.variation if each.row.name != "dense" else "dense": each.row for each in found
        }  # of several ratios the last
        (folder.path / "plots" / "ablation.png").write_bytes(
            side_by_side({name: asdict(row) for name, row in shares.items()}, ("clean", "attacked", "verified"))
        )
        folder.write_summary({"command": "ablate", "rows": lines})
        return tuple(found)


def changed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as a part of settings."""
    return {name: recipe[name] for name in DEFAULTS}
