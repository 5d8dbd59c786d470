"""Certified lottery tickets: is there a sparse network that, trained from its own initialisation, is at least as good
as the dense one, both in clean and in verified accuracy? (Li et al. 2022; Frankle & Carbin 2019)

OUT/seed-0 and so on: `dense` is the run, `rounds` its pruning, `test.csv` dense network and ticket on test images.
A ticket is chosen by validation images: the sparsest round that is at least as good in both, and of which something is
verified. OUT/tickets.csv has a row for each seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from surebound.data.augment import centred
from surebound.data.dataset import Part, in_unit
from surebound.errors import UsageError
from surebound.fit import data_of, fit
from surebound.loop.curve import Curve, Row, measured
from surebound.loop.prune import prune
from surebound.loop.settings import recipe_in, settings_of
from surebound.loop.work import Say, quiet
from surebound.rowfile import claimed, replace_file, table
from surebound.runs import load_network
from surebound.same_settings import same_settings
from surebound.training.recipe import Values


@dataclass(frozen=True)
class Ticket:
    """One seed. name: the round, "" where none is a ticket; kernels, weights: parts that are left of them. Accuracies
    of dense network and ticket: on validation images, by which the ticket was chosen, and on test images.
    """

    seed: int
    name: str
    kernels: float
    weights: float
    dense_clean: float
    dense_verified: float
    clean: float
    verified: float
    test_dense_clean: float
    test_dense_verified: float
    test_clean: float
    test_verified: float

    @property
    def found(self) -> bool:
        """Is there a ticket?"""
        return bool(self.name)

    @property
    def confirmed(self) -> bool:
        """Is it at least as good on test images, too?"""
        better = self.test_clean >= self.test_dense_clean and self.test_verified >= self.test_dense_verified
        return self.found and better and self.test_verified > 0


COLUMNS = tuple(field.name for field in fields(Ticket))


def lottery(
    parts: Sequence[Mapping[str, Any]], out: Path, data_dir: Path | None = None, say: Say = quiet
) -> tuple[Ticket, ...]:
    """Train, prune and compare for every seed; parts: a recipe with the tables `prune`, `curve` and `lottery`.

    What is there with the same settings goes on. Raises UsageError, DataError, ModelError.
    """
    with claimed(out):
        from surebound.training.recipe import recipe_of

        values = settings_of(("lottery", "prune", "curve"), recipe_of(), parts)
        if values["prune"]["then"] != "rewind":
            raise UsageError("a lottery ticket is trained from its initialisation; leave prune.then = 'rewind'")
        folder = same_settings(out, values, (out / f"seed-{values['lottery']['seeds'][0]}").exists())
        tickets: list[Ticket] = []
        for seed in values["lottery"]["seeds"]:

            def tell(words: str, done: int, total: int, seed: int = seed) -> None:
                say(f"seed {seed}: {words}", done, total)

            tickets.append(drawn(seed, values, out / f"seed-{seed}", data_dir, tell))
            replace_file(out / "tickets.csv", table(COLUMNS, [asdict(ticket) for ticket in tickets]))
        folder.write_summary({"command": "lottery", **summary(tickets), "tickets": [asdict(each) for each in tickets]})
        return tuple(tickets)


def drawn(seed: int, values: Values, place: Path, data_dir: Path | None, say: Say) -> Ticket:
    """The ticket of one seed."""
    recipe = {**recipe_in(values), "seed": seed}
    fit(recipe, place / "dense", data_dir, say)
    own = [{"prune": values["prune"], "curve": values["curve"]}]
    rows = prune(place / "dense", place / "rounds", own, data_dir, say).rows
    dense, ticket = rows[0], ticket_among(rows)
    part = test_part({**values, "seed": seed}, data_dir)
    curve = Curve(place / "test.csv")

    def tested(name: str, folder: Path) -> Row:
        def show(words: str) -> None:
            say(f"{name} on test images: {words}", 0, 0)

        return curve.row(name, lambda: measured(name, load_network(folder), part, {**values, "seed": seed}, show))

    at_test = tested("dense", place / "dense")
    best = at_test if ticket is None else tested(ticket.name, place / "rounds" / ticket.name)
    chosen = dense if ticket is None else ticket
    return Ticket(
        seed, "" if ticket is None else ticket.name, chosen.kernels, chosen.weights, dense.clean, dense.verified,
        chosen.clean, chosen.verified, at_test.clean, at_test.verified, best.clean, best.verified,
    )  # fmt: skip


def ticket_among(rows: Sequence[Row]) -> Row | None:
    """The sparsest network that is at least as good as the first one in clean and verified accuracy, and of which
    something is verified.
    """
    dense = rows[0]
    good = [row for row in rows[1:] if row.clean >= dense.clean and row.verified >= dense.verified and row.verified > 0]
    return min(good, key=lambda row: row.weights) if good else None


def test_part(values: Values, data_dir: Path | None) -> Part:
    """The first test images as the network takes them."""
    part = data_of(values, data_dir).test.first(values["lottery"]["images"])
    return Part(centred(in_unit(part.images), values["augment"]["size"]), part.labels, part.indices)


def summary(tickets: Sequence[Ticket]) -> dict[str, Any]:
    """How many seeds have a ticket, how many of them are confirmed on test images, and means over those found."""
    found = [ticket for ticket in tickets if ticket.found]
    told: dict[str, Any] = {
        "seeds": len(tickets), "found": len(found), "confirmed": sum(ticket.confirmed for ticket in found),
    }  # fmt: skip
    for name in ("kernels", "test_dense_clean", "test_dense_verified", "test_clean", "test_verified"):
        told[name] = fmean(getattr(ticket, name) for ticket in found) if found else None
    return told


def as_text(tickets: Sequence[Ticket]) -> str:
    """A line for each seed and one for all."""
    lines: list[str] = []
    for each in tickets:
        if not each.found:
            lines.append(f"seed {each.seed}: no round is at least as good as the dense network")
            continue
        lines.append(
            f"seed {each.seed}: {each.name} with {each.kernels:.1%} of the kernels' weights; on test images clean "
            f"{each.test_dense_clean:.1%} -> {each.test_clean:.1%}, verified {each.test_dense_verified:.1%} -> "
            f"{each.test_verified:.1%}{'' if each.confirmed else ', which is not as good'}"
        )
    told = summary(tickets)
    lines.append(f"tickets: {told['found']} of {told['seeds']} seeds, {told['confirmed']} confirmed on test images")
    return "\n".join(lines)
