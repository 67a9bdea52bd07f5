"""Second launch, the only one that reads large layers from end to end: the step, both scores, possible winners to the lists.

Reads per weight: mask 1/8, signal 4, counter 2 bytes; where one of 8 neighbours is active w, with a step w and m read and
written. Writes 12 bytes for each of the listed.
"""

import triton
import triton.language as tl

from ._rules import NO_STEP, drop_key, to_float
from ._state import DROP_SIDE, GROWTH_SIDE, LOW_INDEX, LOW_KEY, NNZ, USED, list_of, state_of
from ._table import BITS, COUNTS, DROP, ENTRIES, FIRST_TILE, GRADIENT, GROW, TILE, M, N, W
from ._tiles import (
    BY_GRADIENT,
    ROWS,
    asked,
    call_of,
    drop_keys_at,
    growth_keys,
    is_set,
    load,
    reaches,
    round_of,
    row_of,
    signals,
    step_tile,
    value_of,
)  # fmt: skip


@triton.jit
def _list(own, row, i, key, active, grows, drops, list_key, list_index):
    """Appends the chosen to the lists: one place in memory for all of a tile."""
    both = grows.to(tl.int32) + (drops.to(tl.int32) << 16)  # at most 2048 each
    in_row = tl.sum(both, 1)
    number = (tl.cumsum(in_row, 0) - in_row)[:, None] + tl.cumsum(both, 1) - both
    total = tl.sum(in_row, 0)
    if total > 0:
        more = (total & 0xFFFF).to(tl.int64) + ((total >> 16).to(tl.int64) << 32)
        used = tl.atomic_add(own + USED, more, sem="relaxed")
        place = tl.where(active, (used >> 32) + (number >> 16), (used & 0xFFFFFFFF) + (number & 0xFFFF))
        room = tl.load(row + ENTRIES)
        fits = (grows | drops) & (place < room)
        place = tl.where(active, place + room, place)
        tl.store(list_of(list_key, row, GROWTH_SIDE) + place, key, mask=fits)
        tl.store(list_of(list_index, row, GROWTH_SIDE) + place, i, mask=fits)


@triton.jit
def _tile(
    row, call, own, start, n, k, list_key, list_index, bonus, bonus_size, q,
    lr, momentum, damped, weight_decay,
    RULE: tl.constexpr, GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr,
    W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    first = tl.arange(0, ROWS) * 8
    lanes = tl.arange(0, 8)[None, :]
    i = start + (first[:, None] + lanes)
    byte = load(
        tl.load(row + BITS) + (start >> 3), tl.arange(0, ROWS), None if FULL else (start + first) < n, tl.uint8, FULL
    ).to(tl.int32)
    active = ((byte[:, None] >> lanes) & 1) != 0
    rows = tl.broadcast_to((byte != 0)[:, None], active.shape)
    inside = tl.broadcast_to((byte >= 0)[:, None], active.shape)
    if not FULL:
        inside = i < n
        rows = rows & inside
        active = active & inside
    predicate = None if FULL else inside
    # Loads first: what follows waits for the slowest of them.
    low_key = tl.where(active, tl.load(own + (LOW_KEY + DROP_SIDE)), tl.load(own + (LOW_KEY + GROWTH_SIDE)))
    low_index = tl.where(active, tl.load(own + (LOW_INDEX + DROP_SIDE)), tl.load(own + (LOW_INDEX + GROWTH_SIDE)))
    if GROWTH == BY_GRADIENT:
        g = load(tl.load(call + GRADIENT), i, predicate, W_TYPE, FULL)
    elif RULE != NO_STEP:
        g = load(tl.load(call + GRADIENT), i, rows, W_TYPE, FULL)
    if bonus is None:
        stored = i
    else:
        stored = load(tl.load(row + COUNTS), i, predicate, tl.int16, FULL).to(tl.int32)

    if RULE != NO_STEP:
        w = step_tile(row, g, i, active, rows, lr, momentum, damped, weight_decay, 1.0, RULE, W_TYPE, FULL)
    if k > 0:
        if RULE != NO_STEP and (OTHER_DROP or GROWTH != BY_GRADIENT):
            tl.debug_barrier()  # what is ranked may be the momentum that other threads have just written
        if RULE != NO_STEP and not OTHER_DROP:
            drop = drop_key(to_float(w)).to(tl.int64)
        else:
            drop = drop_keys_at(row, i, rows, W_TYPE, DROP_TYPE, OTHER_DROP, FULL)
        if GROWTH == BY_GRADIENT:
            signal = to_float(g)
        else:
            signal = signals(row, call, i, predicate, W_TYPE, GROW_TYPE, GROWTH, FULL)
        grow = growth_keys(signal, stored, active, inside & ~active, bonus, bonus_size, q)
        key = tl.where(active, drop, grow)
        chosen = reaches(key, i, low_key, low_index.to(tl.int32)) & inside
        _list(own, row, i, key, active, chosen & ~active, chosen & active, list_key, list_index)
        tl.atomic_add(own + NNZ, tl.sum(active.to(tl.int32)).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["k_pointer", "bonus", "bonus_size", "round", "round_pointer", "lr_pointer", "found_inf"])
def sweep_kernel(
    rows, calls, tile_layer, state, list_key, list_index,
    k_pointer, bonus, bonus_size, round, round_pointer, lr, lr_pointer, momentum, damped, weight_decay, found_inf,
    RULE: tl.constexpr, GROWTH: tl.constexpr, OTHER_DROP: tl.constexpr,
    W_TYPE: tl.constexpr, DROP_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    if not is_set(found_inf):
        layer = tl.load(tile_layer + tl.program_id(0))
        row, call, own = row_of(rows, layer), call_of(calls, layer), state_of(state, layer)
        n = tl.load(row + N).to(tl.int32)
        start = (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE
        k = asked(row, call, k_pointer)
        q = round_of(round, round_pointer)
        lr = value_of(lr, lr_pointer)
        together = tl.load(row + W) | tl.load(row + M) | tl.load(row + BITS) | tl.load(call + GRADIENT)
        together = together | tl.load(row + COUNTS) | tl.load(row + DROP) | tl.load(row + GROW)
        if ((together & 15) == 0) & (start + TILE <= n):
            _tile(
                row, call, own, start, n, k, list_key, list_index, bonus, bonus_size, q, lr, momentum, damped, weight_decay,
                RULE, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE, True,
            )  # fmt: skip
        else:
            _tile(
                row, call, own, start, n, k, list_key, list_index, bonus, bonus_size, q, lr, momentum, damped, weight_decay,
                RULE, GROWTH, OTHER_DROP, W_TYPE, DROP_TYPE, GROW_TYPE, False,
            )  # fmt: skip
