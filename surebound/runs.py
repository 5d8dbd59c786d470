"""Run folders: what a command that changes a network leaves behind, and how to get the network back."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from surebound.errors import ModelError, UsageError
from surebound.nets.grafted import GatedReLU, GraftedReLU
from surebound.nets.table import find_network
from surebound.sparsify.graft import gate, graft

SCHEMA = 1
HOME = "surebound.nets."
"""Only factories in here are called when a folder is read: a folder is data, not code."""


@dataclass(frozen=True)
class Recipe:
    """How to build a network before its weights are loaded: factory "surebound.nets.MODULE:FUNCTION", arguments."""

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(network: str, **arguments: Any) -> Recipe:
        """The recipe of a row of `surebound.nets.table`; raises UsageError when there is none."""
        factory = find_network(network)
        return Recipe(f"{factory.__module__}:{factory.__name__}", arguments)

    def build(self) -> nn.Module:
        """A fresh network; raises ModelError when there is no such factory."""
        module, _, name = self.factory.partition(":")
        if not module.startswith(HOME):
            raise ModelError(f"'{self.factory}' is not a factory of surebound.nets; build the network yourself")
        try:
            return getattr(importlib.import_module(module), name)(**self.arguments)
        except (ImportError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"cannot build the network with {self.factory}({dict(self.arguments)}): {error}"
            ) from error


@dataclass(frozen=True)
class RunFolder:
    """A folder laid out as docs/interfaces say: configuration, metrics, networks, summary, plots."""

    path: Path

    @staticmethod
    def create(path: Path) -> RunFolder:
        """Make the folder; files of an earlier run in it are replaced. Raises UsageError if that cannot be."""
        try:
            (path / "plots").mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").write_text("")
        except OSError as error:
            raise UsageError(
                f"cannot write to the folder {path}: {error.strerror}; choose another with --out"
            ) from None
        return RunFolder(path)

    def write_config(self, values: Mapping[str, Any]) -> None:
        """config.toml: everything the run depends on."""
        (self.path / "config.toml").write_text(to_toml(values))

    def add_metrics(self, **values: Any) -> None:
        """One more line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """summary.json, with the schema's number first."""
        text = json.dumps({"schema": SCHEMA, **values}, indent=2, allow_nan=False)
        (self.path / "summary.json").write_text(text + "\n")

    def save_network(self, network: nn.Module, recipe: Recipe, name: str = "model") -> None:
        """NAME.safetensors and NAME.json; grafted and gated sites are recorded, so `load_network` rebuilds them."""
        sites = {
            path: {"shape": list(module.mask.shape), "trained": module.slope.requires_grad}
            for path, module in network.named_modules()
            if isinstance(module, GraftedReLU)
        }
        gates = {
            path: {"shape": list(module.gate.shape)}
            for path, module in network.named_modules()
            if isinstance(module, GatedReLU)
        }
        described = {"schema": SCHEMA, "factory": recipe.factory, "arguments": dict(recipe.arguments), "grafts": sites}
        if gates:
            described["gates"] = gates
        (self.path / f"{name}.json").write_text(json.dumps(described, indent=2) + "\n")
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, self.path / f"{name}.safetensors")


def load_recipe(folder: Path, name: str = "model") -> Recipe:
    """How the network NAME of a run folder is built; raises ModelError when its description cannot be read."""
    try:
        described = json.loads((folder / f"{name}.json").read_text())
        return Recipe(described["factory"], described["arguments"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / name}.json cannot be read: {error!r}; is {folder} a run folder?") from None


def load_network(folder: Path, name: str = "model") -> nn.Module:
    """The network NAME of a run folder, in evaluation mode on the CPU.

    Raises ModelError when a file is missing, damaged, or does not fit the other.
    """
    try:
        described = json.loads((folder / f"{name}.json").read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        recipe = Recipe(described["factory"], described["arguments"])
        sites = {path: (tuple(site["shape"]), bool(site["trained"])) for path, site in described["grafts"].items()}
        gates = {path: tuple(site["shape"]) for path, site in described.get("gates", {}).items()}
    except FileNotFoundError as error:
        raise ModelError(f"{error.filename} is missing; is {folder} a run folder with a network '{name}'?") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"the network '{name}' in {folder} cannot be read: {error!r}; write it anew") from error
    network = recipe.build()
    try:
        masks = {path: torch.zeros(shape, dtype=torch.bool) for path, (shape, _) in sites.items()}
        network = gate(graft(network, masks), gates)
        for path, (_, trained) in sites.items():
            for parameter in network.get_submodule(path).parameters():
                parameter.requires_grad_(trained)
        network.load_state_dict(tensors)
    except (RuntimeError, AttributeError, TypeError, UsageError) as error:
        raise ModelError(f"{folder / name}.safetensors does not fit {name}.json: {error}") from error
    return network.eval()


def crop_of(folder: Path) -> int:
    """Height and width of the crops that a run was trained on, so of what its network takes; 0 for whole images.

    Raises ModelError when the run's recipe is damaged.
    """
    path = folder / "recipe.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text())["augment"]["size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error!r}; put the run's recipe back") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """TOML text of numbers, strings, booleans, lists of those, and tables (mappings or dataclasses) of them."""
    return "\n".join(_table(values, ())).lstrip("\n") + "\n"


def _table(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    tables = {key: asdict(value) if is_dataclass(value) else value for key, value in values.items()}  # pyright: ignore[reportArgumentType]
    lines = [f"{key} = {_literal(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for key, value in tables.items():
        if isinstance(value, Mapping):
            here = (*path, key)
            lines += ["", f"[{'.'.join(here)}]", *_table(value, here)]
    return lines


def _literal(value: Any) -> str:
    if isinstance(value, bool | str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(_literal(item) for item in value)}]"
    raise UsageError(f"a configuration cannot hold a {type(value).__name__}: {value!r}")
