"""Mask files: which neurons are grafted or which weights are kept, with where that came from.

Ours are safetensors with one uint8 tensor per name and the provenance as JSON in the metadata. The masks that
linearity grafting was released with are archives of torch: a list of float tensors, one per ReLU in forward order, 1
where grafted.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from surebound.errors import DataError
from surebound.rowfile import replace_file
from surebound.sparsify.sites import Masks

KINDS = ("grafted", "kept")
"""What a mask's true means: the neuron is grafted; the weight is kept."""


def mask_name(kind: str) -> str:
    """What the file of masks of a kind is called in a run folder."""
    return f"{kind}.safetensors"


@dataclass(frozen=True, eq=False)
class MaskFile:
    """masks: bool by name of site or parameter. kind: one of `KINDS`. provenance: how they were made, plain values."""

    masks: Masks
    kind: str
    provenance: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the file; at any moment it is the old one or the new one."""
        tensors = {name: mask.detach().cpu().to(torch.uint8).contiguous() for name, mask in self.masks.items()}
        told = {"surebound": json.dumps({"kind": self.kind, "order": list(self.masks), "provenance": self.provenance})}
        replace_file(path, save(tensors, told))

    @staticmethod
    def read(path: Path, kind: str | None = None) -> MaskFile:
        """A file that `write` wrote, of some kind if one is asked for; raises DataError for any other."""
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})["surebound"])
            found = load(path.read_bytes())
            masks = {name: found[name] for name in told["order"]}
            if told["kind"] not in ((kind,) if kind else KINDS):
                raise ValueError(f"its masks are of the kind '{told['kind']}', not {kind or KINDS}")
            if any(bool((mask > 1).any()) for mask in masks.values()):
                raise ValueError("its values are not those of masks")
            return MaskFile({name: mask.bool() for name, mask in masks.items()}, told["kind"], told["provenance"])
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no mask file of surebound: {error!r}") from None


def read_released(path: Path, sites: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The masks of a released file, for the sites of a network in forward order; no code in the file is run.

    Raises DataError where the file is none, or does not fit the sites.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise DataError(f"{path} is no list of tensors as torch.save writes it; give a mask file") from None
    if not isinstance(found, list) or not all(isinstance(mask, Tensor) for mask in found):
        raise DataError(f"{path} holds no list of tensors; a mask file is one tensor per ReLU, in forward order")
    shapes = [tuple(mask.shape) for mask in found]
    if shapes != list(sites.values()):
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in sites.items())
        raise DataError(f"{path} has masks of shapes {shapes}, the network's ReLUs are {listed}")
    if not all(bool(((mask == 0) | (mask == 1)).all()) for mask in found):
        raise DataError(f"{path} has values other than 0 and 1")
    return {name: mask.bool() for name, mask in zip(sites, found, strict=True)}


def write_released(path: Path, masks: Masks) -> None:
    """Masks in the released form, in the order in which they are given: that of the forward pass."""
    with path.open("wb") as file:
        torch.save([mask.detach().cpu().float() for mask in masks.values()], file)
