"""What the kernels share: reading rows and weights, keys, the masked step, and the outcome for one weight.

A tile is [rows, 8]: a row of it is a byte of mask. Loads whose predicate is constant along a row stay vector loads, so whole
rows of w and m move where a weight of the row is active, and inactive ones are written back as they were.
"""

import triton
import triton.language as tl

from ._rules import HAS_MOMENTUM, counter_of, drop_key, flip_count, random_signal, rank, round_to, score, sgd, to_float
from ._table import BITS, CALL_COLUMNS, COLUMNS, COUNTS, DROP, GRADIENT, GROW, INDEX, SEED, K, M, N, W

ROWS = tl.constexpr(256)
BY_GRADIENT, BY_TENSOR, AT_RANDOM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LAST_INDEX = tl.constexpr(0x7FFFFFFF)
# A cut (key, index) parts the weights: those that reach it come first. Everybody reaches EVERYBODY, nobody NOBODY.
EVERYBODY = tl.constexpr(-1)
NOBODY = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def reaches(key, index, cut_key, cut_index):
    return (key > cut_key) | ((key == cut_key) & (index <= cut_index))


@triton.jit
def value_of(number, pointer):
    """A float32 that came as an argument, or lies in a tensor of one element."""
    if pointer is not None:
        number = to_float(tl.load(pointer))
    return number


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
def asked(row, call, k_pointer):
    """The weights to swap, as far as that is known without the mask; int32."""
    if k_pointer is not None:
        k = tl.load(k_pointer + tl.load(row + INDEX))
    else:
        k = tl.load(call + K)
    return tl.minimum(tl.maximum(k, 0), tl.load(row + N)).to(tl.int32)


@triton.jit
def clipped(k, nnz, n, REGROW: tl.constexpr):
    k = tl.minimum(k, nnz)
    if not REGROW:
        k = tl.minimum(k, n - nnz)
    return k


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


# --- keys ----------------------------------------------------------------------------------------------------------------


@triton.jit
def signals(row, call, i, mask, W_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr, GROWTH: tl.constexpr, ALIGNED: tl.constexpr):
    """What the growth ranks by its magnitude, as float32."""
    if GROWTH == AT_RANDOM:
        return random_signal(i.to(tl.int64), tl.load(call + SEED))
    elif GROWTH == BY_TENSOR:
        return to_float(load(tl.load(row + GROW), i, mask, GROW_TYPE, ALIGNED))
    else:
        return to_float(load(tl.load(call + GRADIENT), i, mask, W_TYPE, ALIGNED))


@triton.jit
def growth_keys(signal, stored, active, mask, bonus, bonus_size, round):
    """int64: the rank of the score, and below it that of the signal, which matters only where a bonus was added."""
    if bonus is None:
        return rank(signal).to(tl.int64) << 32
    else:
        N = counter_of(stored, active, round, bonus_size)
        upper = rank(score(tl.abs(signal), tl.load(bonus + N, mask=mask, other=0.0)))
        return (upper.to(tl.int64) << 32) | rank(signal).to(tl.int64)


@triton.jit
def growth_keys_at(
    row, call, i, active, mask, bonus, bonus_size, round,
    W_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr, GROWTH: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    signal = signals(row, call, i, mask, W_TYPE, GROW_TYPE, GROWTH, ALIGNED)
    if bonus is None:
        stored = i
    else:
        stored = load(tl.load(row + COUNTS), i, mask, tl.int16, ALIGNED).to(tl.int32)
    inside = mask
    if inside is None:
        inside = i >= 0
    return growth_keys(signal, stored, active, inside, bonus, bonus_size, round)


@triton.jit
def drop_keys_at(row, i, mask, W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, OTHER: tl.constexpr, ALIGNED: tl.constexpr):
    """int64. OTHER: another tensor is ranked than the weights."""
    if OTHER:
        return drop_key(to_float(load(tl.load(row + DROP), i, mask, DROP_TYPE, ALIGNED))).to(tl.int64)
    else:
        return drop_key(to_float(load(tl.load(row + W), i, mask, W_TYPE, ALIGNED))).to(tl.int64)


# --- the step ------------------------------------------------------------------------------------------------------------


@triton.jit
def stepped(w, m, g, lr, momentum, damped, weight_decay, grad_scale, RULE: tl.constexpr, W_TYPE: tl.constexpr):
    """The new w and m in their storage type."""
    new_m = m
    if HAS_MOMENTUM & RULE:
        new_m = to_float(m)
    new_w, new_m = sgd(to_float(w), to_float(g), new_m, lr, momentum, damped, weight_decay, grad_scale, RULE)
    if HAS_MOMENTUM & RULE:
        new_m = round_to(new_m, W_TYPE)
    return round_to(new_w, W_TYPE), new_m


@triton.jit
def step_tile(
    row, g, i, active, rows, lr, momentum, damped, weight_decay, grad_scale,
    RULE: tl.constexpr, W_TYPE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Masked SGD where ``active``; ``rows``: the predicate of memory, constant along a row. Returns w as it is then."""
    w_at, m_at = tl.load(row + W), tl.load(row + M)
    w = load(w_at, i, rows, W_TYPE, ALIGNED)
    m = w
    if HAS_MOMENTUM & RULE:
        m = load(m_at, i, rows, W_TYPE, ALIGNED)
    new_w, new_m = stepped(w, m, g, lr, momentum, damped, weight_decay, grad_scale, RULE, W_TYPE)
    new_w = tl.where(active, new_w, w)
    store(w_at, i, new_w, rows, W_TYPE, ALIGNED)
    if HAS_MOMENTUM & RULE:
        store(m_at, i, tl.where(active, new_m, m), rows, W_TYPE, ALIGNED)
    return new_w


# --- outcomes ------------------------------------------------------------------------------------------------------------


@triton.jit
def flip_counts(row, i, flips, round):
    """Stores the counters of weights whose state changes."""
    at = tl.load(row + COUNTS).to(tl.pointer_type(tl.int16)) + i
    stored = tl.load(at, mask=flips, other=0).to(tl.int32)
    tl.store(at, flip_count(stored, round).to(tl.int16), mask=flips)


@triton.jit
def clear(row, i, gone, W_TYPE: tl.constexpr, HAS_M: tl.constexpr):
    tl.store(tl.load(row + W).to(tl.pointer_type(W_TYPE)) + i, 0.0, mask=gone)
    if HAS_M:
        tl.store(tl.load(row + M).to(tl.pointer_type(W_TYPE)) + i, 0.0, mask=gone)


@triton.jit
def settle_entries(
    row, i, was_active, wins, mask, round,
    W_TYPE: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr, RESET: tl.constexpr,
):  # fmt: skip
    """The end for listed weights: candidates that win the growth or not, among them such as were dropped before."""
    flips = mask & (wins != was_active)
    gone = mask & was_active
    if not RESET:
        gone = gone & ~wins
    address = tl.load(row + BITS) + (i >> 3)
    words = (address & -4).to(tl.pointer_type(tl.int32))
    bit = tl.full(i.shape, 1, tl.int32) << ((address & 3).to(tl.int32) * 8 + (i & 7))
    tl.atomic_xor(words, bit, mask=flips, sem="relaxed")
    if COUNTED:
        flip_counts(row, i, flips, round)
    clear(row, i, gone, W_TYPE, HAS_M)


@triton.jit
def row_of(rows, layer):
    return rows + layer.to(tl.int64) * COLUMNS


@triton.jit
def call_of(calls, layer):
    return calls + layer.to(tl.int64) * CALL_COLUMNS
