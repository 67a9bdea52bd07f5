"""Three launches over the lists: how many lie in each bin, the bins that are dropped as a whole, the first of that of the k-th.

Each program finds anew, from what the launch before left, where the k-th of its layer stands: none waits for another. A layer
whose lists are not to be trusted is left to the last launch by all of them, so that none is changed by halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._state import (
    DROP_SIDE,
    GROW_SIDE,
    NOT_DROPPED,
    REJECTED,
    UNDECIDED,
    bound_of,
    count_in_bins,
    growth_keys_of,
    kth_of,
    list_of,
    listed,
    numbers_of,
    overflowed,
    state_of,
)
from ._table import CHUNK, ENTRIES, FIRST_CHUNK, call_of, row_of
from ._threshold import passes
from ._tiles import bonus_of, growth_keys_at, round_of
from ._undecided import add_undecided, read_undecided, threshold_of_undecided

__all__ = ["histogram_kernel", "select_drop_in_bin_kernel", "select_drop_kernel"]


@triton.jit
def histogram_kernel(table, memory):
    """Counts the listed of each bin; a program for a chunk and a side."""
    layer, side = tl.load(table.chunk_layer + tl.program_id(0)), tl.program_id(1)
    row, state = row_of(table, layer), state_of(memory, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(state, row, side)
    if first < count:
        e = first + tl.arange(0, CHUNK)
        mask = e < count
        key = tl.load(list_of(memory.list_key, row, side) + e, mask=mask, other=0)
        index = tl.load(list_of(memory.list_index, row, side) + e, mask=mask, other=0)
        count_in_bins(memory, layer, side, key, index, mask)


@triton.jit
def _mark_dropped(memory, state, row, call, layer, e, index, dropped, bonus, REGROW: tl.constexpr, GROW_BY: tl.constexpr):
    """The dropped of the entries e may grow again: their growth keys, kept, and counted like those of the growth's list."""
    kept = growth_keys_of(memory, row)
    if REGROW:
        key = growth_keys_at(row, call, index, index >= 0, dropped, bonus, GROW_BY, False)
        grows = dropped & passes(bound_of(state, GROW_SIDE), key, index)
        tl.store(kept + e, tl.where(grows, key, REJECTED), mask=dropped)
        count_in_bins(memory, layer, GROW_SIDE, key, index, grows)
    else:
        tl.store(kept + e, tl.full(e.shape, REJECTED, tl.int64), mask=dropped)


@triton.jit(do_not_specialize=["k_pointer", "k_grow_pointer", "bonus", "bonus_size", "round", "round_pointer"])
def select_drop_kernel(
    table, memory, k_pointer, k_grow_pointer, bonus, bonus_size, round, round_pointer,
    REGROW: tl.constexpr, GROW_BY: tl.constexpr,
):  # fmt: skip
    """Drops the bins in front of that of the k-th; a program for a chunk."""
    layer = tl.load(table.chunk_layer + tl.program_id(0))
    row, call, state = row_of(table, layer), call_of(table, layer), state_of(memory, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(state, row, DROP_SIDE)
    k, _k_grow = numbers_of(row, call, state, k_pointer, k_grow_pointer, REGROW)
    if (k > 0) & (first < count) & (count >= k) & ~overflowed(state, row):
        _total, _left, selected, undecided = kth_of(memory, layer, DROP_SIDE, k)
        e = first + tl.arange(0, CHUNK)
        mask = e < count
        key = tl.load(list_of(memory.list_key, row, DROP_SIDE) + e, mask=mask, other=0)
        index = tl.load(list_of(memory.list_index, row, DROP_SIDE) + e, mask=mask, other=0)
        dropped = mask & passes(selected, key, index)
        is_undecided = mask & ~dropped & passes(undecided, key, index)
        tl.store(growth_keys_of(memory, row) + e, tl.full(e.shape, NOT_DROPPED, tl.int64), mask=mask & ~dropped)
        scored = bonus_of(row, bonus, bonus_size, round_of(round, round_pointer))
        _mark_dropped(memory, state, row, call, layer, e, index, dropped, scored, REGROW, GROW_BY)
        add_undecided(memory, state, row, DROP_SIDE, e + tl.load(row + ENTRIES), is_undecided)


@triton.jit(do_not_specialize=["k_pointer", "k_grow_pointer", "bonus", "bonus_size", "round", "round_pointer"])
def select_drop_in_bin_kernel(
    table, memory, k_pointer, k_grow_pointer, bonus, bonus_size, round, round_pointer,
    REGROW: tl.constexpr, GROW_BY: tl.constexpr,
):  # fmt: skip
    """Drops the first of the bin of the k-th; a program for a layer."""
    layer = tl.program_id(0)
    row, call, state = row_of(table, layer), call_of(table, layer), state_of(memory, layer)
    if tl.load(row + ENTRIES) > 0:
        k, _k_grow = numbers_of(row, call, state, k_pointer, k_grow_pointer, REGROW)
        count = tl.load(state + (UNDECIDED + DROP_SIDE)).to(tl.int32)
        if (k > 0) & (count > 0):
            _total, left, _selected, _undecided = kth_of(memory, layer, DROP_SIDE, k)
            threshold = threshold_of_undecided(memory, row, count, left, False)
            scored = bonus_of(row, bonus, bonus_size, round_of(round, round_pointer))
            for start in range(0, count, CHUNK):
                e = start + tl.arange(0, CHUNK)
                place, key, index = read_undecided(memory, row, e, e < count, False)
                dropped = (e < count) & passes(threshold, key, index)
                own = place - tl.load(row + ENTRIES)
                _mark_dropped(memory, state, row, call, layer, own, index, dropped, scored, REGROW, GROW_BY)
