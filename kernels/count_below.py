"""count_below: active weights closer to zero than a threshold; one launch for all layers of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._rules import to_float
from ._table import TILE, TYPES
from ._upload import on_device, owners

__all__ = ["count_below"]


@triton.jit
def count_below_kernel(rows, program_layer, thresholds, out, W_TYPE: tl.constexpr):
    """A row: address of the weights, how many, first program, address of the mask, place in thresholds and result."""
    row = rows + tl.load(program_layer + tl.program_id(0)).to(tl.int64) * 5
    n = tl.load(row + 1)
    i = (tl.program_id(0) - tl.load(row + 2)) * TILE + tl.arange(0, TILE)
    weights, mask = tl.load(row).to(tl.pointer_type(W_TYPE)), tl.load(row + 3).to(tl.pointer_type(tl.uint8))
    byte = tl.load(mask + (i >> 3), mask=i < n, other=0).to(tl.int32)
    active = (((byte >> (i & 7).to(tl.int32)) & 1) != 0) & (i < n)
    size = tl.abs(to_float(tl.load(weights + i, mask=active, other=0)))
    found = active & (size < tl.load(thresholds + tl.load(row + 4)))
    tl.atomic_add(out + tl.load(row + 4), tl.sum(found.to(tl.int32)).to(tl.int64), sem="relaxed")


def count_below(tensors: Sequence[Tensor], mask_bits: Sequence[Tensor], thresholds: Tensor) -> Tensor:
    """As dstee.reference.count_below."""
    device = tensors[0].device
    out = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    limits = thresholds.contiguous()
    for dtype, w_type in TYPES.items():
        rows: list[int] = []
        programs: list[int] = []
        for i, (x, mask) in enumerate(zip(tensors, mask_bits, strict=True)):
            if x.dtype == dtype:
                rows += [x.data_ptr(), x.numel(), sum(programs), mask.data_ptr(), i]
                programs.append(triton.cdiv(x.numel(), TILE.value))
        if sum(programs):
            with launching(device):
                table, owner = on_device(rows, torch.int64, device), owners(programs, device)
                count_below_kernel[(sum(programs),)](table, owner, limits, out, w_type, **OPTIONS)
    return out
