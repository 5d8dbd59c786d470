"""A recipe: everything a training run depends on, as nested plain values that TOML and `--set` can say."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from surebound.errors import UsageError
from surebound.nets.table import find_network
from surebound.training.objectives import OBJECTIVES, TERMS
from surebound.training.radii import SHAPES

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

Values = dict[str, Any]

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "data": "digits",
        "images": 0,
        "validation": 0.1,
        "eps": 0.1,
        "seed": 0,
        "network": {"name": "digits_cnn"},
        "objective": {"name": "standard"},
        "terms": {},
        "run": {
            "epochs": 10,
            "batch": 128,
            "optimiser": "sgd",
            "rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "milestones": [],
            "factor": 0.1,
            "peak": 0.4,
            "warm_up": 0.0,
            "clip": 0.0,
            "ibp_initial": False,
            "choose": "last",
            "keep": [],
        },
        "average": {"kind": "none", "decay": 0.999, "start": 0, "every": 10},
        "teacher": {"run": "", "weight": 1.0, "temperature": 1.0},
        "radii": {"shape": "fixed", "start": 1, "length": 0, "mid": 0.25, "scale": 1.0},
        "augment": {"pad": 0, "border": "zero", "size": 0, "flip": False},
        "measure": {"every": 1, "images": 1000, "attack_steps": 10, "attack_restarts": 1},
    }
)
"""Every key and its value unless given. images: of the training part, from its beginning, 0 for all. eps: the radius
that the network is meant for; radii.scale times that is trained at. network: `name` in `surebound.nets` and its
arguments. objective: `name` and its fields, `attack` a table of its own. terms: tables by name with a `weight` and
fields. run.milestones: epochs at which the rate is multiplied by run.factor. run.warm_up: epochs in which the rate
rises to what its schedule begins with. run.clip: 0 for none. average: "none", "ema" with its decay, or "swa", the mean
from the end of epoch `start` on, every so many steps. teacher: the run folder of a network to learn from, "" for none.
run.choose: "last" epoch or the best by "clean", "pgd" or "certified" accuracy on validation images, once the radius
has its full size. run.keep: numbers of epochs after which the weights are kept, for rewinding. radii: start and length
in epochs. augment.size: 0 for the image's own. measure: what is measured on validation images after every so many
epochs."""

FREE = ("network", "objective", "terms")
"""Tables whose keys depend on what is named, by their path."""

LEAST: Mapping[str, int] = MappingProxyType(
    {
        "images": 0,
        "eps": 0,
        "seed": 0,
        "run.epochs": 1,
        "run.batch": 1,
        "run.rate": 0,
        "run.momentum": 0,
        "run.weight_decay": 0,
        "run.factor": 0,
        "run.warm_up": 0,
        "run.clip": 0,
        "average.decay": 0,
        "average.start": 0,
        "average.every": 1,
        "teacher.weight": 0,
        "teacher.temperature": 0,
        "radii.start": 1,
        "radii.length": 0,
        "radii.scale": 0,
        "augment.pad": 0,
        "augment.size": 0,
        "measure.every": 0,
        "measure.images": 1,
        "measure.attack_steps": 1,
        "measure.attack_restarts": 1,
    }
)
"""What numbers have to be at least."""

BELOW: Mapping[str, int] = MappingProxyType({"seed": 1 << 63, "run.momentum": 1, "average.decay": 1})
"""What numbers have to be below."""

CHOICES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "run.schedule": ("constant", "cosine", "multistep", "cyclic"),
        "run.choose": ("last", "clean", "pgd", "certified"),
        "radii.shape": tuple(SHAPES),
        "average.kind": ("none", "ema", "swa"),
        "augment.border": ("zero", "edge"),
    }
)
"""Texts that are one of a few."""


def recipe_of(*parts: Mapping[str, Any]) -> Values:
    """The defaults, changed by each part in turn; UsageError for keys, names and types that do not exist."""
    made = copy.deepcopy(dict(DEFAULTS))
    for part in parts:
        merge(made, part, "")
    check(made)
    return made


def merge(values: Values, part: Mapping[str, Any], path: str, tables: Sequence[str] = FREE) -> None:
    """Write what `part` says over `values`. tables: paths of those whose keys depend on what is named."""
    for key, value in part.items():
        here = f"{path}{key}"
        free = any(path.startswith(f"{table}.") for table in tables)
        if key not in values and not free:
            raise unknown(here, [f"{path}{known}" for known in values])
        before = values.get(key)
        if isinstance(value, Mapping):
            if before is not None and not isinstance(before, dict):
                raise UsageError(f"recipe: {here} is one value, not a table")
            named = value.get("name")
            if here in tables and named is not None and named != values[key].get("name"):
                values[key] = {}  # another network or objective: what was said of the former does not count
            merge(values.setdefault(key, {}), value, f"{here}.", tables)
            continue
        if isinstance(before, dict):
            raise UsageError(f"recipe: {here} is a table; give its keys, such as {here}.{next(iter(before), 'name')}")
        require_finite(here, value)
        values[key] = value if free else of_type(here, value, before)


def require_finite(path: str, value: Any) -> None:
    """Raise UsageError where a number, in lists too, is NaN or infinite: a loss of it is none, and JSON has no such."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, list):
            require_finite(path, each)
        elif isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"recipe: {path} must be finite, got {value!r}")


def of_type(path: str, value: Any, like: Any) -> Any:
    """The value in the type of the one it replaces; UsageError when it has another."""
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise UsageError(f"recipe: {path} must be {kind(like)}, got {value!r}")
    return value


def kind(value: Any) -> str:
    """The word for a value's type."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), type(value).__name__)


def unknown(name: str, known: Sequence[str]) -> UsageError:
    """The error for a key or a name that does not exist, with the nearest one."""
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; do you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
    return UsageError(f"recipe: there is no '{name}'{hint}")


def check(values: Values) -> None:
    """Build what can be built without data; UsageError for what makes no sense."""
    factory = find_network(of_type("network.name", values["network"].get("name", ""), ""))
    allowed = set(inspect.signature(factory).parameters) | {"name"}
    for key in values["network"]:
        if key not in allowed:
            raise unknown(f"network.{key}", [f"network.{name}" for name in sorted(allowed)])
    objective_of(values)
    check_limits(values, CHOICES, LEAST, BELOW)
    for name in ("milestones", "keep"):
        for each in values["run"][name]:
            of_type(f"each of run.{name}", each, 0)
    if values["run"]["choose"] != "last" and not values["validation"]:
        raise UsageError("recipe: run.choose looks at validation images, of which validation = 0 leaves none")


def check_limits(
    values: Values, choices: Mapping[str, Sequence[str]], least: Mapping[str, float], below: Mapping[str, float]
) -> None:
    """Raise UsageError for texts that are none of their choices, and numbers out of their limits."""
    for path, known in choices.items():
        if at(values, path) not in known:
            raise UsageError(f"recipe: {path} must be one of {', '.join(known)}, got '{at(values, path)}'")
    for path, limit in least.items():
        if at(values, path) < limit:
            raise UsageError(f"recipe: {path} must be at least {limit}, got {at(values, path)}")
    for path, limit in below.items():
        if at(values, path) >= limit:
            raise UsageError(f"recipe: {path} must be below {limit}, got {at(values, path)}")


def at(values: Values, path: str) -> Any:
    """The value at a path such as "run.epochs"."""
    for key in path.split("."):
        values = values[key]
    return values


def objective_of(values: Values) -> Any:
    """The objective with the terms that are added to it."""
    from surebound.training.objectives.regularisers import Plus

    made = built("objective", dict(values["objective"]), OBJECTIVES)
    for name, settings in values["terms"].items():
        if not isinstance(settings, Mapping):
            raise UsageError(f"recipe: terms.{name} is a table; give its keys, such as terms.{name}.weight")
        given = dict(settings)
        weight = given.pop("weight", None)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0:
            raise UsageError(f"recipe: terms.{name}.weight must be a number, at least 0")
        if weight:
            made = Plus(made, built(f"terms.{name}", {"name": name, **given}, TERMS), float(weight))
    return made


def built(path: str, given: Values, table: Mapping[str, type[Any]]) -> Any:
    """An objective or a term from its name and fields."""
    name = of_type(f"{path}.name", given.pop("name", ""), "")
    if name not in table:
        raise unknown(name, list(table))
    return with_fields(path, table[name], given)


def with_fields(path: str, made: type[Any], given: Mapping[str, Any]) -> Any:
    """A frozen dataclass from plain values; a field that is a dataclass itself from a table."""
    example = made()
    known = {field.name: getattr(example, field.name) for field in fields(made)}
    arguments: Values = {}
    for key, value in given.items():
        if key not in known:
            raise unknown(f"{path}.{key}", [f"{path}.{name}" for name in known])
        like = known[key]
        if is_dataclass(like) and isinstance(value, Mapping):
            arguments[key] = with_fields(f"{path}.{key}", type(like), value)
        elif isinstance(like, tuple) and isinstance(value, list):
            arguments[key] = tuple(of_type(f"{path}.{key}", each, like[0]) for each in value)
            if len(value) != len(like):
                raise UsageError(f"recipe: {path}.{key} must be {len(like)} numbers, got {value!r}")
        else:
            arguments[key] = of_type(f"{path}.{key}", value, like)
    return made(**arguments)


def read_toml(path: Path) -> Values:
    """The tables of a TOML file; UsageError with the line where it is none."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None


def setting(text: str) -> Values:
    """`a.b=c` as nested tables; c is read as TOML, and as a text where it is none."""
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise UsageError(f"--set takes KEY=VALUE with dots between tables, such as run.epochs=3; got '{text}'")
    found: Any
    try:
        found = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        found = value
    for key in reversed(name.split(".")):
        found = {key: found}
    return found
