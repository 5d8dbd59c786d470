"""The errors a user can meet: each says what was wrong, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

INTERRUPTED = 130
"""The exit code of an interrupted command."""


class SureboundError(Exception):
    """Base of every expected error; the command line prints the message and exits with `exit_code`."""

    exit_code = 2
    verdict = "error"


class UsageError(SureboundError):
    """An argument or option that makes no sense."""


class ModelError(SureboundError):
    """A model that cannot be read: missing, truncated, not ONNX, NaN weights, wrong shapes."""


class InvalidGraph(SureboundError):
    """A graph that breaks the rules of `surebound.graph.check`."""

    exit_code = 1


class InvalidProof(SureboundError):
    """A proof that cannot be read, does not cover its region, or does not fit the network and the property."""


class TraceMismatch(ModelError):
    """The imported graph and the original network disagree on some input."""


class ParametersChanged(ModelError):
    """A parameter that the graph was traced with is gone or has another shape."""


class SpecError(SureboundError):
    """A property that cannot be read or does not fit the network."""

    def __init__(self, message: str, file: str | None = None, line: int | None = None, column: int | None = None):
        self.file, self.line, self.column = file, line, column
        place = ":".join(str(part) for part in (file, line, column) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)


class UnsupportedSpec(SpecError):
    """A property that can be read but is of a kind that is not decided here."""

    exit_code = 3
    verdict = "unsupported"


class DataError(SureboundError):
    """A data set that is absent or damaged."""


class UnsupportedOp(SureboundError):
    """An operation without a rule: names the node, the op, what rule exists, and how to add one."""

    exit_code = 3
    verdict = "unsupported"

    def __init__(self, op: str, node: str, origin: str = "", reason: str = "", rules: str = "none"):
        self.op, self.node, self.origin, self.reason, self.rules = op, node, origin, reason, rules
        where = f" ({origin})" if origin else ""
        why = f": {reason}" if reason else ""
        super().__init__(
            f"op '{op}' at node '{node}'{where} is not supported{why}. Rules that exist for it: {rules}. "
            "To add one see docs/add-an-op.md."
        )


class OutOfTime(SureboundError):
    """The time allowed ended in the middle of a step."""

    exit_code = 0
    verdict = "timeout"


class OutOfMemory(SureboundError):
    """The work does not fit into the memory allowed, even in its smallest pieces."""

    exit_code = 0
    verdict = "memory"


class NotYet(SureboundError):
    """Something that an interface has room for and this version cannot do."""

    exit_code = 3
    verdict = "unsupported"


@dataclass(frozen=True)
class Failure:
    """What ended a run early: the verdict to report, the reason in words, the exit code."""

    verdict: str
    reason: str
    exit_code: int


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception means; anything unexpected is an internal error."""
    if isinstance(error, SureboundError):
        return Failure(error.verdict, str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("unknown", "interrupted", INTERRUPTED)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure("memory", f"out of memory: {error}", 0)
    return Failure("error", f"internal error: {type(error).__name__}: {error}", 1)
