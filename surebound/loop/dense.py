"""The run that sparsifying starts from: its network, its recipe, and the weights it once had."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from surebound.data.dataset import Dataset
from surebound.errors import DataError, ModelError, UsageError
from surebound.fit import fresh
from surebound.nets.from_graph import GraphNet
from surebound.nets.grafted import GraftedReLU
from surebound.runs import Recipe, load_network, load_recipe
from surebound.same_settings import differences
from surebound.sparsify.mask_file import MaskFile, mask_name
from surebound.sparsify.masks import mask_weights
from surebound.sparsify.sites import Masks
from surebound.training.recipe import Values, recipe_of


def require_other(out: Path, *sources: Path) -> None:
    """Raise UsageError where a command would write over the folders or files that it starts from."""
    if out.resolve() in {(source.parent if source.is_file() else source).resolve() for source in sources}:
        raise UsageError(f"{out} is the folder that this starts from; choose another --out, so that nothing is lost")


def require_same_network(values: Values, dense: Dense) -> None:
    """Raise UsageError for settings of another network than the one that there is."""
    if values["network"] != dense.recipe["network"]:
        asked = ", ".join(differences(dense.recipe["network"], values["network"], "network"))
        raise UsageError(f"the network is that of {dense.folder} ({asked}); train another one to change it")


def masks_beside(folder: Path, network: nn.Module) -> Masks:
    """The masks of what was pruned of a folder's network; DataError where they are not those of the network."""
    path = folder / mask_name("kept")
    if not path.exists():
        return {}
    masks = MaskFile.read(path, "kept").masks
    mask_weights(network, masks)  # raises where names or shapes do not fit
    moved = [name for name, mask in masks.items() if bool((network.get_parameter(name)[~mask] != 0).any())]
    if moved:
        raise DataError(
            f"{path} says that weights of '{moved[0]}' are pruned which are not zero; it is of another network"
        )
    return masks


@dataclass(frozen=True, eq=False)
class Dense:
    """A finished run folder. recipe: what it was trained by; made: how its network is built; digest: SHA-256 of its
    weights; masks: of weights that are pruned and stay zero in everything that is made of it.
    """

    folder: Path
    recipe: Values
    network: nn.Module
    made: Recipe
    digest: str
    masks: Masks = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Dense:
        """Raises ModelError for a folder that is no finished run, UsageError for a recipe of another version."""
        for name in ("recipe.json", "summary.json", "model.safetensors"):
            if not (folder / name).exists():
                raise ModelError(
                    f"{folder / name} is missing; sparsifying starts from a folder in which `surebound train` has ended"
                )
        try:
            recipe = recipe_of(json.loads((folder / "recipe.json").read_text()))
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder / 'recipe.json'} cannot be read: {error}; put the run's recipe back") from None
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        network = load_network(folder)
        return Dense(folder, recipe, network, load_recipe(folder), digest, masks_beside(folder, network))

    def at(self, epoch: int, data: Dataset) -> nn.Module:
        """The network as it was after so many epochs, norms and buffers included; 0: before training.

        Raises UsageError where the run did not keep that epoch, or its network has lines, which it had not then.
        """
        if any(isinstance(part, GraftedReLU) for part in self.network.modules()):
            raise UsageError(f"{self.folder} has grafted neurons, which cannot be rewound; use prune.then=rate-rewind")
        if isinstance(self.network, GraphNet):
            raise UsageError(f"{self.folder} is compressed and cannot be rewound; use prune.then=rate-rewind")
        network = fresh(self.recipe, data)
        if epoch == 0:
            return network
        path = self.folder / f"epoch-{epoch}.safetensors"
        if not path.exists():
            raise UsageError(
                f"{path} is missing: the run did not keep its weights after epoch {epoch}; train it with "
                f"--set run.keep=[{epoch}]"
            )
        try:
            network.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"{path} does not fit the run's network: {error}") from None
        return network
