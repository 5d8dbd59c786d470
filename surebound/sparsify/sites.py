"""Where a network's ReLUs sit: the sites that pruning and grafting work on, one mask each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from surebound.attacks.adversarial import evaluating
from surebound.errors import UsageError

Masks = Mapping[str, Tensor]
"""One bool tensor per site, shaped like one sample's pre-activation."""

Place = Literal["before", "behind"]
"""In front of an activation, or what it answers."""


@contextmanager
def recorded(
    network: nn.Module, kinds: tuple[type[nn.Module], ...], place: Place = "before"
) -> Iterator[dict[str, Tensor]]:
    """Within the context, forward passes fill the dict: site name -> its latest value [B, *shape] at the place.

    Sites stand in the order in which they run. Raises UsageError when a site runs twice in one pass.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> Tensor:
        if name in found:
            raise UsageError(
                f"the activation module '{name}' runs more than once per forward pass, so its neurons are not "
                "one set; give each place an activation module of its own"
            )
        found[name] = value
        return value.clone()  # an activation may work in place

    def noting(name: str, module: nn.Module) -> Callable[[], None]:
        if place == "before":
            return module.register_forward_pre_hook(lambda part, inputs: note(name, inputs[0])).remove
        return module.register_forward_hook(lambda part, inputs, output: note(name, output)).remove  # pyright: ignore

    removals = [noting(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    try:
        yield found
    finally:
        for remove in removals:
            remove()


def relu_sites(
    network: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...] = (nn.ReLU,)
) -> dict[str, tuple[int, ...]]:
    """Dotted names of the ReLU modules that a forward pass runs, in that order, and their shapes without the batch.

    example: a batch [B, *input shape]. Raises UsageError when there are none.
    """
    with torch.no_grad(), evaluating(network), recorded(network, kinds) as found:
        network(example)
    if not found:
        raise UsageError(
            "the network has no torch.nn.ReLU modules to graft or prune; use nn.ReLU() modules instead of "
            "torch.relu or functional calls"
        )
    return {name: tuple(value.shape[1:]) for name, value in found.items()}
