"""pack_mask, unpack_mask: bool mask <-> one bit a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._table import TILE
from ._tiles import ROWS

__all__ = ["pack_mask", "unpack_mask"]


@triton.jit(do_not_specialize=["n"])
def pack_kernel(mask, bits, n):
    start = tl.program_id(0).to(tl.int64) * TILE
    first = start + tl.arange(0, ROWS) * 8
    i = first[:, None] + tl.arange(0, 8)[None, :]
    if start + TILE <= n:
        lanes = tl.load(mask + i).to(tl.int32)
    else:
        lanes = tl.load(mask + i, mask=i < n, other=0).to(tl.int32)
    byte = tl.sum((lanes != 0).to(tl.int32) << tl.arange(0, 8)[None, :], 1)
    tl.store(bits + (first >> 3), byte.to(tl.uint8), mask=first < n)


@triton.jit(do_not_specialize=["n"])
def unpack_kernel(bits, mask, n):
    start = tl.program_id(0).to(tl.int64) * TILE
    first = start + tl.arange(0, ROWS) * 8
    i = first[:, None] + tl.arange(0, 8)[None, :]
    byte = tl.load(bits + (first >> 3), mask=first < n, other=0).to(tl.int32)
    lanes = ((byte[:, None] >> tl.arange(0, 8)[None, :]) & 1).to(tl.uint8)
    if start + TILE <= n:
        tl.store(mask + i, lanes)
    else:
        tl.store(mask + i, lanes, mask=i < n)


def pack_mask(mask: Tensor) -> Tensor:
    """As dstee.reference.pack_mask."""
    n = mask.numel()
    bits = torch.empty((n + 7) // 8, dtype=torch.uint8, device=mask.device)
    if n:
        flat = mask.as_strided((n,), (1,)).view(torch.uint8)
        with launching(mask.device):
            pack_kernel[(triton.cdiv(n, TILE.value),)](flat, bits, n, **OPTIONS)
    return bits


def unpack_mask(mask_bits: Tensor, shape: Sequence[int]) -> Tensor:
    """As dstee.reference.unpack_mask."""
    mask = torch.empty(shape, dtype=torch.bool, device=mask_bits.device)
    n = mask.numel()
    if n:
        with launching(mask.device):
            unpack_kernel[(triton.cdiv(n, TILE.value),)](mask_bits, mask.view(-1).view(torch.uint8), n, **OPTIONS)
    return mask
