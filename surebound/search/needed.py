"""Which intermediate values a search's rows depend on: no other box is worth tightening.

A row over a few outputs of a convolutional network sees a window of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from surebound.bounds.plan import Plan
from surebound.bounds.walk import lines_at, walk
from surebound.linear.maps import Dense, LinearMap
from surebound.ops.record import Lines


def needed(of: Plan, values: Mapping[str, Tensor], output: str, spec: Tensor) -> dict[str, Tensor]:
    """By operand of relaxed steps bool [*shape]: do rows spec [R, S, *shape] over the output depend on the entry?
    Operands of which all entries are needed are left out.

    A random combination of the rows is walked back, every relaxed step a random slope: what depends on an entry has a
    coefficient there that is not zero. That one is zero by chance makes bounds looser, and never wrong.
    """
    generator = torch.Generator().manual_seed(0)
    rows = spec.flatten(0, 1)
    mixed = torch.tensordot(torch.randn(len(rows), dtype=rows.dtype, generator=generator), rows, 1)

    def lines(name: str, here: LinearMap) -> Lines:
        slope = 0.5 + torch.rand(1, 1, *of.graph[name].shape, dtype=rows.dtype, generator=generator)
        return lines_at(here, Lines(slope, None, slope, None))

    with torch.no_grad():
        reached = walk(of, values, output, Dense(mixed[None, None]), lines, keep=frozenset(of.operands)).reached
    found: dict[str, Tensor] = {}
    for name in of.operands:
        shape = of.graph[name].shape
        mask = reached[name].dense()[0, 0] != 0 if name in reached else torch.zeros(shape, dtype=torch.bool)
        if not bool(mask.all()):
            found[name] = mask
    return found
