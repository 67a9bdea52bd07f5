"""hashed_noise_: noise that is a hash of seeds and indices; one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._rules import global_index, noise, random24
from ._table import TILE
from ._upload import on_device, owners

__all__ = ["hashed_noise_"]

COLUMNS = tl.constexpr(10)


@triton.jit
def hashed_noise_kernel(rows, program_tensor):
    """A row: address, elements, first program, four seeds, base, run, pitch."""
    row = rows + tl.load(program_tensor + tl.program_id(0)).to(tl.int64) * COLUMNS
    i = (tl.program_id(0) - tl.load(row + 2)) * TILE + tl.arange(0, TILE)
    index = global_index(i, tl.load(row + 7), tl.load(row + 8), tl.load(row + 9))
    total = tl.zeros(i.shape, tl.uint32)
    for j in tl.static_range(4):
        total += random24(index, tl.load(row + 3 + j))
    tl.store(tl.load(row).to(tl.pointer_type(tl.float32)) + i, noise(total), mask=i < tl.load(row + 1))


def hashed_noise_(out: Sequence[Tensor], seeds: Sequence[int], where: Sequence[int]) -> None:
    """As dstee.reference.hashed_noise_."""
    rows: list[int] = []
    programs: list[int] = []
    for i, x in enumerate(out):
        n = x.numel()
        place = where[3 * i : 3 * i + 3] if where else (0, max(n, 1), max(n, 1))
        rows += [x.data_ptr(), n, sum(programs), *seeds[4 * i : 4 * i + 4], *place]
        programs.append(triton.cdiv(n, TILE.value))
    if sum(programs):
        device = out[0].device
        with launching(device):
            table, owner = on_device(rows, torch.int64, device), owners(programs, device)
            hashed_noise_kernel[(sum(programs),)](table, owner, **OPTIONS)
