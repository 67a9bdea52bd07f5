"""encode_counts, decode_counts, count_active, count_explored: counters and their stored form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._rules import flip_count
from ._table import TILE
from ._upload import on_device, owners

__all__ = ["count_active", "count_explored", "decode_counts", "encode_counts"]

BYTES = tl.constexpr(4096)  # of masks for a program of count_active


@triton.jit(do_not_specialize=["n", "round"])
def encode_kernel(N, mask, counts, n, round):
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    plain = tl.load(N + i, mask=i < n, other=0).to(tl.int32)
    active = tl.load(mask + i, mask=i < n, other=0) != 0
    tl.store(counts + i, tl.where(active, flip_count(plain, round), plain).to(tl.int16), mask=i < n)


@triton.jit(do_not_specialize=["n", "round"])
def decode_kernel(counts, bits, N, n, round):
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    stored = tl.load(counts + i, mask=i < n, other=0).to(tl.int32)
    active = (tl.load(bits + (i >> 3), mask=i < n, other=0).to(tl.int32) >> (i & 7).to(tl.int32)) & 1
    tl.store(N + i, tl.where(active != 0, flip_count(stored, round), stored), mask=i < n)


@triton.jit
def _ones(byte):
    byte = byte - ((byte >> 1) & 0x55)
    byte = (byte & 0x33) + ((byte >> 2) & 0x33)
    return (byte + (byte >> 4)) & 0x0F


@triton.jit
def count_active_kernel(rows, program_layer, out):
    """A row: address of the mask, its bytes, its first program."""
    layer = tl.load(program_layer + tl.program_id(0)).to(tl.int64)
    row = rows + layer * 4
    i = (tl.program_id(0) - tl.load(row + 2)) * BYTES + tl.arange(0, BYTES)
    bits = tl.load(row).to(tl.pointer_type(tl.uint8))
    byte = tl.load(bits + i, mask=i < tl.load(row + 1), other=0).to(tl.int32)
    tl.atomic_add(out + layer, tl.sum(_ones(byte)).to(tl.int64), sem="relaxed")


@triton.jit
def count_explored_kernel(rows, program_layer, out):
    """A row: address of the mask, weights, first program, address of the counters."""
    layer = tl.load(program_layer + tl.program_id(0)).to(tl.int64)
    row = rows + layer * 4
    n = tl.load(row + 1)
    i = (tl.program_id(0) - tl.load(row + 2)) * BYTES + tl.arange(0, BYTES)
    bits, counts = tl.load(row).to(tl.pointer_type(tl.uint8)), tl.load(row + 3).to(tl.pointer_type(tl.int16))
    byte = tl.load(bits + (i >> 3), mask=i < n, other=0).to(tl.int32)
    stored = tl.load(counts + i, mask=i < n, other=0)
    explored = (((byte >> (i & 7).to(tl.int32)) & 1) != 0) | (stored != 0)
    tl.atomic_add(out + layer, tl.sum(explored.to(tl.int32)).to(tl.int64), sem="relaxed")


def encode_counts(N: Tensor, mask: Tensor, round: int) -> Tensor:
    """As dstee.reference.encode_counts."""
    n = N.numel()
    counts = torch.empty(n, dtype=torch.int16, device=N.device)
    if n:
        plain, flat = N.as_strided((n,), (1,)), mask.as_strided((n,), (1,)).view(torch.uint8)
        with launching(N.device):
            encode_kernel[(triton.cdiv(n, TILE.value),)](plain, flat, counts, n, int(round), **OPTIONS)
    return counts


def decode_counts(counts: Tensor, mask_bits: Tensor, round: int, shape: Sequence[int]) -> Tensor:
    """As dstee.reference.decode_counts."""
    N = torch.empty(shape, dtype=torch.int32, device=counts.device)
    n = N.numel()
    if n:
        with launching(N.device):
            decode_kernel[(triton.cdiv(n, TILE.value),)](counts, mask_bits, N.view(-1), n, int(round), **OPTIONS)
    return N


def _count(kernel: triton.JITFunction, mask_bits: Sequence[Tensor], sizes: Sequence[int], counts: Sequence[Tensor]) -> Tensor:
    device = mask_bits[0].device
    out = torch.zeros(len(mask_bits), dtype=torch.int64, device=device)
    rows: list[int] = []
    programs: list[int] = []
    for i, (bits, n) in enumerate(zip(mask_bits, sizes, strict=True)):
        rows += [bits.data_ptr(), n, sum(programs), counts[i].data_ptr() if counts else 0]
        programs.append(triton.cdiv(n, BYTES.value))
    if sum(programs):
        with launching(device):
            kernel[(sum(programs),)](on_device(rows, torch.int64, device), owners(programs, device), out, **OPTIONS)
    return out


def count_active(mask_bits: Sequence[Tensor]) -> Tensor:
    """As dstee.reference.count_active."""
    return _count(count_active_kernel, mask_bits, [b.numel() for b in mask_bits], ())


def count_explored(counts: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> Tensor:
    """As dstee.reference.count_explored."""
    return _count(count_explored_kernel, mask_bits, [c.numel() for c in counts], counts)
