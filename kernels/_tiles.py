"""What the kernels share: reading numbers and weights, keys, and the masked step.

A tile is [rows, 8]: a row of it is a byte of mask. Loads whose predicate is constant along a row stay vector loads, so whole
rows of w and m move where a weight of the row is active, and inactive ones are written back as they were.

Arguments that belong together are NamedTuples. At a launch, tensors that may lie anywhere and integers stay outside of them:
Triton compiles anew for another alignment, or for a 1, of what lies in a tuple, whatever do_not_specialize says.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ._rules import (
    HAS_MOMENTUM,
    SgdNumbers,
    counter_of,
    drop_key,
    global_index,
    random_signal,
    rank,
    round_to,
    scaled_bonus,
    score,
    sgd,
    to_float,
)
from ._table import BITS, COUNTS, DROP, GRADIENT, GROW, INDEX, SEED, M, W

ROWS = tl.constexpr(256)
BY_GRADIENT, BY_TENSOR, AT_RANDOM, AT_RANDOM_IN_PART = (tl.constexpr(c) for c in range(4))


class DropBy(NamedTuple):
    """What the drop ranks by its magnitude; a kernel's constant. OTHER: another tensor than the weights, of type TYPE."""

    OTHER: bool
    W_TYPE: tl.dtype
    TYPE: tl.dtype


class GrowBy(NamedTuple):
    """What the growth ranks by its magnitude; a kernel's constant. SIGNAL: BY_GRADIENT, BY_TENSOR of type TYPE, AT_RANDOM,
    AT_RANDOM_IN_PART of a larger layer."""

    SIGNAL: int
    W_TYPE: tl.dtype
    TYPE: tl.dtype


class Bonus(NamedTuple):
    """The table of bonuses, or None, and what finds a counter's place in it. float64: units of ``scale``, a float64 too."""

    table: tl.tensor
    size: tl.tensor
    round: tl.tensor
    scale: tl.tensor


# --- numbers -------------------------------------------------------------------------------------------------------------


@triton.jit
def with_scalars(x, lr_pointer, grad_scale_pointer):
    """SgdNumbers, with those that lie in tensors of one element."""
    lr, grad_scale = x.lr, x.grad_scale
    if lr_pointer is not None:
        lr = to_float(tl.load(lr_pointer))
    if grad_scale_pointer is not None:
        grad_scale = to_float(tl.load(grad_scale_pointer))
    return SgdNumbers(lr, x.momentum, x.damped, x.weight_decay, grad_scale)


@triton.jit
def is_set(found_inf):
    if found_inf is None:
        return False
    else:
        return tl.load(found_inf) != 0


@triton.jit
def round_of(round, pointer):
    if pointer is not None:
        round = tl.load(pointer).to(tl.int32)
    return round


@triton.jit
def bonus_of(row, table, size, round):
    """What a layer's growth adds. Behind the units of a float64 table stand the scales of all layers."""
    if table is None:
        return Bonus(table, size, round, None)
    elif table.dtype.element_ty == tl.float64:
        return Bonus(table, size, round, tl.load(table + size + tl.load(row + INDEX)))
    else:
        return Bonus(table, size, round, None)


# --- weights -------------------------------------------------------------------------------------------------------------


@triton.jit
def load(address, i, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements i; mask may be None. ALIGNED: the address is a multiple of 16."""
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if mask is None:
        return tl.load(pointer + i)
    else:
        return tl.load(pointer + i, mask=mask, other=0)


@triton.jit
def store(address, i, value, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    tl.store(pointer + i, value, mask=mask)


@triton.jit
def read_tile(row, start, n):
    """Indices [ROWS, 8], which of them are in the layer, and which are active."""
    first = tl.arange(0, ROWS) * 8
    lanes = tl.arange(0, 8)[None, :]
    i = start + (first[:, None] + lanes)
    inside = i < n
    byte = load(tl.load(row + BITS) + (start >> 3), tl.arange(0, ROWS), (start + first) < n, tl.uint8, False).to(tl.int32)
    return i, inside, (((byte[:, None] >> lanes) & 1) != 0) & inside


# --- keys ----------------------------------------------------------------------------------------------------------------


@triton.jit
def index_in_whole(part, i):
    """int64. part: a seed, then the base, run and pitch of a layer that is part of a larger one."""
    run = tl.minimum(tl.load(part + 2), 0x7FFFFFFF).to(tl.int32)  # no layer is longer
    return global_index(i, tl.load(part + 1), run, tl.load(part + 3))


@triton.jit
def signals(row, call, i, mask, GROW_BY: tl.constexpr, ALIGNED: tl.constexpr):
    """What the growth ranks by its magnitude, as float32."""
    if GROW_BY.SIGNAL == AT_RANDOM:
        return random_signal(i.to(tl.int64), tl.load(call + SEED))
    elif GROW_BY.SIGNAL == AT_RANDOM_IN_PART:
        part = tl.load(call + SEED).to(tl.pointer_type(tl.int64))  # seed, base, run, pitch
        return random_signal(index_in_whole(part, i), tl.load(part))
    elif GROW_BY.SIGNAL == BY_TENSOR:
        return to_float(load(tl.load(row + GROW), i, mask, GROW_BY.TYPE, ALIGNED))
    else:
        return to_float(load(tl.load(call + GRADIENT), i, mask, GROW_BY.W_TYPE, ALIGNED))


@triton.jit
def growth_keys(signal, stored, active, mask, bonus):
    """int64: the rank of the score, and below it that of the signal, which matters only where a bonus was added."""
    if bonus.table is None:
        return rank(signal).to(tl.int64) << 32
    else:
        count = counter_of(stored, active, bonus.round, bonus.size)
        added = tl.load(bonus.table + count, mask=mask, other=0.0)
        if bonus.table.dtype.element_ty == tl.float64:
            added = scaled_bonus(bonus.scale, added)
        upper = rank(score(tl.abs(signal), added))
        return (upper.to(tl.int64) << 32) | rank(signal).to(tl.int64)


@triton.jit
def growth_keys_at(row, call, i, active, mask, bonus, GROW_BY: tl.constexpr, ALIGNED: tl.constexpr):
    signal = signals(row, call, i, mask, GROW_BY, ALIGNED)
    if bonus.table is None:
        stored = i
    else:
        stored = load(tl.load(row + COUNTS), i, mask, tl.int16, ALIGNED).to(tl.int32)
    inside = mask
    if inside is None:
        inside = i >= 0
    return growth_keys(signal, stored, active, inside, bonus)


@triton.jit
def drop_keys_at(row, i, mask, DROP_BY: tl.constexpr, ALIGNED: tl.constexpr):
    """int64."""
    if DROP_BY.OTHER:
        return drop_key(to_float(load(tl.load(row + DROP), i, mask, DROP_BY.TYPE, ALIGNED))).to(tl.int64)
    else:
        return drop_key(to_float(load(tl.load(row + W), i, mask, DROP_BY.W_TYPE, ALIGNED))).to(tl.int64)


# --- the step ------------------------------------------------------------------------------------------------------------


@triton.jit
def stepped(w, m, g, x, OPERATIONS: tl.constexpr, W_TYPE: tl.constexpr):
    """The new w and m in their storage type; x: SgdNumbers."""
    new_m = m
    if HAS_MOMENTUM & OPERATIONS:
        new_m = to_float(m)
    new_w, new_m = sgd(to_float(w), to_float(g), new_m, x, OPERATIONS)
    if HAS_MOMENTUM & OPERATIONS:
        new_m = round_to(new_m, W_TYPE)
    return round_to(new_w, W_TYPE), new_m


@triton.jit
def step_tile(row, g, i, active, rows, x, OPERATIONS: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Masked SGD where ``active``; ``rows``: the predicate of memory, constant along a row. Returns w as it is then."""
    w_at, m_at = tl.load(row + W), tl.load(row + M)
    w = load(w_at, i, rows, W_TYPE, ALIGNED)
    m = w
    if HAS_MOMENTUM & OPERATIONS:
        m = load(m_at, i, rows, W_TYPE, ALIGNED)
    new_w, new_m = stepped(w, m, g, x, OPERATIONS, W_TYPE)
    new_w = tl.where(active, new_w, w)
    store(w_at, i, new_w, rows, W_TYPE, ALIGNED)
    if HAS_MOMENTUM & OPERATIONS:
        store(m_at, i, tl.where(active, new_m, m), rows, W_TYPE, ALIGNED)
    return new_w
