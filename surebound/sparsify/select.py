"""From scores to masks: which weights and channels stay, which neurons are grafted; counts are met exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from surebound.errors import UsageError

GAMMAS = (2.0, 1.5, 1.0, 0.0)
"""The weight of instability in each stage."""

SCOPES = ("global", "layer", "channel")
"""Neurons compete over the whole network, within their layer, or whole channels do over the whole network."""


# ---------------------------------------------------------------- what stays


def kept(
    scores: Mapping[str, Tensor],
    keep: float,
    scope: str = "global",
    there: Mapping[str, Tensor] | None = None,
    least: int = 0,
    of: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """True for the round(keep n) largest scores of all n, or of every tensor's own n under the scope "layer".

    there: what may still be kept (default all). least: how many of every tensor stay at any rate. of: what counts, so
    that n is the number of these (default all). Of equal scores the first ones stay. Raises UsageError where fewer are
    there than are to be kept, and for scores that are no numbers.
    """
    if not 0 <= keep <= 1:
        raise UsageError(f"the part that is kept must lie in [0, 1], got {keep}")
    if scope not in ("global", "layer"):
        raise UsageError(f"scores compete over 'global' or 'layer', got '{scope}'")
    require_numbers(scores)
    flat = {name: score.detach().cpu().double().flatten().clone() for name, score in scores.items()}
    for name, score in flat.items():
        if there is not None:
            score[~there[name].detach().cpu().flatten()] = -math.inf
        score[torch.topk(score, min(least, int((score > -math.inf).sum()))).indices] = math.inf
    counts = {name: len(score) if of is None else int(of[name].sum()) for name, score in flat.items()}
    if scope == "layer":
        safe = {name: int((score == math.inf).sum()) for name, score in flat.items()}
        chosen = {name: largest(score, max(round(keep * counts[name]), safe[name])) for name, score in flat.items()}
    else:
        together = torch.cat(list(flat.values()))
        wanted = max(round(keep * sum(counts.values())), int((together == math.inf).sum()))
        parts = largest(together, wanted).split([len(score) for score in flat.values()])
        chosen = dict(zip(flat, parts, strict=True))
    return {name: mask.reshape(scores[name].shape) for name, mask in chosen.items()}


def largest(scores: Tensor, count: int) -> Tensor:
    """bool: the `count` largest of scores [n]; the first of equals."""
    available = int((scores > -math.inf).sum())
    if count > available:
        raise UsageError(f"{count} are to be kept and only {available} are left; prune less in earlier rounds")
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.argsort(scores, descending=True, stable=True)[:count]] = True
    return mask


# ---------------------------------------------------------------- ranks


def dense_rank(values: Tensor) -> Tensor:
    """Ranks in [0, 1], float64: equal values share a rank and ranks have no gaps (one distinct value: all 0)."""
    distinct, place = torch.unique(values, sorted=True, return_inverse=True)
    return place.double() / max(1, len(distinct) - 1)


def min_rank(values: Tensor) -> Tensor:
    """Ranks in [0, 1], float64: the part of the others that is smaller; equal values share the smallest rank."""
    ordered = values.sort().values
    return torch.searchsorted(ordered, values).double() / max(1, len(values) - 1)


def min_max(values: Tensor) -> Tensor:
    """(v - min) / (max - min), float64; 0 where all are equal."""
    low, high = values.double().min(), values.double().max()
    return (values.double() - low) / (high - low) if high > low else torch.zeros_like(values, dtype=torch.float64)


RANKS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"dense": dense_rank, "min": min_rank, "raw": min_max}
)
"""How values become comparable: the paper does not say which, and masks depend on it strongly."""


# ---------------------------------------------------------------- what is grafted


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


def select(
    significance: Mapping[str, Tensor],
    instability: Mapping[str, Tensor],
    ratio: float,
    gammas: Sequence[float] = GAMMAS,
    rank: str = "dense",
    scope: str = "global",
    taken: Mapping[str, Tensor] | None = None,
) -> Selection:
    """Choose round(ratio n) of all n neurons by the score gamma r_u - r_s, largest first, one stage per gamma.

    r_u, r_s: instability and significance over all neurons of the network, made comparable by `RANKS[rank]`. gamma
    infinity: r_u alone. The stages are of equal size (up to one neuron); what an earlier stage took is excluded. Of
    equal scores the less significant neuron goes first, then the one that comes first. scope: see `SCOPES`; under
    "layer" every layer gives its share (shares of neurons go to the largest remainders), under "channel" the mean
    score decides and channels that no longer fit are passed over. taken: neurons chosen already, which count.
    Every site gets a mask, which may be empty.
    Raises UsageError for a ratio outside [0, 1], criteria that do not match, or values that are not finite.
    """
    check(significance, instability, ratio, gammas, rank, scope)
    sites = list(significance)
    sizes = [significance[name].numel() for name in sites]
    flat_s = torch.cat([significance[name].detach().cpu().double().flatten() for name in sites])
    flat_u = torch.cat([instability[name].detach().cpu().double().flatten() for name in sites])
    rank_s, rank_u = RANKS[rank](flat_s), RANKS[rank](flat_u)
    site_of = torch.repeat_interleave(torch.arange(len(sites)), torch.tensor(sizes))
    units = units_of([tuple(significance[name].shape) for name in sites], scope)
    chosen = torch.zeros(len(site_of), dtype=torch.bool)
    if taken is not None:
        chosen = torch.cat([taken[name].detach().cpu().flatten() for name in sites])
    room = budgets(sizes, ratio, scope)
    stages: list[Stage] = []
    for number, gamma in enumerate(gammas, start=1):
        score = rank_u if math.isinf(gamma) else gamma * rank_u - rank_s
        now = torch.zeros_like(chosen)
        for inside, count in room(site_of):
            part = inside & ~chosen & ~now
            share = count * number // len(gammas) - int((chosen & inside).sum())
            now |= best(units, score, flat_s, part, max(0, share))
        chosen |= now
        per_site = torch.bincount(site_of[now], minlength=len(sites)).tolist()
        lowest = float(score[now].min()) if bool(now.any()) else float("nan")
        stages.append(Stage(float(gamma), dict(zip(sites, per_site, strict=True)), lowest))
    masks = {
        name: part.reshape(significance[name].shape) for name, part in zip(sites, chosen.split(sizes), strict=True)
    }
    return Selection(masks, tuple(stages), int(chosen.sum()) / len(site_of))


def units_of(shapes: Sequence[tuple[int, ...]], scope: str) -> Tensor:
    """By neuron the number of what it is chosen with: itself, or its channel."""
    numbers: list[Tensor] = []
    first = 0
    for shape in shapes:
        count, per = math.prod(shape), math.prod(shape[1:]) if scope == "channel" else 1
        numbers.append(first + torch.arange(count) // per)
        first += count // per
    return torch.cat(numbers)


def budgets(sizes: Sequence[int], ratio: float, scope: str) -> Callable[[Tensor], list[tuple[Tensor, int]]]:
    """Told the site of every neuron: sets of neurons and how many of each are chosen in the end."""
    wanted = round(ratio * sum(sizes))
    if scope != "layer":
        return lambda site_of: [(torch.ones_like(site_of, dtype=torch.bool), wanted)]
    exact = torch.tensor([ratio * size for size in sizes], dtype=torch.float64)
    counts = exact.floor().long()
    order = torch.argsort(exact - counts, descending=True, stable=True)
    counts[order[: wanted - int(counts.sum())]] += 1
    return lambda site_of: [(site_of == site, int(count)) for site, count in enumerate(counts)]


def best(units: Tensor, score: Tensor, significance: Tensor, part: Tensor, count: int) -> Tensor:
    """bool: at most `count` neurons of `part`, whole units with the largest mean scores that fit."""
    total = int(units.max()) + 1
    sizes = torch.bincount(units[part], minlength=total)
    mean = torch.zeros(total, dtype=torch.float64).scatter_add_(0, units[part], score[part]) / sizes.clamp(min=1)
    weight = torch.zeros(total, dtype=torch.float64).scatter_add_(0, units[part], significance[part])
    open_units = torch.nonzero(sizes > 0).squeeze(1)
    by_weight = open_units[torch.argsort((weight / sizes.clamp(min=1))[open_units], stable=True)]
    order = by_weight[torch.argsort(mean[by_weight], descending=True, stable=True)]
    if bool((sizes[order] == 1).all()):
        taken = order[:count]
    else:
        fitting, left = [], count
        for unit, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
            if size <= left:
                fitting.append(unit)
                left -= size
        taken = torch.tensor(fitting, dtype=torch.long)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[taken] = True
    return mask[units] & part


def check(
    significance: Mapping[str, Tensor],
    instability: Mapping[str, Tensor],
    ratio: float,
    gammas: Sequence[float],
    rank: str,
    scope: str,
) -> None:
    """Raise UsageError for what cannot be chosen from."""
    if not 0 <= ratio <= 1:
        raise UsageError(f"the ratio of neurons must lie in [0, 1], got {ratio}")
    if not gammas or any(math.isnan(gamma) or gamma < 0 for gamma in gammas):
        raise UsageError(f"selection needs at least one gamma, each at least 0, got {list(gammas)}")
    if rank not in RANKS:
        raise UsageError(f"scores are ranked by one of {', '.join(RANKS)}, not by '{rank}'")
    if scope not in SCOPES:
        raise UsageError(f"neurons are chosen by one of {', '.join(SCOPES)}, not by '{scope}'")
    if list(significance) != list(instability):
        raise UsageError(
            f"significance is given for the sites {list(significance)}, instability for {list(instability)}; "
            "compute both on the same network"
        )
    for name, values in significance.items():
        if values.shape != instability[name].shape:
            raise UsageError(
                f"site '{name}' has shape {list(values.shape)} in one criterion, {list(instability[name].shape)} in "
                "the other"
            )
    require_numbers(significance)
    require_numbers(instability)
    if sum(values.numel() for values in significance.values()) == 0:
        raise UsageError("there are no neurons to choose from")


def require_numbers(scores: Mapping[str, Tensor]) -> None:
    """Raise UsageError unless all scores are finite."""
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise UsageError(f"the scores of '{name}' are not all finite; look for NaN in the weights")
