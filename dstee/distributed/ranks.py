"""What the ranks of a process group must agree on. Without a group, or with one rank, nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["broadcast", "mean", "mean_", "shared_seed"]


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replaces contiguous tensors by their means over all ranks, in place."""
    if _alone():
        return
    for work in [dist.all_reduce(t, async_op=True) for t in tensors]:
        work.wait()
    torch._foreach_div_(list(tensors), dist.get_world_size())


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Means over all ranks: the tensors themselves on one rank, else new contiguous ones."""
    if _alone():
        return list(tensors)
    means = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
    mean_(means)
    return means


def broadcast(t: Tensor) -> Tensor:
    """``t`` of the first rank."""
    if _alone():
        return t
    t = t.clone(memory_format=torch.contiguous_format)
    dist.broadcast(t, 0)
    return t


def shared_seed(device: torch.device, low: int = 0, high: int = 2**62) -> int:
    """A seed in [low, high) from torch's CPU generator, the first rank's on all ranks. ``device``: where the ranks talk."""
    seed = torch.randint(low, high, (1,))
    return int(seed if _alone() else broadcast(seed.to(device)))
