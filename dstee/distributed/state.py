"""What a state needs of tensors that are cut among ranks: fingerprints, which do not depend on the cut, and whole copies.

A fingerprint is 64 bits: the sum over all elements of a mix of global index and value, modulo 2^64. Sums have no order, so
those of the shards add up to that of the whole; and the mix is a bijection of the value, so one changed element always shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee.distributed.ranks import Ranks
from dstee.distributed.where import Where

__all__ = ["fingerprint", "fingerprints", "gather"]

_CHUNK = 1 << 15  # elements at a time on a CPU: they stay in the cache, and torch makes so few on one thread, without barriers
_CHUNK_ELSEWHERE = 1 << 20
_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def fingerprint(values: Tensor, where: Where) -> int:
    """The fingerprint of one shard, in -2^63 .. 2^63 - 1. Add those of all shards modulo 2^64.

    Args:
        values: 1-D [where.n], any dtype of 1 to 8 bytes, in row-major order: floats count by their bits, integers and bools by
            their value.
        where: the shard's place in the whole.
    """
    return int(fingerprints([values], where))


@torch.no_grad()
def fingerprints(tensors: Sequence[Tensor], where: Where) -> Tensor:
    """As :func:`fingerprint`, for several tensors on one device: int64 [len(tensors)] there, without waiting for it."""
    device = tensors[0].device if tensors else None
    sums = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    flat = [_integers(t) for t in tensors]
    chunk = _CHUNK if device is None or device.type == "cpu" else _CHUNK_ELSEWHERE
    buffer, x = torch.empty((2, min(where.n, chunk)), dtype=torch.int64, device=device)
    for start in range(0, where.n, chunk):
        stop = min(start + chunk, where.n)
        index = _mix_(_indices(where, start, stop, device), buffer[: stop - start])
        for i, t in enumerate(flat):
            mixed = torch.add(index, t[start:stop], out=x[: stop - start])
            sums[i] += _mix_(mixed, buffer[: stop - start]).sum()
    return sums


def _integers(t: Tensor) -> Tensor:
    if t.is_floating_point():
        return t.detach().view(_INTS[t.element_size()])
    return t.view(torch.uint8) if t.dtype is torch.bool else t


def _indices(where: Where, start: int, stop: int, device: torch.device | None) -> Tensor:
    """The global indices of the local ones from ``start`` to ``stop``."""
    i = torch.arange(start, stop, dtype=torch.int64, device=device)
    if where.run < where.n:  # otherwise the shard is one range, and division is slow
        row = i.div(where.run, rounding_mode="floor")
        i.add_(row, alpha=where.pitch - where.run)
    return i.add_(where.base)


def _mix_(x: Tensor, buffer: Tensor) -> Tensor:
    """splitmix64's step from each element of int64 ``x``, in place: every bit of the argument moves half of the result's."""
    x.add_(-0x61C8864680B583EB)  # 2^64 over the golden ratio, as a signed number: 0 must not stay 0
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        torch.bitwise_right_shift(x, shift, out=buffer)
        x.bitwise_xor_(buffer.bitwise_and_((1 << 64 - shift) - 1))  # the shift is arithmetic: the sign's copies go
        x.mul_(factor)
    return x


def gather(values: Tensor, where: Where, holders: Ranks) -> Tensor:
    """The whole of something that is cut among ``holders``, on each of them: 1-D [where.total] on the CPU.

    Args:
        values: this rank's part, 1-D [where.n], any dtype, in row-major order.
    """
    whole = torch.zeros(where.total, dtype=values.dtype, device=values.device)
    where.cut(whole).copy_(values.view(-1, where.run))
    return holders.reduce(whole.view(torch.uint8)).view(values.dtype)  # bytes: exact, and every backend adds them
