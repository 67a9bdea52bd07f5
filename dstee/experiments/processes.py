"""The processes that torchrun started for one training, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dstee._console import UsageError

__all__ = ["any_of", "broadcast_buffers", "count", "joined", "mean", "place", "rank", "share", "total", "wait"]


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the processes that torchrun started, and leaves them at the end; on GPUs, each process has one of its own.

    Raises:
        UsageError: there is no GPU, or not one for each process.
    """
    if device == "cuda":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if not torch.cuda.is_available():
            raise UsageError("--device cuda needs a GPU, which this torch does not see: leave it out to train on the CPU")
        if torch.cuda.device_count() < local:
            raise UsageError(f"{local} processes need as many GPUs, got {torch.cuda.device_count()}: start fewer processes")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask for
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
        dist.barrier()  # nobody leaves while others still talk
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def place(device: str) -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def share(batch: Tensor) -> Tensor:
    """This process's part of a batch, all parts of one size."""
    return batch[rank() :: count()]


def total(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if count() > 1:
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> float:
    """The mean over all processes, the same for each."""
    return float(total(value.detach().double()) / count())


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether one process says so."""
    return flag if count() == 1 else bool(total(torch.tensor(int(flag), device=device)))


def broadcast_buffers(model: nn.Module) -> None:
    """The first process's running statistics for all, as DistributedDataParallel has them in front of each step."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wait() -> None:
    if count() > 1:
        dist.barrier()
