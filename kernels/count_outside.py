"""count_outside: weights outside the masks that are not 0; one launch for all layers whose weights have as many bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._table import TILE
from ._upload import on_device, owners

__all__ = ["count_outside"]


@triton.jit
def count_outside_kernel(rows, program_layer, out, W_BITS: tl.constexpr):
    """A row: address of the weights, how many, first program, address of the mask, place in the result."""
    row = rows + tl.load(program_layer + tl.program_id(0)).to(tl.int64) * 5
    n = tl.load(row + 1)
    i = (tl.program_id(0) - tl.load(row + 2)) * TILE + tl.arange(0, TILE)
    weights, mask = tl.load(row).to(tl.pointer_type(W_BITS)), tl.load(row + 3).to(tl.pointer_type(tl.uint8))
    value = tl.load(weights + i, mask=i < n, other=0)
    byte = tl.load(mask + (i >> 3), mask=i < n, other=0).to(tl.int32)
    is_outside = ((byte >> (i & 7).to(tl.int32)) & 1) == 0
    found = is_outside & ((value << 1) != 0)  # all bits but the sign: NaN is not 0, -0.0 is
    tl.atomic_add(out + tl.load(row + 4), tl.sum(found.to(tl.int32)).to(tl.int64), sem="relaxed")


def count_outside(params: Sequence[Tensor], mask_bits: Sequence[Tensor]) -> Tensor:
    """As dstee.reference.count_outside."""
    device = params[0].device
    out = torch.zeros(len(params), dtype=torch.int64, device=device)
    for size, bits in ((4, tl.int32), (2, tl.int16)):
        rows: list[int] = []
        programs: list[int] = []
        for i, (p, mask) in enumerate(zip(params, mask_bits, strict=True)):
            if p.element_size() == size:
                rows += [p.data_ptr(), p.numel(), sum(programs), mask.data_ptr(), i]
                programs.append(triton.cdiv(p.numel(), TILE.value))
        if sum(programs):
            with launching(device):
                grid = (sum(programs),)
                count_outside_kernel[grid](on_device(rows, torch.int64, device), owners(programs, device), out, bits, **OPTIONS)
    return out
