"""What pruning and grafting depend on: the recipe of the run they start from, and tables of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from surebound.errors import UsageError
from surebound.sparsify.criteria import CHANNELS, INSTABILITY, SIGNIFICANCE, WEIGHTS
from surebound.sparsify.layers import LAYERS
from surebound.sparsify.lines import LINES
from surebound.sparsify.select import GAMMAS, RANKS, SCOPES
from surebound.training.recipe import DEFAULTS, FREE, Values, at, built, check, check_limits, merge, of_type, unknown

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

VARIATIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "as-published": {},
        "sap": {"significance": {"name": "sap"}},
        "vap": {"significance": {"name": "vap"}},
        "random": {"significance": {"name": "random"}, "gammas": [0.0]},
        "instability-only": {"gammas": [1e9]},
        "significance-only": {"gammas": [0.0]},
        "gamma-1": {"gammas": [1.0]},
        "split-on": {"instability": {"name": "splits"}},
        "fixed-lines": {"trained": False},
        "pruned": {"trained": False, "lines": {"name": "fixed", "slope": 0.0}},
        "slope-0": {"lines": {"name": "fixed", "slope": 0.0}},
        "slope-1": {"lines": {"name": "fixed", "slope": 1.0}},
        "least-squares": {"lines": {"name": "least-squares"}},
        "by-layer": {"scope": "layer"},
        "by-channel": {"scope": "channel"},
        "rank-min": {"rank": "min"},
        "rank-raw": {"rank": "raw"},
        "gates": {"choose": "gates"},
    }
)
"""What `surebound ablate` compares, as changes of the table `graft`: the significance, the instability, either alone, a
single stage, lines that are fixed, zero (pruning) or start elsewhere, other scopes and ranks, learned gates."""

ABLATE: Mapping[str, Any] = MappingProxyType({"only": []})
"""only: names of `VARIATIONS`, [] for all."""

LOTTERY: Mapping[str, Any] = MappingProxyType({"seeds": [0, 1, 2], "images": 200})
"""seeds: of the runs, each with its own initialisation. images: the first test images that dense networks and tickets
are compared on in the end; tickets are chosen by validation images."""

PROVABLE: Mapping[str, Any] = MappingProxyType(
    {
        "target": "verified",
        "loss": 0.02,
        "steps": 12,
        "graft": 0.15,
        "prune": 0.15,
        "epochs": 5,
        "rate": 0.001,
        "score_images": 100,
        "score_timeout": 1.0,
        "test_images": 200,
    }
)
"""target: what is to grow, images "verified" or the speed of proofs ("time") at no fewer of them. loss: clean accuracy
that may be lost altogether. steps: networks that are tried at most. graft: the part of all neurons that becomes lines
in a step; prune: the part of the channels left that goes. epochs, rate: of training in a step. score_images,
score_timeout: training images that the verifier works on to tell what stands in its way, and seconds for each.
test_images: the first test images that the network as it came and the one chosen are compared on in the end."""

TUNING: Mapping[str, Any] = MappingProxyType(
    {
        "run": {"rate": 0.001, "weight_decay": 5e-4, "schedule": "cosine", "warm_up": 0.0, "ibp_initial": False},
        "radii": {"shape": "fixed"},
    }
)
"""How grafted networks are trained unless said otherwise (Chen et al. 2022): the full radius, small rate, cosine."""

NAMED = ("prune.criterion", "graft.significance", "graft.instability", "graft.lines")
"""Tables whose keys depend on what is named."""


@dataclass(frozen=True)
class Table:
    """A table of settings: its defaults, texts that are one of a few, limits of numbers, and what else is checked."""

    defaults: Mapping[str, Any]
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    check: Callable[[Values], object] = lambda values: None


def check_graft(values: Values) -> None:
    """Raise UsageError for ratios, gammas and criteria that do not exist."""
    for name in ("ratios", "gammas"):
        given = values["graft"][name]
        values["graft"][name] = [of_type(f"each of graft.{name}", each, 0.0) for each in given]
        if not given:
            raise UsageError(f"graft.{name} must have at least one number")
    if not all(0 < ratio <= 1 for ratio in values["graft"]["ratios"]):
        raise UsageError(f"each of graft.ratios must be above 0 and at most 1, got {values['graft']['ratios']}")
    if len({f"{ratio:g}" for ratio in values["graft"]["ratios"]}) < len(values["graft"]["ratios"]):
        raise UsageError(f"graft.ratios must differ by more than a millionth, got {values['graft']['ratios']}")
    if values["graft"]["choose"] == "file" and not values["graft"]["masks"]:
        raise UsageError("graft.choose = 'file' needs graft.masks, the path of a mask file")
    for name, table in (("significance", SIGNIFICANCE), ("instability", INSTABILITY), ("lines", LINES)):
        built(f"graft.{name}", dict(values["graft"][name]), table)


def criterion_of(values: Values) -> Any:
    """The criterion of pruning; UsageError when there is none of that name."""
    return built("prune.criterion", dict(values["prune"]["criterion"]), {**WEIGHTS, **CHANNELS})


def check_seeds(values: Values) -> None:
    """Raise UsageError for seeds that are none."""
    seeds = [of_type("each of lottery.seeds", each, 0) for each in values["lottery"]["seeds"]]
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"lottery.seeds must be different whole numbers from 0 on, got {seeds}")


def check_ablate(values: Values) -> None:
    """Raise UsageError for variations that do not exist."""
    for each in values["ablate"]["only"]:
        if each not in VARIATIONS:
            raise unknown(of_type("each of ablate.only", each, ""), list(VARIATIONS))


ALL: Mapping[str, Table] = MappingProxyType(
    {
        "curve": Table(CURVE, least={"images": 1, "timeout": 0}),
        "prune": Table(
            PRUNE,
            {
                "layers": tuple(LAYERS),
                "scope": ("global", "layer"),
                "then": ("rewind", "rate-rewind", "fine-tune"),
            },
            {"rate": 0, "rounds": 1, "least": 0, "epoch": 0, "tune.epochs": 1, "tune.rate": 0, "images": 1, "batch": 1},
            {"rate": 1},
            criterion_of,
        ),
        "graft": Table(
            GRAFT,
            {"choose": ("scores", "gates", "file"), "rank": tuple(RANKS), "scope": SCOPES},
            {"gates.weight": 0, "gates.epochs": 1, "gates.rate": 0, "line_rate": 0, "images": 1, "batch": 1},
            check=check_graft,
        ),
        "lottery": Table(LOTTERY, least={"images": 1}, check=check_seeds),
        "ablate": Table(ABLATE, check=check_ablate),
        "provable": Table(
            PROVABLE,
            {"target": ("verified", "time")},
            {
                "loss": 0, "steps": 1, "graft": 0, "prune": 0, "epochs": 1, "rate": 0, "score_images": 1,
                "score_timeout": 0, "test_images": 1,
            },
            {"graft": 1, "prune": 1},
        ),
    }
)  # fmt: skip
"""Every table, by its name."""


def settings_of(tables: Sequence[str], recipe: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> Values:
    """A recipe with some of the tables of `ALL`, changed by each part in turn.

    Raises UsageError for keys, names and values that do not exist.
    """
    values = copy.deepcopy({**{name: dict(ALL[name].defaults) for name in tables}, **recipe})
    for part in parts:
        merge(values, part, "", (*FREE, *NAMED))
    for name in tables:
        table = ALL[name]
        limits = ({f"{name}.{key}": value for key, value in limit.items()} for limit in (table.least, table.below))
        check_limits(values, {f"{name}.{key}": value for key, value in table.choices.items()}, *limits)
    check(recipe_in(values))
    if not values["validation"]:
        raise UsageError("networks are chosen by validation images, of which validation = 0 leaves none")
    for name in tables:
        ALL[name].check(values)
    return values


def recipe_in(values: Mapping[str, Any]) -> Values:
    """The part of the settings that is a recipe."""
    return {name: copy.deepcopy(values[name]) for name in DEFAULTS}


def by_channel(values: Values) -> bool:
    """Does the criterion score channels, and not weights?"""
    return at(values, "prune.criterion.name") in CHANNELS
