"""masked_sgd_: one launch for all layers of a dtype; a program steps the active weights of a tile.

Moves: a byte of mask for 8 weights; where one of the 8 is active, w, g and m read, w and m written.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, launching
from ._rules import FIRST_STEP, HAS_DECAY, HAS_MOMENTUM, MAXIMIZE, NESTEROV, SCALED, SgdNumbers
from ._table import BITS, FIRST_TILE, GRADIENT, TILE, M, N, W, call_of, group_by_dtype, row_of
from ._tiles import ROWS, is_set, load, step_tile, with_scalars

__all__ = ["masked_sgd_", "masked_sgd_kernel", "read_sgd"]


@triton.jit
def _tile(row, call, start, n, x, OPERATIONS: tl.constexpr, W_TYPE: tl.constexpr, FULL: tl.constexpr):
    first = tl.arange(0, ROWS) * 8
    lanes = tl.arange(0, 8)[None, :]
    i = start + (first[:, None] + lanes)
    inside = (start + first) < n
    byte = load(tl.load(row + BITS) + (start >> 3), tl.arange(0, ROWS), inside, tl.uint8, FULL).to(tl.int32)
    active = ((byte[:, None] >> lanes) & 1) != 0
    rows = tl.broadcast_to((byte != 0)[:, None], active.shape)
    if not FULL:
        rows = rows & (i < n)
        active = active & (i < n)
    g = load(tl.load(call + GRADIENT), i, rows, W_TYPE, FULL)
    step_tile(row, g, i, active, rows, x, OPERATIONS, W_TYPE, FULL)


@triton.jit(do_not_specialize=["lr_pointer", "grad_scale", "found_inf"])
def masked_sgd_kernel(table, numbers, lr_pointer, grad_scale, found_inf, OPERATIONS: tl.constexpr, W_TYPE: tl.constexpr):
    if not is_set(found_inf):
        layer = tl.load(table.tile_layer + tl.program_id(0))
        row, call = row_of(table, layer), call_of(table, layer)
        n = tl.load(row + N).to(tl.int32)
        start = (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE
        x = with_scalars(numbers, lr_pointer, grad_scale)
        together = tl.load(row + W) | tl.load(row + M) | tl.load(row + BITS) | tl.load(call + GRADIENT)
        if ((together & 15) == 0) & (start + TILE <= n):
            _tile(row, call, start, n, x, OPERATIONS, W_TYPE, True)
        else:
            _tile(row, call, start, n, x, OPERATIONS, W_TYPE, False)


def read_sgd(sgd: Sequence[float], scaled: bool = False) -> tuple[SgdNumbers, int]:
    """From the schema's list to the numbers of a step, and the constant that says which operations it has."""
    lr, momentum, dampening, weight_decay, nesterov, maximize, first_step = sgd
    flags = (momentum, weight_decay, scaled, nesterov, maximize, first_step)
    operations = (HAS_MOMENTUM, HAS_DECAY, SCALED, NESTEROV, MAXIMIZE, FIRST_STEP)
    numbers = SgdNumbers(float(lr), float(momentum), float(1 - dampening), float(weight_decay))
    return numbers, sum(operation.value for operation, flag in zip(operations, flags, strict=True) if flag)


def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    sgd: Sequence[float],
    lr: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    packed_momenta: bool = False,
) -> None:
    """As dstee.reference.masked_sgd_, but without ``packed_momenta``.

    Raises:
        RuntimeError: it was asked for.
    """
    if packed_momenta:
        raise RuntimeError("the Triton kernel of masked_sgd_ has no packed_momenta")
    numbers, operations = read_sgd(sgd, grad_scale is not None)
    with launching(params[0].device):
        for group in group_by_dtype(params, grads, momenta if numbers.momentum != 0 else (), mask_bits):
            masked_sgd_kernel[(len(group.table.tile_layer),)](
                group.table, numbers, lr, grad_scale, found_inf, operations, group.w_type, **OPTIONS
            )
