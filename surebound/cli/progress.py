"""Progress on stderr, for people only."""

from __future__ import annotations

import sys
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
