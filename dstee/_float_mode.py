"""CPU arithmetic with gradual underflow, whatever the caller has asked of torch. The compiled kernels see to it themselves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_GRAIN = 1 << 15  # elements from which torch shares an operation among its threads
_DENORMAL = 71_362  # the bits of a float32


def with_gradual_underflow(op: Callable[Concatenate[list[Tensor], P], R]) -> Callable[Concatenate[list[Tensor], P], R]:
    """Makes ``op``, a function of a list of weights on one device, compute on the CPU under :func:`gradual_underflow`."""

    @functools.wraps(op)
    def call(params: list[Tensor], /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not params or params[0].device.type != "cpu":
            return op(params, *args, **kwargs)
        with gradual_underflow(max(p.numel() for p in params)):
            return op(params, *args, **kwargs)

    return call


@contextlib.contextmanager
def gradual_underflow(n: int) -> Iterator[None]:
    """Inside, operations on CPU tensors of up to ``n`` elements neither flush denormals to 0 nor read them as 0.

    ``torch.set_flush_denormal`` is for the thread that calls it and for those of torch's pool that start later: they may flush
    where the caller does not, and nobody can tell them otherwise. Where any thread flushes, all is computed by the calling one,
    which is set back afterwards. (``torch.set_num_threads`` is meant for this thread too, but a thread that has never run an
    operation takes over the number that it finds.)
    """
    threads, here = torch.get_num_threads(), _flushes(1)
    if not here and (threads == 1 or n <= _GRAIN or not _flushes(min(n, threads * _GRAIN))):
        yield
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(here)
        torch.set_num_threads(threads)


def _flushes(n: int) -> bool:
    """Whether denormals are lost in an operation on ``n`` elements. There is no other way to learn it."""
    tiny = torch.full((n,), _DENORMAL, dtype=torch.int32, device="cpu").view(torch.float32)
    return not bool((tiny * 1.0).view(torch.int32).all())
