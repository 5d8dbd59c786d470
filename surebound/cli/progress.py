"""Progress on stderr, for people only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line that says `what` until the yielded function is given other words.

    Nothing is shown when `quiet` or when stderr is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda message: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield lambda message: status.update(message)


@contextmanager
def counted(total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A bar with the time that is left; the yielded function counts one more of `total` and says something about it.

    Nothing is shown when `quiet` or when stderr is not a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda message: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600, expand=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda message: bar.update(task, advance=1, description=message)


def steps_shown(show: Callable[[str], None], again: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Words with the steps done of all, and how long the others are going to take. again: raises an interrupt that was
    swallowed.
    """
    began, first_step, of = time.monotonic(), 0, 0

    def tell(words: str, done: int, total: int) -> None:
        nonlocal began, first_step, of
        again()
        if done <= 1 or not first_step or total != of:
            began, first_step, of = time.monotonic(), max(done, 1), total
        spent = time.monotonic() - began
        left = spent / max(1, done - first_step) * (total - done)
        show(f"{words}, {done:,} of {total:,} steps, {left / 60:.0f} min to go" if total else words)

    return tell
