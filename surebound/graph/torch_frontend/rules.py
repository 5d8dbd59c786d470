"""The table of rules: what each torch operation becomes, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from surebound.graph.torch_frontend.builder import MIXES
from surebound.graph.torch_frontend.call import Rule
from surebound.graph.torch_frontend.rules_activations import ACTIVATIONS
from surebound.graph.torch_frontend.rules_affine import AFFINE
from surebound.graph.torch_frontend.rules_shapes import SHAPES
from surebound.graph.torch_frontend.rules_windows import WINDOWS

T = TypeVar("T")

RULES: Mapping[str, Rule] = {**AFFINE, **ACTIVATIONS, **WINDOWS, **SHAPES}
"""By full name ("aten.add.Tensor") or, for all forms of an operation, by its name without the last part."""

INDEPENDENT = frozenset({"aten.full_like.default"})
"""Operations that take only shape, dtype and device from their operand."""

DECISION = "a decision on computed values isn't continuous; use relu, maximum, minimum or clamp instead"
STATISTICS = MIXES + "it normalises with the statistics of the batch; keep running statistics and call .eval()"
SEQUENCE = "recurrent layers over a whole sequence have no rule; write the loop with a cell (nn.LSTMCell)"

REFUSED: Mapping[str, str] = {
    **{f"aten.{name}": DECISION for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{f"aten.{name}": SEQUENCE for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten._native_batch_norm_legit": STATISTICS,
}
"""Why an operation on the input has no rule, where there is something to say."""


def names(op: str) -> tuple[str, str]:
    """'aten.erf.default' and 'aten.erf'."""
    return op, op.rpartition(".")[0]


def find(op: str, table: Mapping[str, T]) -> T | None:
    """A table's entry for an operation, by its full or its short name."""
    return next((table[name] for name in names(op) if name in table), None)
