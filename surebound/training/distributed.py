"""Several processes (torchrun): each takes its part of every batch, gradients are averaged."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn


def workers() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share(index: Tensor) -> Tensor:
    """The images of a batch that this process takes: every n-th; never none."""
    count = workers()
    if count == 1:
        return index
    return index[dist.get_rank() % len(index) :: count]


def weight(index: Tensor) -> float:
    """What this process's mean over its images counts in the mean over the processes, so that images count alike."""
    count = workers()
    return len(share(index)) * count / max(count, len(index))


def average(network: nn.Module) -> None:
    """Replace every gradient, and the running statistics of norms, by the mean over the processes."""
    count = workers()
    if count == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    for tensor in (*gradients, *(buffer for buffer in network.buffers() if buffer.is_floating_point())):
        dist.all_reduce(tensor)
        tensor /= count


def mean(value: Tensor) -> float:
    """The mean of a number over the processes."""
    count = workers()
    if count == 1:
        return float(value)
    total = value.clone()
    dist.all_reduce(total)
    return float(total) / count


def first() -> bool:
    """Is this the process that writes files?"""
    return workers() == 1 or dist.get_rank() == 0
