"""Published recipes by name: DATA-METHOD, such as "cifar10-2-mtl-ibp".

Numbers are those of the expressive-losses study (De Palma et al. 2024) on the set-up of Shi et al. 2021: CNN-7 with
batch norm, Adam with rate 5e-4, gradient norm at most 10, a smoothed ramp, the fast-IBP warm-up terms, batch 128
(256 on MNIST). Adversarial rows: SGD and cosine, as in fast adversarial training (Wong et al. 2020; Andriushchenko &
Flammarion 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from surebound.training.recipe import Values, unknown

Table = Mapping[str, Any]

CIFAR_AUGMENT = {"pad": 2, "border": "edge", "flip": True}
CERTIFIED = {
    "optimiser": "adam",
    "rate": 5e-4,
    "clip": 10.0,
    "schedule": "multistep",
    "factor": 0.2,
    "ibp_initial": True,
}


def certified(epochs: int, milestones: list[int], batch: int, start: int, length: int, shi: float = 0.5) -> Values:
    """What the certified recipes of a data set share."""
    return {
        "run": {**CERTIFIED, "epochs": epochs, "milestones": milestones, "batch": batch},
        "radii": {"shape": "smoothed", "start": start, "length": length},
        "terms": {"fast-ibp": {"weight": shi}},
    }


DATA: Mapping[str, tuple[Table, Table]] = MappingProxyType(
    {
        "mnist-0.1": ({"data": "mnist", "eps": 0.1}, certified(70, [50, 60], 256, 2, 20)),
        "mnist-0.3": ({"data": "mnist", "eps": 0.3}, certified(70, [50, 60], 256, 2, 20)),
        "fashion-0.1": ({"data": "fashion-mnist", "eps": 0.1}, certified(70, [50, 60], 256, 2, 20)),
        "svhn-2": ({"data": "svhn", "eps": 2 / 255}, certified(160, [120, 140], 128, 2, 80)),
        "svhn-8": ({"data": "svhn", "eps": 8 / 255}, certified(260, [180, 220], 128, 2, 80)),
        "cifar10-2": (
            {"data": "cifar10", "eps": 2 / 255, "augment": CIFAR_AUGMENT},
            certified(160, [120, 140], 128, 2, 80),
        ),
        "cifar10-8": (
            {"data": "cifar10", "eps": 8 / 255, "augment": CIFAR_AUGMENT},
            certified(260, [180, 220], 128, 2, 80),
        ),
        "tiny-1": (
            {
                "data": "tiny-imagenet",
                "eps": 1 / 255,
                "augment": {"pad": 4, "border": "edge", "size": 56, "flip": True},
                "network": {"name": "cnn7", "in_shape": [3, 56, 56], "last_stride": 2},
            },
            certified(160, [120, 140], 128, 2, 80, 0.2),
        ),
    }
)
"""By name: the data and its radius, and what its certified recipes share."""

FAST = {"run": {"epochs": 30, "rate": 0.1, "weight_decay": 5e-4, "schedule": "cyclic", "choose": "pgd"}}

METHODS: Mapping[str, Table] = MappingProxyType(
    {
        "standard": {**FAST, "objective": {"name": "standard"}},
        "fgsm": {**FAST, "objective": {"name": "fgsm", "align": 0.2}},
        "n-fgsm": {**FAST, "objective": {"name": "n-fgsm"}},
        "pgd": {**FAST, "objective": {"name": "pgd"}},
        "trades": {**FAST, "objective": {"name": "trades"}},
        "ibp": {"objective": {"name": "ibp"}},
        "crown-ibp": {"objective": {"name": "crown-ibp", "fusion": True}},
        "sabr": {"objective": {"name": "sabr", "part": 0.4}},
        "cc-ibp": {"objective": {"name": "cc-ibp"}},
        "mtl-ibp": {"objective": {"name": "mtl-ibp"}},
        "exp-ibp": {"objective": {"name": "exp-ibp"}},
    }
)
"""What differs between methods on any data."""

ADVERSARIAL = ("standard", "fgsm", "n-fgsm", "pgd", "trades")


def tuned(name: str, weight: float, attack: Table | None = None, scale: float = 1.0, **given: Any) -> Values:
    """A tuned objective: its fields, its attack, the weight of the L1 term and the factor of the training radius."""
    objective = {"name": name, **given} if attack is None else {"name": name, "attack": attack, **given}
    return {"objective": objective, "terms": {"l1-weights": {"weight": weight}}, "radii": {"scale": scale}}


ONE = {"steps": 1, "step": 10.0}
EIGHT = {"steps": 8, "step": 0.25, "reach": 2.1}

TUNED: Mapping[tuple[str, str], Table] = MappingProxyType(
    {
        ("mnist-0.1", "ibp"): tuned("ibp", 2e-6, scale=2.0),
        ("mnist-0.1", "cc-ibp"): tuned("cc-ibp", 2e-6, ONE, 2.0, alpha=0.1),
        ("mnist-0.1", "mtl-ibp"): tuned("mtl-ibp", 1e-5, ONE, 2.0, alpha=0.01),
        ("mnist-0.1", "sabr"): tuned("sabr", 1e-5, part=0.4),
        ("mnist-0.3", "cc-ibp"): tuned("cc-ibp", 3e-6, ONE, 1.334, alpha=0.3),
        ("mnist-0.3", "mtl-ibp"): tuned("mtl-ibp", 1e-6, ONE, 1.334, alpha=0.08),
        ("mnist-0.3", "sabr"): tuned("sabr", 1e-6, part=0.6),
        ("cifar10-2", "cc-ibp"): tuned("cc-ibp", 3e-6, EIGHT, alpha=0.01),
        ("cifar10-2", "mtl-ibp"): tuned("mtl-ibp", 3e-6, EIGHT, alpha=0.004),
        ("cifar10-2", "exp-ibp"): tuned("exp-ibp", 4e-6, EIGHT, alpha=0.095),
        ("cifar10-2", "sabr"): tuned("sabr", 1e-6, part=0.1, shrink=0.8),
        ("cifar10-2", "crown-ibp"): {"objective": {"name": "crown-ibp", "fusion": True, "beta": [1.0, 1.0]}},
        ("cifar10-8", "cc-ibp"): tuned("cc-ibp", 0.0, ONE, alpha=0.5),
        ("cifar10-8", "mtl-ibp"): tuned("mtl-ibp", 1e-7, ONE, alpha=0.5),
        ("cifar10-8", "exp-ibp"): tuned("exp-ibp", 0.0, ONE, alpha=0.5),
        ("cifar10-8", "sabr"): tuned("sabr", 0.0, part=0.7),
        ("tiny-1", "cc-ibp"): tuned("cc-ibp", 5e-5, ONE, alpha=0.01),
        ("tiny-1", "mtl-ibp"): tuned("mtl-ibp", 5e-5, ONE, alpha=0.01),
        ("tiny-1", "exp-ibp"): tuned("exp-ibp", 5e-5, ONE, alpha=0.04),
        ("tiny-1", "sabr"): tuned("sabr", 0.0, part=0.4),
    }
)
"""What was tuned for a method on a data set."""


def names() -> list[str]:
    """All recipes."""
    return [f"{data}-{method}" for data in DATA for method in METHODS]


def parts_of(name: str) -> list[Table]:
    """What a recipe changes of the defaults, in order; UsageError for a name that does not exist."""
    for data, (of_data, of_certified) in DATA.items():
        method = name.removeprefix(f"{data}-")
        if method == name or method not in METHODS:
            continue
        network = {"network": {"name": "cnn7", "data": of_data["data"]}} if "network" not in of_data else {}
        shared = {} if method in ADVERSARIAL else of_certified
        return [network, of_data, shared, METHODS[method], TUNED.get((data, method), {})]
    raise unknown(name, names())
