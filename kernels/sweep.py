"""Second launch, the only one that reads large layers from end to end: the step, the keys, and lists of what passes the bounds.

Reads per weight: mask 1/8, signal 4, counter 2 bytes; where one of 8 neighbours is active w, with a step w and m read and
written. Writes 12 bytes for each of the listed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._rules import NO_STEP, drop_key, to_float
from ._state import BOUND_INDEX, BOUND_KEY, DROP_SIDE, GROW_SIDE, NNZ, USED, list_of, requested_most, state_of
from ._table import BITS, COUNTS, DROP, ENTRIES, FIRST_TILE, GRADIENT, GROW, TILE, M, N, W, call_of, row_of
from ._threshold import Threshold, passes
from ._tiles import (
    BY_GRADIENT,
    ROWS,
    bonus_of,
    drop_keys_at,
    growth_keys,
    is_set,
    load,
    round_of,
    signals,
    step_tile,
    with_scalars,
)

__all__ = ["sweep_kernel"]


@triton.jit
def _list(memory, state, row, i, key, active, grows, drops):
    """Appends the chosen to the lists: one place in memory for all of a tile."""
    both = grows.to(tl.int32) + (drops.to(tl.int32) << 16)  # at most 2048 each
    in_row = tl.sum(both, 1)
    number = (tl.cumsum(in_row, 0) - in_row)[:, None] + tl.cumsum(both, 1) - both
    total = tl.sum(in_row, 0)
    if total > 0:
        more = (total & 0xFFFF).to(tl.int64) + ((total >> 16).to(tl.int64) << 32)
        used = tl.atomic_add(state + USED, more, sem="relaxed")
        place = tl.where(active, (used >> 32) + (number >> 16), (used & 0xFFFFFFFF) + (number & 0xFFFF))
        capacity = tl.load(row + ENTRIES)
        fits = (grows | drops) & (place < capacity)
        place = tl.where(active, place + capacity, place)
        tl.store(list_of(memory.list_key, row, GROW_SIDE) + place, key, mask=fits)
        tl.store(list_of(memory.list_index, row, GROW_SIDE) + place, i, mask=fits)


@triton.jit
def _tile(
    memory, state, row, call, start, n, k, numbers, bonus,
    OPERATIONS: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, FULL: tl.constexpr,
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
    bound_key = tl.where(active, tl.load(state + (BOUND_KEY + DROP_SIDE)), tl.load(state + (BOUND_KEY + GROW_SIDE)))
    bound_index = tl.where(active, tl.load(state + (BOUND_INDEX + DROP_SIDE)), tl.load(state + (BOUND_INDEX + GROW_SIDE)))
    if GROW_BY.SIGNAL == BY_GRADIENT:
        g = load(tl.load(call + GRADIENT), i, predicate, DROP_BY.W_TYPE, FULL)
    elif OPERATIONS != NO_STEP:
        g = load(tl.load(call + GRADIENT), i, rows, DROP_BY.W_TYPE, FULL)
    if bonus.table is None:
        stored = i
    else:
        stored = load(tl.load(row + COUNTS), i, predicate, tl.int16, FULL).to(tl.int32)

    if OPERATIONS != NO_STEP:
        w = step_tile(row, g, i, active, rows, numbers, OPERATIONS, DROP_BY.W_TYPE, FULL)
    if k > 0:
        if OPERATIONS != NO_STEP and (DROP_BY.OTHER or GROW_BY.SIGNAL != BY_GRADIENT):
            tl.debug_barrier()  # what is ranked may be the momentum that other threads have just written
        if OPERATIONS != NO_STEP and not DROP_BY.OTHER:
            drop = drop_key(to_float(w)).to(tl.int64)
        else:
            drop = drop_keys_at(row, i, rows, DROP_BY, FULL)
        if GROW_BY.SIGNAL == BY_GRADIENT:
            signal = to_float(g)
        else:
            signal = signals(row, call, i, predicate, GROW_BY, FULL)
        grow = growth_keys(signal, stored, active, inside & ~active, bonus)
        key = tl.where(active, drop, grow)
        chosen = passes(Threshold(bound_key, bound_index.to(tl.int32)), key, i) & inside
        _list(memory, state, row, i, key, active, chosen & ~active, chosen & active)
        tl.atomic_add(state + NNZ, tl.sum(active.to(tl.int32)).to(tl.int64), sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "k_pointer",
        "k_grow_pointer",
        "bonus",
        "bonus_size",
        "round",
        "round_pointer",
        "lr_pointer",
        "found_inf",
    ]
)
def sweep_kernel(
    table, memory, numbers, k_pointer, k_grow_pointer, bonus, bonus_size, round, round_pointer, lr_pointer, found_inf,
    OPERATIONS: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr,
):  # fmt: skip
    if not is_set(found_inf):
        layer = tl.load(table.tile_layer + tl.program_id(0))
        row, call, state = row_of(table, layer), call_of(table, layer), state_of(memory, layer)
        n = tl.load(row + N).to(tl.int32)
        start = (tl.program_id(0) - tl.load(row + FIRST_TILE).to(tl.int32)) * TILE
        k = requested_most(row, call, k_pointer, k_grow_pointer)
        scored = bonus_of(row, bonus, bonus_size, round_of(round, round_pointer))
        x = with_scalars(numbers, lr_pointer, None)
        together = tl.load(row + W) | tl.load(row + M) | tl.load(row + BITS) | tl.load(call + GRADIENT)
        together = together | tl.load(row + COUNTS) | tl.load(row + DROP) | tl.load(row + GROW)
        if ((together & 15) == 0) & (start + TILE <= n):
            _tile(memory, state, row, call, start, n, k, x, scored, OPERATIONS, DROP_BY, GROW_BY, True)
        else:
            _tile(memory, state, row, call, start, n, k, x, scored, OPERATIONS, DROP_BY, GROW_BY, False)
