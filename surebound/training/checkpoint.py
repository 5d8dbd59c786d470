"""A run that can be continued: the weights, the optimiser's numbers and the epochs so far, as safetensors and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from surebound.errors import UsageError
from surebound.rowfile import replace_file
from surebound.training.averaging import Averaging
from surebound.training.distributed import first
from surebound.training.radii import Progress

if TYPE_CHECKING:
    from surebound.training.loop import Epoch


class State:
    """Where a run is: steps done, losses of the epoch so far, the last step's loss and radius, epochs, the weights
    chosen so far and averaged ones.
    """

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, averaging: Averaging | None) -> None:
        self.network, self.optimiser, self.averaging = network, optimiser, averaging
        self.step, self.total = 0, 0.0
        self.loss: float | None = None
        self.radius = Progress()
        self.epochs: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.mean = copied(network) if averaging is not None else {}

    def stepped(self, loss: float, images: int, radius: Progress) -> None:
        """One step is done, with this mean loss over so many images, at this radius."""
        self.step += 1
        self.total += loss * images
        self.loss, self.radius = loss, radius
        if self.averaging is not None:
            share = self.averaging.share(self.step)
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.mean[name].lerp_(value, share)
                else:
                    self.mean[name].copy_(value)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights, if there are any."""
        if self.averaging is None:
            yield
            return
        own = copied(self.network)
        self.network.load_state_dict(self.mean)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def finish(self, epoch: Epoch, chosen: bool) -> None:
        """An epoch is over; keep the weights if it is chosen."""
        self.epochs.append(epoch)
        self.total = 0.0
        if chosen:
            self.best = copied(self.network)

    def restore(self) -> None:
        """Give the network the weights that were chosen."""
        self.network.load_state_dict(self.best or self.mean or self.network.state_dict())
        self.network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        found = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        found |= {f"best/{name}": value for name, value in self.best.items()}
        found |= {f"mean/{name}": value for name, value in self.mean.items()}
        for number, values in self.optimiser.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    found[f"optimiser/{number}/{name}"] = value
        return {name: value.detach().contiguous() for name, value in found.items()}

    def load(self, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
        """Take over what was saved; KeyError, RuntimeError or ValueError where it is of another run."""
        from surebound.training.loop import Epoch

        parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "mean": {}, "optimiser": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = value
        if bool(parts["mean"]) != (self.averaging is not None):
            raise ValueError("weights are averaged in only one of the two runs")
        for kept in (parts["best"], parts["mean"], parts["network"]):  # the last one stays
            if kept:
                self.network.load_state_dict(kept)
        self.best, self.mean = parts["best"], parts["mean"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimiser"].items():
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.step, self.total, self.loss = told["step"], told["total"], told["loss"]
        self.radius = Progress(**told["radius"])
        self.epochs = [Epoch(**epoch) for epoch in told["epochs"]]


def copied(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors, cloned."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


@dataclass
class Checkpoint:
    """FOLDER/checkpoint.safetensors, whose metadata tell the rest; written anew every `every` seconds and epoch."""

    folder: Path
    every: float = 60.0
    saved: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "checkpoint.safetensors"

    def if_due(self, state: State) -> None:
        """Save when the last time is long ago."""
        if time.monotonic() - self.saved >= self.every:
            self.save(state)

    def save(self, state: State) -> None:
        """Write the state; at any moment the file is the old one or the new one."""
        if not first():
            return
        told = {
            "step": state.step,
            "total": state.total,
            "loss": state.loss,
            "radius": asdict(state.radius),
            "epochs": [asdict(epoch) for epoch in state.epochs],
        }
        replace_file(self.path, save(state.tensors(), {"run": json.dumps(told)}))
        self.saved = time.monotonic()

    def load(self, state: State) -> None:
        """Take over what is there, if anything; UsageError for a file of another run."""
        if not self.path.exists():
            return
        try:
            tensors = load_file(self.path)
            state.load(tensors, json.loads(metadata(self.path)["run"]))
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"{self.path} cannot be continued: {error}; choose another folder with --out, or delete it"
            ) from None


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file tells besides tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata() or {}
