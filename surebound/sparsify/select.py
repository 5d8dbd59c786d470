"""Choose neurons to graft: rarely significant and often unstable, over all layers at once, in stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surebound.errors import UsageError

GAMMAS = (2.0, 1.5, 1.0, 0.0)
"""The weight of instability in each stage."""


@dataclass(frozen=True)
class Stage:
    """What one stage did: its gamma, how many neurons it took from each site, the lowest score it took."""

    gamma: float
    taken: Mapping[str, int]
    lowest: float


@dataclass(frozen=True, eq=False)
class Selection:
    """masks: bool tensor per site, true where chosen. stages: in order. ratio: chosen / all neurons, exactly."""

    masks: Mapping[str, Tensor]
    stages: tuple[Stage, ...]
    ratio: float


def dense_rank(values: Tensor) -> Tensor:
    """Ranks in [0, 1], float64: equal values share a rank and ranks have no gaps (one distinct value: all 0)."""
    distinct, place = torch.unique(values, sorted=True, return_inverse=True)
    return place.double() / max(1, len(distinct) - 1)


def select(
    significance: Mapping[str, Tensor],
    instability: Mapping[str, Tensor],
    ratio: float,
    gammas: Sequence[float] = GAMMAS,
) -> Selection:
    """Choose round(ratio n) of all n neurons by the score gamma r_u - r_s, largest first, one stage per gamma.

    r_u, r_s: dense ranks of instability and significance over all neurons of the network. The stages are of
    equal size (up to one neuron); what an earlier stage took is excluded. Of equal scores the less significant
    neuron goes first, then the one that comes first. Every site gets a mask, which may be empty.
    Raises UsageError for a ratio outside [0, 1], criteria that do not match, or values that are not finite.
    """
    _check(significance, instability, ratio, gammas)
    sites = list(significance)
    sizes = [significance[name].numel() for name in sites]
    site_of = torch.repeat_interleave(torch.arange(len(sites)), torch.tensor(sizes))
    flat_s = torch.cat([significance[name].detach().cpu().double().flatten() for name in sites])
    flat_u = torch.cat([instability[name].detach().cpu().double().flatten() for name in sites])
    rank_s, rank_u = dense_rank(flat_s), dense_rank(flat_u)
    wanted = round(ratio * len(site_of))
    by_significance = torch.argsort(flat_s, stable=True)
    chosen = torch.zeros(len(site_of), dtype=torch.bool)
    stages: list[Stage] = []
    for number, gamma in enumerate(gammas, start=1):
        count = wanted * number // len(gammas) - int(chosen.sum())
        score = gamma * rank_u - rank_s
        open_score = torch.where(chosen, torch.full_like(score, -torch.inf), score)[by_significance]
        taken = by_significance[torch.argsort(open_score, descending=True, stable=True)[:count]]
        chosen[taken] = True
        per_site = torch.bincount(site_of[taken], minlength=len(sites)).tolist()
        lowest = float(score[taken].min()) if count else float("nan")
        stages.append(Stage(float(gamma), dict(zip(sites, per_site, strict=True)), lowest))
    masks = {
        name: part.reshape(significance[name].shape) for name, part in zip(sites, chosen.split(sizes), strict=True)
    }
    return Selection(masks, tuple(stages), int(chosen.sum()) / len(site_of))


def _check(
    significance: Mapping[str, Tensor], instability: Mapping[str, Tensor], ratio: float, gammas: Sequence[float]
) -> None:
    if not 0 <= ratio <= 1:
        raise UsageError(f"the ratio of neurons must lie in [0, 1], got {ratio}")
    if not gammas:
        raise UsageError("selection needs at least one gamma")
    if list(significance) != list(instability):
        raise UsageError(
            f"significance is given for the sites {list(significance)}, instability for {list(instability)}; "
            "compute both on the same network"
        )
    for name, values in significance.items():
        other = instability[name]
        if values.shape != other.shape:
            raise UsageError(
                f"site '{name}' has shape {list(values.shape)} in one criterion, {list(other.shape)} in the other"
            )
        if not bool(torch.isfinite(values).all() and torch.isfinite(other).all()):
            raise UsageError(f"the criteria of site '{name}' are not all finite; look for NaN in the weights")
    if sum(values.numel() for values in significance.values()) == 0:
        raise UsageError("there are no neurons to choose from")
