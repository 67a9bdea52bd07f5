"""Counters in their stored form, and what is counted of masks and counters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks, _dispatch, encoding
from dstee.ops._call import call, declare

declare(
    "encode_counts(Tensor N, Tensor mask, int round) -> Tensor",
    lambda N, mask, round: N.new_empty(N.numel(), dtype=torch.int16),
)
declare(
    "decode_counts(Tensor counts, Tensor mask_bits, int round, SymInt[] shape) -> Tensor",
    lambda counts, mask_bits, round, shape: counts.new_empty(shape, dtype=torch.int32),
)


def encode_counts(N: Tensor, mask: Tensor, round: int) -> Tensor:
    """Counters N (any integer dtype) under ``mask`` (bool, same shape) after ``round`` updates -> int16 [n] stored form.

    Raises:
        TypeError, ValueError: dtypes, shapes or memory order do not fit, or an N is outside what ``round`` updates allow:
        0..round for an inactive weight, 1..round+1 for an active one.
    """
    if not isinstance(N, Tensor) or N.is_floating_point() or N.is_complex() or N.dtype == torch.bool:
        raise TypeError(f"N must be an integer tensor, got {getattr(N, 'dtype', type(N).__name__)}")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    _dispatch.refuse_no_memory("N", N)
    _dispatch.refuse_no_memory("mask", mask)
    _check_count_round(round)
    if not _checks.is_dense(N):
        raise ValueError(f"N with strides {N.stride()} is not dense, non-overlapping storage: call .contiguous()")
    if mask.shape != N.shape or mask.device != N.device or _checks.layout(mask) != _checks.layout(N):
        raise ValueError(
            f"mask is {list(mask.shape)} {mask.stride()} on {mask.device}, "
            f"expected {list(N.shape)} {N.stride()} on {N.device} as N"
        )
    N = N.to(torch.int64)  # the stored form of a small counter need not fit the dtype it came in
    low = mask.long()
    bad = (low > N) | (low + round < N)
    if not _dispatch.is_traced() and bool(bad.any()):
        raise ValueError(
            f"N has {int(bad.sum())} values that {round} updates do not allow: 0..{round} for an inactive weight, "
            f"1..{round + 1} for an active one"
        )
    return call("encode_counts", N.device, lambda: None, N, mask, round)


def decode_counts(counts: Tensor, mask_bits: Tensor, round: int, shape: Sequence[int]) -> Tensor:
    """Inverse of :func:`encode_counts`: counters N as int32, contiguous, of ``shape``.

    Raises:
        TypeError, ValueError: a tensor does not have the dtype and size that ``shape`` needs.
    """
    shape = _checks.check_shape(shape)
    for name, t in (("counts", counts), ("mask_bits", mask_bits)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    _check_count_round(round)
    _checks.check_flat("counts", 0, counts, torch.int16, shape.numel(), counts.device)
    _checks.check_flat("mask_bits", 0, mask_bits, torch.uint8, encoding.mask_bytes(shape.numel()), counts.device)
    return call("decode_counts", counts.device, lambda: None, counts, mask_bits, round, list(shape))


def _check_count_round(round: int) -> None:
    if isinstance(round, bool) or not isinstance(round, int):
        raise TypeError(f"round must be an int (mask updates done so far), got {type(round).__name__}")
    if not 0 <= round <= encoding.MAX_ROUNDS - 1:
        raise ValueError(f"round must be in 0..{encoding.MAX_ROUNDS - 1}, got {round}")


declare("count_active(Tensor[] mask_bits) -> Tensor", lambda bits: bits[0].new_empty(len(bits), dtype=torch.int64))
declare(
    "count_explored(Tensor[] counts, Tensor[] mask_bits) -> Tensor",
    lambda counts, bits: bits[0].new_empty(len(bits), dtype=torch.int64),
)


def count_active(mask_bits: Sequence[Tensor]) -> Tensor:
    """Active weights per layer: int64 [L] on the masks' device, no host sync."""
    mask_bits = _checks.tensor_list("mask_bits", mask_bits)
    if not mask_bits:
        return torch.zeros(0, dtype=torch.int64)
    device = mask_bits[0].device
    for i, b in enumerate(mask_bits):
        _checks.check_flat("mask_bits", i, b, torch.uint8, b.numel(), device)
    return call("count_active", device, lambda: None, mask_bits)


def count_explored(counts: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> Tensor:
    """Weights that were ever active (N > 0) per layer: int64 [L] on the masks' device, no host sync (paper, R)."""
    mask_bits = _checks.tensor_list("mask_bits", mask_bits)
    counts = _checks.tensor_list("counts", counts, len(mask_bits))
    if not mask_bits:
        return torch.zeros(0, dtype=torch.int64)
    device = mask_bits[0].device
    for i, (c, b) in enumerate(zip(counts, mask_bits, strict=True)):
        _checks.check_flat("counts", i, c, torch.int16, c.numel(), device)
        _checks.check_flat("mask_bits", i, b, torch.uint8, encoding.mask_bytes(c.numel()), device)
    return call("count_explored", device, lambda: None, counts, mask_bits)
