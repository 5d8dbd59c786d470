"""Sparse networks from trained ones: prune, graft, ablate, lottery, make-provable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from surebound.cli.options import Common
from surebound.cli.output import SCHEMA, emit, explain, say, to_json
from surebound.cli.progress import progress, steps_shown
from surebound.errors import INTERRUPTED, NotYet
from surebound.machine import ending_interrupts

if TYPE_CHECKING:
    from surebound.loop.work import Say


@dataclass(frozen=True)
class Answer:
    """What goes to stdout: as JSON, or as text."""

    values: Mapping[str, Any]
    text: str


class Sparsifying(Protocol):
    """One of the commands, as given on the command line."""

    @property
    def out(self) -> Path: ...
    @property
    def common(self) -> Common: ...
    def work(self, tell: Say) -> Answer:
        """Do it."""
        ...


def run(job: Sparsifying) -> int:
    """Do the work and say how it went; the exit code."""
    try:
        job.common.check()
        with ending_interrupts() as again, progress("loading", job.common.quiet) as show:
            machine = job.common.machine()
            if machine.device.type != "cpu":
                raise NotYet(f"this does not run on '{machine.device}' yet; leave out --device, or give cpu")
            answer = job.work(steps_shown(show, again))
    except (Exception, KeyboardInterrupt) as error:
        failure = explain(error)
        if failure.exit_code == INTERRUPTED:
            say(f"the same command goes on from what is in {job.out}")
        return failure.exit_code
    emit(to_json({"schema": SCHEMA, **answer.values}) if job.common.json else answer.text)
    return 0


def parts_of(config: Path | None, settings: Sequence[str], common: Common) -> list[dict[str, Any]]:
    """Settings from a file, then those of --set, then the seed."""
    from surebound.training.recipe import read_toml, setting

    parts = [read_toml(config)] if config is not None else []
    seed = {} if common.seed is None else {"seed": common.seed}
    return [*parts, *(setting(text) for text in settings), seed]


@dataclass(frozen=True)
class Job:
    """A run folder and what is done to its network."""

    kind: Literal["prune", "graft", "ablate"]
    run: Path
    config: Path | None
    settings: Sequence[str]
    out: Path
    data_dir: Path | None
    common: Common

    def work(self, tell: Say) -> Answer:
        from surebound.loop.ablate import ablate
        from surebound.loop.curve import as_text
        from surebound.loop.graft import graft_run
        from surebound.loop.prune import prune

        parts = parts_of(self.config, self.settings, self.common)
        if self.kind == "ablate":
            found = ablate(self.run, self.out, parts, self.data_dir, tell)
            rows = [{"variation": each.variation, **asdict(each.row)} for each in found]
            names = [each.variation if each.row.name != "dense" else "dense" for each in found]
            return Answer({"rows": rows}, as_text([each.row for each in found], names))
        done = {"prune": prune, "graft": graft_run}[self.kind](self.run, self.out, parts, self.data_dir, tell)
        text = f"the best by validation images is {done.chosen}, which is the network of {self.out}"
        rows = [asdict(row) for row in done.rows]
        return Answer({"chosen": done.chosen, "rows": rows}, f"{as_text(done.rows)}\n{text}")


@dataclass(frozen=True)
class Lottery:
    """A recipe whose networks may have tickets."""

    config: Path | None
    recipe: str | None
    settings: Sequence[str]
    out: Path
    data_dir: Path | None
    common: Common

    def work(self, tell: Say) -> Answer:
        from surebound.errors import UsageError
        from surebound.loop.lottery import as_text, lottery, summary
        from surebound.training.published import parts_of as published

        if self.config is not None and self.recipe is not None:
            raise UsageError("give a TOML file or --recipe, not both")
        parts = [*(published(self.recipe) if self.recipe else []), *parts_of(self.config, self.settings, self.common)]
        tickets = lottery(parts, self.out, self.data_dir, tell)
        return Answer({**summary(tickets), "tickets": [asdict(each) for each in tickets]}, as_text(tickets))


@dataclass(frozen=True)
class Provable:
    """A model that is to be proven."""

    model: str
    weights: Path | None
    config: Path | None
    data: str | None
    eps: str | None
    target: str
    settings: Sequence[str]
    out: Path
    data_dir: Path | None
    common: Common

    def work(self, tell: Say) -> Answer:
        from surebound.cli.evaluate import number
        from surebound.loop.curve import as_text
        from surebound.loop.provable import make_provable

        parts = parts_of(self.config, self.settings, self.common)
        asked: dict[str, Any] = {"provable": {"target": self.target}}
        if self.data is not None:
            asked["data"] = self.data
        if self.eps is not None:
            asked["eps"] = number(self.eps, "--eps")
        found = make_provable(self.model, self.out, [asked, *parts], self.data_dir, tell, self.weights)
        rows = [found.test_before, found.test_after]
        text = f"chosen: {found.chosen}; on test images:\n{as_text(rows)}\nsee {self.out / 'report.html'}"
        values = {name: asdict(getattr(found, name)) for name in ("before", "after", "test_before", "test_after")}
        return Answer({"chosen": found.chosen, **values}, text)
