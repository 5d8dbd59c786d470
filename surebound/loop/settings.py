"""What pruning and grafting depend on: the recipe of the run they start from, and tables of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from surebound.errors import UsageError
from surebound.sparsify.criteria import CHANNELS, INSTABILITY, SIGNIFICANCE, WEIGHTS
from surebound.sparsify.layers import LAYERS
from surebound.sparsify.lines import LINES
from surebound.sparsify.select import GAMMAS, RANKS, SCOPES
from surebound.training.recipe import DEFAULTS, FREE, Values, at, built, check, check_limits, merge, of_type

CURVE: Mapping[str, Any] = MappingProxyType({"images": 100, "timeout": 5.0, "methods": "clean,pgd,ibp,crown,complete"})
"""What every network is measured by: the first validation images, charged seconds per image, methods of `evaluate`."""

PRUNE: Mapping[str, Any] = MappingProxyType(
    {
        "criterion": {"name": "magnitude"},
        "rate": 0.2,
        "rounds": 15,
        "layers": "conv",
        "ends": True,
        "scope": "global",
        "least": 1,
        "then": "rewind",
        "epoch": 0,
        "tune": {"epochs": 20, "rate": 0.001},
        "images": 1000,
        "batch": 128,
    }
)
"""criterion: a name of `WEIGHTS` or `CHANNELS` and its fields. rate: the part of what is left that goes in a round.
layers: "conv" or "all"; ends: the first and the last layer, too (for weights). scope: scores compete "global" or by
"layer". least: so many weights or channels of a layer stay at any rate. then: "rewind" the weights to epoch `epoch`
(0: before training) and train again, "rate-rewind": train the weights at hand again by the whole recipe, "fine-tune"
them: tune.epochs at tune.rate and the full radius. images: training images that criteria look at, `batch` at a time."""

GRAFT: Mapping[str, Any] = MappingProxyType(
    {
        "ratios": [0.5],
        "choose": "scores",
        "significance": {"name": "gap"},
        "instability": {"name": "bounds"},
        "gammas": list(GAMMAS),
        "rank": "dense",
        "scope": "global",
        "gates": {"weight": 1.0, "epochs": 10, "rate": 0.01},
        "masks": "",
        "lines": {"name": "fixed"},
        "trained": True,
        "line_rate": 0.01,
        "images": 1000,
        "batch": 128,
    }
)
"""ratios: parts of the neurons that become lines, a network for each. choose: by "scores" (significance and
instability, combined in stages of `gammas` by `rank` within `scope`; a very large gamma looks at instability alone), by
"gates" that learn for gates.epochs under an L1 term of gates.weight, or from the file "masks" (ours, or the released
form). lines: where they start, "fixed" or "least-squares". trained: do lines take part in training, at line_rate.
images: as in pruning."""

TUNING: Mapping[str, Any] = MappingProxyType(
    {
        "run": {"rate": 0.001, "weight_decay": 5e-4, "schedule": "cosine", "warm_up": 0.0, "ibp_initial": False},
        "radii": {"shape": "fixed"},
    }
)
"""How grafted networks are trained unless said otherwise (Chen et al. 2022): the full radius, small rate, cosine."""

TABLES = ("prune.criterion", "graft.significance", "graft.instability", "graft.lines")
"""Tables whose keys depend on what is named."""

CHOICES: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "prune": {
            "prune.layers": tuple(LAYERS),
            "prune.scope": ("global", "layer"),
            "prune.then": ("rewind", "rate-rewind", "fine-tune"),
        },
        "graft": {
            "graft.choose": ("scores", "gates", "file"),
            "graft.rank": tuple(RANKS),
            "graft.scope": SCOPES,
        },
    }
)
LEAST: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "curve": {"curve.images": 1, "curve.timeout": 0},
        "prune": {
            "prune.rate": 0, "prune.rounds": 1, "prune.least": 0, "prune.epoch": 0, "prune.tune.epochs": 1,
            "prune.tune.rate": 0, "prune.images": 1, "prune.batch": 1,
        },
        "graft": {
            "graft.gates.weight": 0, "graft.gates.epochs": 1, "graft.gates.rate": 0, "graft.line_rate": 0,
            "graft.images": 1, "graft.batch": 1,
        },
    }
)  # fmt: skip
BELOW: Mapping[str, Mapping[str, float]] = MappingProxyType({"prune": {"prune.rate": 1}, "graft": {}})


def settings_of(kind: str, recipe: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Values:
    """The recipe of a run with the table `kind` ("prune" or "graft") and "curve", changed by each part in turn.

    Raises UsageError for keys, names and values that do not exist.
    """
    own = {"prune": PRUNE, "graft": GRAFT}[kind]
    values = copy.deepcopy({kind: dict(own), "curve": dict(CURVE), **recipe})
    for part in (TUNING, *parts) if kind == "graft" else parts:
        merge(values, part, "", (*FREE, *TABLES))
    check_limits(values, CHOICES[kind], {**LEAST["curve"], **LEAST[kind]}, BELOW[kind])
    check(recipe_in(values))
    if not values["validation"]:
        raise UsageError("networks are chosen by validation images, of which validation = 0 leaves none")
    {"prune": criterion_of, "graft": check_graft}[kind](values)
    return values


def recipe_in(values: Mapping[str, Any]) -> Values:
    """The part of the settings that is a recipe."""
    return {name: copy.deepcopy(values[name]) for name in DEFAULTS}


def check_graft(values: Values) -> None:
    """Raise UsageError for ratios, gammas and criteria that do not exist."""
    for name in ("ratios", "gammas"):
        given = values["graft"][name]
        values["graft"][name] = [of_type(f"each of graft.{name}", each, 0.0) for each in given]
        if not given:
            raise UsageError(f"graft.{name} must have at least one number")
    if not all(0 < ratio <= 1 for ratio in values["graft"]["ratios"]):
        raise UsageError(f"each of graft.ratios must be above 0 and at most 1, got {values['graft']['ratios']}")
    if values["graft"]["choose"] == "file" and not values["graft"]["masks"]:
        raise UsageError("graft.choose = 'file' needs graft.masks, the path of a mask file")
    for name, table in (("significance", SIGNIFICANCE), ("instability", INSTABILITY), ("lines", LINES)):
        built(f"graft.{name}", dict(values["graft"][name]), table)


def criterion_of(values: Values) -> Any:
    """The criterion of pruning; UsageError when there is none of that name."""
    return built("prune.criterion", dict(values["prune"]["criterion"]), {**WEIGHTS, **CHANNELS})


def by_channel(values: Values) -> bool:
    """Does the criterion score channels, and not weights?"""
    return at(values, "prune.criterion.name") in CHANNELS
