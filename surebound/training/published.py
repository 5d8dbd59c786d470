"""Published recipes by name: DATA-METHOD, such as "cifar10-2-mtl-ibp".

Certified: the numbers of the expressive-losses study (De Palma et al. 2024) on the set-up of Shi et al. 2021: CNN-7
with batch norm, Adam with rate 5e-4, gradient norm at most 10, a smoothed ramp, the fast-IBP warm-up terms, batch 128
(256 on MNIST). Adversarial: fast adversarial training (Wong et al. 2020; Andriushchenko & Flammarion 2020; de Jorge et
al. 2022), TRADES as Zhang et al. 2019 train it; for MNIST and Fashion-MNIST nobody published numbers, and the rate is
lower. Studies under names of their own: see `WHOLE`.
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
LONG = {"run": {"epochs": 100, "rate": 0.1, "weight_decay": 1e-4, "schedule": "cosine", "choose": "pgd"}}

FASTER: Mapping[str, Table] = MappingProxyType(
    {
        "svhn": {"run": {"rate": 0.05}, "radii": {"shape": "linear", "start": 1, "length": 5}},
        "cifar10": {"run": {"rate": 0.2}, "augment": {"pad": 4, "border": "zero"}},
        "tiny": {"run": {"rate": 0.2}},
    }
)
"""What fast adversarial training changes by data: the highest rate, a radius that grows first, zeros around crops."""

METHODS: Mapping[str, Table] = MappingProxyType(
    {
        "standard": {**FAST, "objective": {"name": "standard"}},
        "fgsm": {**FAST, "objective": {"name": "fgsm", "align": 0.2}},
        "n-fgsm": {**FAST, "objective": {"name": "n-fgsm"}},
        "pgd": {**FAST, "objective": {"name": "pgd"}},
        "trades": {**LONG, "objective": {"name": "trades"}},
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
QUICK = ("standard", "fgsm", "n-fgsm", "pgd")


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


ALIGNED = {"name": "fgsm", "align": 0.2}


def of_pruning(epochs: int, start: int, length: int, milestones: list[int], certified: bool) -> Values:
    """Dense networks before stability-based pruning (Li et al. 2022), without the pruning."""
    run = {"epochs": epochs, "milestones": milestones, "factor": 0.1, "schedule": "multistep", "clip": 8.0}
    found: Values = {"network": {"name": "cnn7l"}, "run": {**run, "rate": 0.01, "weight_decay": 5e-4, "choose": "pgd"}}
    if not certified:
        return {**found, "objective": {**ALIGNED, "start": "zero"}}
    found["run"] = {**run, "optimiser": "adam", "rate": 1e-3, "weight_decay": 1e-5}
    radii = {"shape": "smoothed", "start": start, "length": length, "mid": 0.4}
    return {**found, "objective": {"name": "crown-ibp", "fusion": True}, "radii": radii}


def of_lirpa(epochs: int, milestones: list[int], start: int, length: int, batch: int, scale: float) -> Values:
    """Loss fusion on general graphs (Xu et al. 2020): CROWN-IBP, Adam 5e-4, gradient norm at most 8."""
    run = {"optimiser": "adam", "rate": 5e-4, "schedule": "multistep", "factor": 0.1, "clip": 8.0}
    return {
        "run": {**run, "epochs": epochs, "milestones": milestones, "batch": batch},
        "radii": {"shape": "smoothed", "start": start, "length": length, "mid": 0.4, "scale": scale},
        "objective": {"name": "crown-ibp", "fusion": True},
        "augment": {"pad": 4, "border": "edge", "flip": True},
    }


def of_ctrain(
    objective: Values, optimiser: str, rate: float, start: int, length: int, scale: float, l1: float, shi: float,
    factor: float, milestones: list[int], epochs: int = 160,
) -> Values:  # fmt: skip
    """Tuned by 100 trials (Kaulen et al. 2026): batch 512 and an attack whose step falls to a tenth twice."""
    run = {**CERTIFIED, "optimiser": optimiser, "rate": rate, "batch": 512, "factor": factor}
    return {
        "run": {**run, "epochs": epochs, "milestones": milestones},
        "radii": {"shape": "smoothed", "start": start, "length": length, "scale": scale},
        "terms": {"fast-ibp": {"weight": shi}, "l1-weights": {"weight": l1}},
        "objective": objective,
    }


def attack(steps: int, step: float, reach: float) -> Values:
    """The attack of a tuned recipe."""
    return {"steps": steps, "step": step, "reach": reach, "decay": 0.1}


MTL = {"name": "mtl-ibp", "alpha": 1.98e-3, "attack": attack(9, 1.63, 2.28)}
MTL_8 = {"name": "mtl-ibp", "alpha": 0.488, "attack": attack(10, 1.14, 1.0)}
SMALL_BOX = {"name": "sabr", "part": 0.0117, "attack": attack(4, 1.19, 2.85)}

WHOLE: Mapping[tuple[str, str], Table] = MappingProxyType(
    {
        ("fashion-0.1", "pruning-fgsm"): of_pruning(200, 11, 80, [140, 170], False),
        ("fashion-0.1", "pruning-crown-ibp"): of_pruning(200, 11, 80, [140, 170], True),
        ("svhn-2", "pruning-fgsm"): of_pruning(200, 11, 80, [140, 170], False),
        ("svhn-2", "pruning-crown-ibp"): of_pruning(200, 11, 80, [140, 170], True),
        ("cifar10-2", "pruning-fgsm"): of_pruning(200, 11, 80, [140, 170], False),
        ("cifar10-2", "pruning-crown-ibp"): of_pruning(200, 11, 80, [140, 170], True),
        ("cifar10-8", "pruning-crown-ibp"): of_pruning(300, 16, 121, [210, 255], True),
        ("cifar10-2", "grafting"): {
            "network": {"name": "cnn_b"},
            "objective": ALIGNED,
            "run": {"epochs": 200, "rate": 0.1, "weight_decay": 5e-4, "schedule": "multistep", "milestones": [100, 150],
                    "choose": "pgd"},
            "augment": {"pad": 4, "border": "zero", "flip": True},
        },
        ("cifar10-8", "lirpa"): of_lirpa(2000, [1400, 1700], 101, 801, 256, 1.1),
        ("tiny-1", "lirpa"): {**of_lirpa(800, [600, 700], 100, 400, 128, 1.0), "augment": {}},
        ("cifar10-2", "mtl-ibp-tuned"): of_ctrain(MTL, "radam", 4.9e-3, 6, 76, 1.17, 1.1e-6, 0.37, 0.135, [92, 112]),
        ("cifar10-2", "sabr-tuned"): of_ctrain(SMALL_BOX, "radam", 9e-4, 4, 104, 1.55, 5e-6, 0.39, 0.124, [120, 134]),
        ("cifar10-8", "mtl-ibp-tuned"): of_ctrain(
            MTL_8, "adamw", 1.15e-3, 5, 111, 1.1, 0.0, 0.5, 0.0115, [174, 214], 260
        ),
    }
)  # fmt: skip
"""Other studies' recipes: networks before pruning (Li et al. 2022) and before grafting (Chen et al. 2022), loss fusion
(Xu et al. 2020), and those tuned by trials (Kaulen et al. 2026), whose radii of attack are taken as multiples of the
training radius."""


def names() -> list[str]:
    """All recipes."""
    every = [(data, method) for data in DATA for method in METHODS]
    return [f"{data}-{method}" for data, method in (*every, *WHOLE)]


def parts_of(name: str) -> list[Table]:
    """What a recipe changes of the defaults, in order; UsageError for a name that does not exist."""
    for data, (of_data, of_certified) in DATA.items():
        method = name.removeprefix(f"{data}-")
        network = {"network": {"name": "cnn7", "data": of_data["data"]}} if "network" not in of_data else {}
        if (data, method) in WHOLE:
            own = WHOLE[data, method]
            return [network, of_data, own, {"network": {"data": of_data["data"]}}]
        if method == name or method not in METHODS:
            continue
        shared = {} if method in ADVERSARIAL else of_certified
        faster = FASTER.get(data.partition("-")[0], {}) if method in QUICK else {}
        return [network, of_data, shared, METHODS[method], faster, TUNED.get((data, method), {})]
    raise unknown(name, names())
