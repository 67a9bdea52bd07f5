"""How a mask and its counters are stored: one bit and one int16 per weight.

Everything here works on flat tensors in *storage order*: element ``i`` of a flat view is the ``i``-th element in memory,
whatever the strides of the weight (contiguous, channels_last, ...).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "MAX_ROUNDS",
    "bonus_table",
    "flat",
    "flip_counts",
    "mask_bytes",
    "pack_active",
    "pack_bits",
    "unflat",
    "unpack_active",
    "unpack_bits",
    "zero_where",
]

MAX_ROUNDS = 32_767
"""Mask rounds (the initial mask is the first) that an int16 counter holds exactly."""


def flat(t: Tensor) -> Tensor:
    """The elements of dense, non-overlapping ``t`` as a 1-D view in storage order."""
    return t.as_strided((t.numel(),), (1,))


def unflat(values: Tensor, like: Tensor) -> Tensor:
    """Inverse of :func:`flat`: 1-D ``values`` in storage order as a tensor with the shape and strides of ``like``."""
    return values.as_strided(like.shape, like.stride(), values.storage_offset())


def mask_bytes(n: int) -> int:
    """Bytes of ``mask_bits`` for ``n`` weights."""
    return (n + 7) // 8


def pack_bits(mask: Tensor) -> Tensor:
    """bool [n] -> uint8 [ceil(n/8)]; bit ``i % 8`` of byte ``i // 8`` is ``mask[i]``; padding bits are 0."""
    n = mask.numel()
    padded = torch.zeros(8 * mask_bytes(n), dtype=torch.uint8, device=mask.device)
    padded[:n] = mask
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def unpack_bits(mask_bits: Tensor, n: int) -> Tensor:
    """Inverse of :func:`pack_bits`: uint8 [ceil(n/8)] -> bool [n]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask_bits.device)
    return ((mask_bits.unsqueeze(1) >> shifts) & 1).view(-1)[:n].bool()


def pack_active(values: Tensor, mask: Tensor, nnz: int) -> Tensor:
    """[n] -> [nnz]: the values where bool ``mask`` [n] is True, in their order. ``nnz`` is how many these are."""
    place = torch.where(mask, mask.cumsum(0) - 1, nnz)  # the others meet in one place behind
    return values.new_zeros(nnz + 1).scatter_(0, place, values)[:nnz]


def unpack_active(packed: Tensor, mask: Tensor) -> Tensor:
    """Inverse of :func:`pack_active`: [nnz] -> [n], 0 where ``mask`` is False."""
    if packed.numel() == 0:
        return packed.new_zeros(mask.numel())
    place = (mask.cumsum(0) - 1).clamp(0, packed.numel() - 1)
    return torch.where(mask, packed[place], 0)


def zero_where(t: Tensor, where: Tensor) -> None:
    """``t.masked_fill_(where, 0)``, which on the CPU takes one weight at a time; whole numbers can be multiplied instead."""
    if t.is_cpu and t.dtype in _SAME_SIZE and type(t) in (Tensor, torch.nn.Parameter):
        t.view(_SAME_SIZE[t.dtype]).mul_(where.logical_not())
    else:
        t.masked_fill_(where, 0)


_SAME_SIZE = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}


def flip_counts(counts: Tensor, mask: Tensor, round: int | Tensor) -> Tensor:
    """N <-> stored form; the map is its own inverse.

    An inactive weight stores N itself. An active one stores the rounds it was *not* active, ``round + 1 - N``: that number
    stays put while the weight is active, so ``N += M`` touches no memory, and a swap of state is again ``x -> round + 1 - x``.
    """
    return torch.where(mask, round + 1 - counts, counts)


def bonus_table(c: float, eps: float, t: int, rounds: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The exploration bonus of paper Eq. 1 for every value a counter can have.

    ``B[j] = float32(c * ln(t) / (j + eps))``, computed in float64 and rounded once; or not rounded, for
    :func:`dstee.ops.drop_grow_` to multiply with a ``bonus_scale``.

    Args:
        c: weight of exploration, finite and >= 0.
        eps: offset that keeps the denominator positive, finite and > 0.
        t: optimizer step of the update, >= 1.
        rounds: mask updates done so far (q); counters are then at most ``rounds + 1``.
        dtype: float32, or float64 for a table that is scaled for each layer.

    Returns:
        ``dtype`` [rounds + 2] on the CPU.

    Raises:
        ValueError: a number is out of range, or the largest bonus is not finite in float32.
    """
    if not (math.isfinite(c) and c >= 0):
        raise ValueError(f"c must be a finite number >= 0, got {c}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a finite number > 0, got {eps}")
    if t < 1:
        raise ValueError(f"t must be >= 1 (ln t is the scale of exploration), got {t}")
    if not 0 <= rounds <= MAX_ROUNDS - 2:
        raise ValueError(f"rounds must be in 0..{MAX_ROUNDS - 2}, got {rounds}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    scale = torch.tensor(c * math.log(t), dtype=torch.float64)  # a number over a tensor would be two operations, each rounded
    table = (scale / (torch.arange(rounds + 2, dtype=torch.float64) + eps)).to(dtype)
    if not math.isfinite(float(table[0].float())):
        raise ValueError(f"c*ln(t)/eps must be finite in float32, got {c * math.log(t) / eps:g}: use a larger eps")
    return table
