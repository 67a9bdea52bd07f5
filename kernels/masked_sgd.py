"""masked_sgd_: one launch for all layers of a dtype; a program steps the active weights of a tile.

Moves: a byte of mask for 8 weights; where one of the 8 is active, w, g and m read, w and m written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import _table
from ._rules import FIRST_STEP, HAS_DECAY, HAS_MOMENTUM, MAXIMIZE, NESTEROV, SCALED
from ._table import BITS, FIRST_TILE, GRADIENT, OPTIONS, TILE, M, N, W
from ._tiles import ROWS, call_of, is_set, load, row_of, step_tile, value_of


@triton.jit
def _tile(
    row, call, start, n, lr, momentum, damped, weight_decay, grad_scale,
    RULE: tl.constexpr, W_TYPE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
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
    step_tile(row, g, i, active, rows, lr, momentum, damped, weight_decay, grad_scale, RULE, W_TYPE, FULL)


@triton.jit(do_not_specialize=["lr_pointer", "grad_scale", "found_inf"])
def masked_sgd_kernel(
    rows, calls, tile_layer, lr, lr_pointer, momentum, damped, weight_decay, grad_scale, found_inf,
    RULE: tl.constexpr, W_TYPE: tl.constexpr,
):  # fmt: skip
    if not is_set(found_inf):
        layer = tl.load(tile_layer + tl.program_id(0))
        row, call = row_of(rows, layer), call_of(calls, layer)
        n = tl.load(row + N).to(tl.int32)
        start = (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE
        lr = value_of(lr, lr_pointer)
        scale = value_of(1.0, grad_scale)
        together = tl.load(row + W) | tl.load(row + M) | tl.load(row + BITS) | tl.load(call + GRADIENT)
        if ((together & 15) == 0) & (start + TILE <= n):
            _tile(row, call, start, n, lr, momentum, damped, weight_decay, scale, RULE, W_TYPE, True)
        else:
            _tile(row, call, start, n, lr, momentum, damped, weight_decay, scale, RULE, W_TYPE, False)


def rule_of(momentum, weight_decay, nesterov, maximize, first_step, scaled=False) -> int:
    """The constant of a kernel that says which operations a step has."""
    flags = (momentum != 0, weight_decay != 0, scaled, nesterov, maximize, first_step)
    names = (HAS_MOMENTUM, HAS_DECAY, SCALED, NESTEROV, MAXIMIZE, FIRST_STEP)
    return sum(name.value for name, flag in zip(names, flags, strict=True) if flag)


def masked_sgd_(params, grads, momenta, mask_bits, sgd, lr_tensor, grad_scale, found_inf) -> None:
    """As dstee.reference.masked_sgd_."""
    lr, momentum, dampening, weight_decay, nesterov, maximize, first_step = sgd
    rule = rule_of(momentum, weight_decay, nesterov, maximize, first_step, grad_scale is not None)
    with _table.launching(params[0].device):
        for group in _table.groups(params, grads, momenta if momentum != 0 else (), mask_bits):
            masked_sgd_kernel[(len(group.tile_layer),)](
                group.rows, group.calls, group.tile_layer, lr, lr_tensor, float(momentum), float(1 - dampening),
                float(weight_decay), grad_scale, found_inf, RULE=rule, W_TYPE=group.types["W_TYPE"], **OPTIONS,
            )  # fmt: skip
