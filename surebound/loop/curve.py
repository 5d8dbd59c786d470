"""What sparsifying does to a network, measured on validation images: a row per network, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from surebound.attacks.adversarial import evaluating
from surebound.data.dataset import Part
from surebound.errors import UsageError
from surebound.graph.graph_original import GraphOriginal
from surebound.graph.torch_export import trace
from surebound.machine import reset_peak, resident_peak
from surebound.measures.stability import stability_of
from surebound.measures.verified import EvaluateConfig, evaluate, summary
from surebound.nets.grafted import GraftedReLU
from surebound.rowfile import complete_rows, replace_file, table
from surebound.search.run import VerifyConfig
from surebound.sparsify.compress.run import compress
from surebound.sparsify.masks import unmasked
from surebound.training.recipe import Values


@dataclass(frozen=True)
class Row:
    """One network. Fractions of images or neurons; means per image.

    name: its folder. kernels, weights: parts of the weights of convolutions, and of these and linear layers, that are
    not 0. grafted: part of the neurons that are lines. attacked: right under the attack and not falsified by the
    search. unstable, crown: parts of the neurons that interval bounds and CROWN leave unstable. instability,
    before_norm: mean -l u in front of ReLUs, and in front of the norms before them. seconds: charged per image that was
    looked at further. megabytes: what deciding all of them added to the peak of memory; nothing where the system does
    not tell.
    """

    name: str
    kernels: float
    weights: float
    grafted: float
    clean: float
    attacked: float
    verified_ibp: float
    verified_crown: float
    verified: float
    unknown: float
    unstable: float
    crown: float
    instability: float
    before_norm: float
    seconds: float
    nodes: float
    megabytes: float | None


SHARES = ("clean", "attacked", "verified_ibp", "verified_crown", "verified", "unknown")
COLUMNS = tuple(field.name for field in fields(Row))


def measured(name: str, network: nn.Module, part: Part, values: Values, show: Callable[[str], None]) -> Row:
    """The row of a network, by the settings' table `curve`; images are those of validation.

    Bounded and searched is the compressed network, so that channels that are gone cost nothing; answers and witnesses
    are those of the network itself.
    """
    plain = unmasked(network).eval()
    settings, eps = values["curve"], values["eps"]
    search = VerifyConfig(timeout=settings["timeout"], seed=values["seed"])
    config = EvaluateConfig(tuple(settings["methods"].split(",")), search=search)
    with evaluating(plain):
        whole = trace(plain, part.images[:1])
        graph = replace(compress(whole).exact, original=GraphOriginal(whole))
        told = reset_peak()
        before = resident_peak() if told else 0
        judged = evaluate(graph, part, eps, config=config, show=show)
        added = resident_peak() - before if told else 0
    found = summary(judged)
    stable = stability_of(whole, part, eps)
    looked = [item for item in judged if item.outcome is not None]
    return Row(
        name,
        kernels=dense_part(plain, (nn.Conv2d,)),
        weights=dense_part(plain, (nn.Conv2d, nn.Linear)),
        grafted=grafted_part(plain, sum(layer.neurons for layer in stable.layers)),
        **{key: float(found[key]) for key in SHARES},
        unstable=stable.mean("unstable"),
        crown=stable.mean("crown"),
        instability=stable.mean("instability"),
        before_norm=stable.mean("before_norm"),
        seconds=fmean(item.seconds for item in looked) if looked else 0.0,
        nodes=fmean(item.nodes for item in looked) if looked else 0.0,
        megabytes=added / 1e6 if told else None,
    )


def dense_part(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> float:
    """The part of the weights of some kinds of layers that are not 0; 1 where there are none."""
    every = [part.get_parameter("weight") for part in network.modules() if isinstance(part, kinds)]
    total = sum(weight.numel() for weight in every)
    return sum(int((weight != 0).sum()) for weight in every) / total if total else 1.0


def grafted_part(network: nn.Module, neurons: int) -> float:
    """The part of the neurons that are lines."""
    masks = (module.mask for module in network.modules() if isinstance(module, GraftedReLU))
    return sum(int(mask.sum()) for mask in masks) / max(1, neurons)


@dataclass(frozen=True)
class Curve:
    """FOLDER/curve.csv: rows in the order in which they were measured."""

    path: Path

    def rows(self) -> list[Row]:
        """What is there; raises UsageError for a file of something else."""
        return [typed(row, self.path) for row in complete_rows(self.path, COLUMNS)]

    def row(self, name: str, measure: Callable[[], Row]) -> Row:
        """The row of a name, measured and written if it is not there."""
        rows = self.rows()
        for row in rows:
            if row.name == name:
                return row
        made = measure()
        replace_file(self.path, table(COLUMNS, [asdict(row) for row in (*rows, made)]))
        return made


def typed(row: Mapping[str, str], path: Path) -> Row:
    """A row from its texts."""
    try:
        numbers: dict[str, Any] = {key: float(text) if text else None for key, text in row.items() if key != "name"}
    except ValueError as error:
        raise UsageError(f"{path} has a row that is not one of a curve: {error}") from None
    if not all(number is None or math.isfinite(number) for number in numbers.values()):
        raise UsageError(f"{path} has a row with numbers that are none: {dict(row)}")
    return Row(row["name"], **numbers)


def best(rows: Sequence[Row]) -> Row:
    """The row with the most images verified, then the most clean accuracy; the first of equals."""
    return max(rows, key=lambda row: (row.verified, row.clean))


def as_text(rows: Sequence[Row], names: Sequence[str] = ()) -> str:
    """A table in plain text; names: other ones than the rows' own."""
    heads = ("kernels", "weights", "grafted", "clean", "attacked", "verified", "unstable")
    shown = names or [row.name for row in rows]
    wide = max(len(name) for name in ("name", *shown))
    lines = ["  ".join([f"{'name':{wide}}", *(f"{head:>8}" for head in heads), "s/image"])]
    for name, row in zip(shown, rows, strict=True):
        shares = [f"{100 * getattr(row, head):7.1f}%" for head in heads]
        lines.append("  ".join([f"{name:{wide}}", *shares, f"{row.seconds:7.3g}"]))
    return "\n".join(lines)
