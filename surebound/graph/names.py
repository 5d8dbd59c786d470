"""Names that nobody has yet."""

from __future__ import annotations


def taken(wanted: str, used: set[str]) -> str:
    """`wanted`, or with a number appended when it is used; the name is used from now on."""
    name, count = wanted, 1
    while name in used:
        count += 1
        name = f"{wanted}.{count}"
    used.add(name)
    return name
