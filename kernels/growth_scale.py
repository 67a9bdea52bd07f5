"""growth_scale: the signal that growth would just take, on a sample; a program for a layer, a launch for those of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import LAYER_OPTIONS, launching
from ._rules import MOST_SAMPLED, rank, sample_position, scale_of_rank, to_float
from ._table import TYPES
from ._tiles import round_of
from ._upload import on_device

__all__ = ["growth_scale"]


@triton.jit(do_not_specialize=["k_pointer", "round", "round_pointer"])
def growth_scale_kernel(rows, k_pointer, round, round_pointer, out, TYPE: tl.constexpr):
    """A row: address of the signals, how many, address of the mask, k, place in k_pointer and in the result."""
    row = rows + tl.program_id(0).to(tl.int64) * 5
    n, layer = tl.load(row + 1), tl.load(row + 4)
    s = tl.arange(0, MOST_SAMPLED)
    strata = tl.minimum(n, MOST_SAMPLED)
    at = sample_position(s, n, round_of(round, round_pointer))
    sampled = s < strata
    byte = tl.load(tl.load(row + 2).to(tl.pointer_type(tl.uint8)) + (at >> 3), mask=sampled, other=0).to(tl.int32)
    inactive = sampled & (((byte >> (at & 7).to(tl.int32)) & 1) == 0)
    signal = tl.load(tl.load(row).to(tl.pointer_type(TYPE)) + at, mask=inactive, other=0)
    key = tl.where(inactive, rank(to_float(signal)), -1)
    if k_pointer is not None:
        k = tl.minimum(tl.maximum(tl.load(k_pointer + layer), 0), n)
    else:
        k = tl.load(row + 3)
    place = (k * strata + n - 1) // tl.maximum(n, 1)
    place = tl.maximum(tl.minimum(place, tl.sum(inactive.to(tl.int32))), 1).to(tl.int32)
    kth = tl.full([], 0, tl.int32)
    for b in range(31):  # the largest number that ``place`` keys reach
        more = kth + (1 << (30 - b))
        kth = tl.where(tl.sum((key >= more).to(tl.int32)) >= place, more, kth)
    tl.store(out + layer, scale_of_rank(kth))


def growth_scale(
    signals: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    k: Sequence[int],
    k_tensor: Tensor | None,
    round: int,
    round_tensor: Tensor | None,
) -> Tensor:
    """As dstee.reference.growth_scale."""
    device = signals[0].device
    out = torch.empty(len(signals), dtype=torch.float32, device=device)
    for dtype, signal_type in TYPES.items():
        rows: list[int] = []
        for i, (x, mask) in enumerate(zip(signals, mask_bits, strict=True)):
            if x.dtype == dtype:
                rows += [x.data_ptr(), x.numel(), mask.data_ptr(), k[i] if k else 0, i]
        if rows:
            with launching(device):
                table = on_device(rows, torch.int64, device)
                growth_scale_kernel[(len(rows) // 5,)](
                    table, k_tensor, int(round), round_tensor, out, signal_type, **LAYER_OPTIONS
                )
    return out
