"""Last launch, a program for a layer: the growth's finalists; small layers whole; layers whose lists are not to be trusted.

A small layer is one tile, read once and kept in registers. A layer that the sample misled is read about twenty times over.
"""

import triton
import triton.language as tl

from ._rules import NO_STEP
from ._select import BINS, bisect, count_digits, crossing, take_digit
from ._state import DROP_SIDE, FINALISTS, GROWTH_SIDE, listed, overflowed, side_of, state_of, swaps
from ._table import BITS, CHUNK, ENTRIES, GRADIENT, TILE, N
from ._tiles import (
    EVERYBODY,
    LAST_INDEX,
    ROWS,
    asked,
    call_of,
    clear,
    clipped,
    drop_keys_at,
    flip_counts,
    growth_keys_at,
    is_set,
    load,
    reaches,
    round_of,
    row_of,
    settle_entries,
    step_tile,
    value_of,
)  # fmt: skip
from .select_drop import cut_finalists, finalists_at


@triton.jit
def _read_tile(row, start, n):
    """Indices [ROWS, 8], which of them are in the layer, and which are active."""
    first = tl.arange(0, ROWS) * 8
    lanes = tl.arange(0, 8)[None, :]
    i = start + (first[:, None] + lanes)
    inside = i < n
    byte = load(tl.load(row + BITS) + (start >> 3), tl.arange(0, ROWS), (start + first) < n, tl.uint8, False).to(tl.int32)
    return i, inside, (((byte[:, None] >> lanes) & 1) != 0) & inside


@triton.jit
def _commit_tile(
    row, i, start, n, active, dropped, grown, q,
    RESET: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr, W_TYPE: tl.constexpr,
):  # fmt: skip
    """The outcome for a tile that no other program touches."""
    changed = dropped != grown
    gone = dropped
    if not RESET:
        gone = dropped & ~grown
    lanes = tl.arange(0, 8)[None, :]
    byte = tl.sum(((active != changed) & (i < n)).to(tl.int32) << lanes, 1)
    differs = tl.sum(changed.to(tl.int32), 1) > 0
    bits = (tl.load(row + BITS) + (start >> 3)).to(tl.pointer_type(tl.uint8))
    tl.store(bits + tl.arange(0, ROWS), byte.to(tl.uint8), mask=differs)
    if COUNTED:
        flip_counts(row, i, changed, q)
    clear(row, i, gone, W_TYPE, HAS_M)


@triton.jit
def _small(
    row, call, k, n, bonus, bonus_size, q, lr, momentum, damped, weight_decay,
    RULE: tl.constexpr, REGROW: tl.constexpr, RESET: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr,
    GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr, W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    i, inside, active = _read_tile(row, 0, n)
    if RULE != NO_STEP:
        g = load(tl.load(call + GRADIENT), i, active, W_TYPE, False)
        step_tile(row, g, i, active, active, lr, momentum, damped, weight_decay, 1.0, RULE, W_TYPE, False)
        tl.debug_barrier()  # what is ranked may have been written by other threads
    k = clipped(k, tl.sum(active.to(tl.int32)), n, REGROW)
    if k > 0:
        drop = drop_keys_at(row, i, active, W_TYPE, DROP_TYPE, OTHER_DROP, False)
        grow = growth_keys_at(row, call, i, active, inside, bonus, bonus_size, q, W_TYPE, GROW_TYPE, GROWTH, False)
        cut_key, cut_index = bisect(tl.where(active, drop, -1), i, k, 0)
        dropped = active & reaches(drop, i, cut_key, cut_index)
        candidates = inside & ~active
        if REGROW:
            candidates = candidates | dropped
        cut_key, cut_index = bisect(tl.where(candidates, grow, -1), i, k, 0)
        grown = candidates & reaches(grow, i, cut_key, cut_index)
        _commit_tile(row, i, 0, n, active, dropped, grown, q, RESET, HAS_M, COUNTED, W_TYPE)


@triton.jit
def _scan(
    row, call, k, n, drop_key, drop_index, bonus, bonus_size, q,
    REGROW: tl.constexpr, GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr,
    W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr, GROWTH_KEYS: tl.constexpr,
):  # fmt: skip
    """The cut of the drop, or, when that is known, of the growth: each digit of the keys is one look at the whole layer."""
    cut_key, cut_inverse = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    level = tl.full([], 0 if GROWTH_KEYS else 4, tl.int32)
    left = k
    while left > 0:
        bins = tl.zeros([BINS], tl.int32)
        for start in range(0, n, TILE):
            i, inside, active = _read_tile(row, start, n)
            drop = drop_keys_at(row, i, active, W_TYPE, DROP_TYPE, OTHER_DROP, False)
            if GROWTH_KEYS:
                valid = inside & ~active
                if REGROW:
                    valid = valid | (active & reaches(drop, i, drop_key, drop_index))
                key = growth_keys_at(row, call, i, active, valid, bonus, bonus_size, q, W_TYPE, GROW_TYPE, GROWTH, False)
            else:
                valid = active
                key = drop
            bins = count_digits(bins, key, i, valid, cut_key, cut_inverse, level)
        cut_key, cut_inverse, left = take_digit(bins, cut_key, cut_inverse, left, level)
        level += 1
        if GROWTH_KEYS:
            if bonus is None:  # nothing in the lower half
                level = tl.where(level == 4, 8, level)
    return cut_key, (cut_inverse ^ LAST_INDEX).to(tl.int32)


@triton.jit
def _whole(
    row, call, k, n, bonus, bonus_size, q,
    REGROW: tl.constexpr, RESET: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr,
    GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr, W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    """The plain exact way."""
    nobody_key, nobody_index = tl.full([], EVERYBODY, tl.int64), tl.full([], LAST_INDEX, tl.int32)
    drop_key, drop_index = _scan(
        row, call, k, n, nobody_key, nobody_index, bonus, bonus_size, q,
        REGROW, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE, False,
    )  # fmt: skip
    cut_key, cut_index = _scan(
        row, call, k, n, drop_key, drop_index, bonus, bonus_size, q,
        REGROW, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE, True,
    )  # fmt: skip
    for start in range(0, n, TILE):
        i, inside, active = _read_tile(row, start, n)
        drop = drop_keys_at(row, i, active, W_TYPE, DROP_TYPE, OTHER_DROP, False)
        dropped = active & reaches(drop, i, drop_key, drop_index)
        candidates = inside & ~active
        if REGROW:
            candidates = candidates | dropped
        key = growth_keys_at(row, call, i, active, candidates, bonus, bonus_size, q, W_TYPE, GROW_TYPE, GROWTH, False)
        grown = candidates & reaches(key, i, cut_key, cut_index)
        tl.debug_barrier()  # the signal may be the momentum, which is cleared now
        _commit_tile(row, i, start, n, active, dropped, grown, q, RESET, HAS_M, COUNTED, W_TYPE)


@triton.jit(do_not_specialize=["k_pointer", "bonus", "bonus_size", "round", "round_pointer", "lr_pointer", "found_inf"])
def finish_kernel(
    rows, calls, state, bins, splitter_key, splitter_index, list_key, list_index, growth_key, finalists,
    k_pointer, bonus, bonus_size, round, round_pointer, lr, lr_pointer, momentum, damped, weight_decay, found_inf,
    RULE: tl.constexpr, REGROW: tl.constexpr, RESET: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr,
    GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr, W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    row, call = row_of(rows, layer), call_of(calls, layer)
    n = tl.load(row + N).to(tl.int32)
    q = round_of(round, round_pointer)
    k = asked(row, call, k_pointer)
    if n <= TILE:
        if not is_set(found_inf):
            _small(
                row, call, k, n, bonus, bonus_size, q, value_of(lr, lr_pointer), momentum, damped, weight_decay,
                RULE, REGROW, RESET, HAS_M, COUNTED, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE,
            )  # fmt: skip
    else:
        own = state_of(state, layer)
        k = swaps(k, own, row, REGROW)  # 0 where the sweep was left out
        if k > 0:
            total, left, _win_key, _win_index, _edge_key, _edge_index = crossing(
                side_of(bins, layer, GROWTH_SIDE), side_of(splitter_key, layer, GROWTH_SIDE),
                side_of(splitter_index, layer, GROWTH_SIDE), k,
            )  # fmt: skip
            if overflowed(own, row) | (listed(own, row, DROP_SIDE) < k) | (total < k):
                _whole(
                    row, call, k, n, bonus, bonus_size, q,
                    REGROW, RESET, HAS_M, COUNTED, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE,
                )  # fmt: skip
            elif left > 0:
                count = tl.load(own + (FINALISTS + GROWTH_SIDE)).to(tl.int32)
                cut_key, cut_index = cut_finalists(count, left, row, list_key, list_index, growth_key, finalists, True)
                for start in range(0, count, CHUNK):
                    e = start + tl.arange(0, CHUNK)
                    mask = e < count
                    place, key, index = finalists_at(e, mask, row, list_key, list_index, growth_key, finalists, True)
                    settle_entries(
                        row, index, place >= tl.load(row + ENTRIES), reaches(key, index, cut_key, cut_index) & mask, mask, q,
                        W_TYPE, HAS_M, COUNTED, RESET,
                    )  # fmt: skip
