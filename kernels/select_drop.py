"""The launches between the sweep and the end, over the lists only: bins, drop, settle, apply.

Each decides anew, from what the launch before left, where the k-th winner stands: nobody waits for anybody. A layer whose lists
are not to be trusted is left to the last launch by all of them, so that none is changed by halves.
"""

import triton
import triton.language as tl

from ._select import BINS, bin_of, bisect, crossing
from ._state import (
    BEHIND,
    DROP_SIDE,
    FINALISTS,
    GROWTH_SIDE,
    LOW_INDEX,
    LOW_KEY,
    STAYS,
    list_of,
    listed,
    overflowed,
    side_of,
    state_of,
    swaps,
)  # fmt: skip
from ._table import CHUNK, ENTRIES, FIRST_CHUNK, FIRST_ENTRY
from ._tiles import asked, call_of, growth_keys_at, reaches, round_of, row_of, settle_entries


@triton.jit
def add_to_bins(bins, bin, mask):
    counts = tl.histogram(bin, BINS, mask=mask)
    tl.atomic_add(bins + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def bins_kernel(rows, chunk_layer, state, bins, splitter_key, splitter_index, list_key, list_index):
    """Counts how many of the listed lie between one splitter and the next; a program for a chunk and a side."""
    layer, side = tl.load(chunk_layer + tl.program_id(0)), tl.program_id(1)
    row, own = row_of(rows, layer), state_of(state, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(own, row, side)
    if first < count:
        e = first + tl.arange(0, CHUNK)
        mask = e < count
        key = tl.load(list_of(list_key, row, side) + e, mask=mask, other=0)
        index = tl.load(list_of(list_index, row, side) + e, mask=mask, other=0)
        bin = bin_of(key, index, side_of(splitter_key, layer, side), side_of(splitter_index, layer, side), mask)
        add_to_bins(side_of(bins, layer, side), bin, mask)


@triton.jit
def _mark_dropped(
    row, call, own, layer, e, index, dropped, growth_key, bins, splitter_key, splitter_index,
    bonus, bonus_size, q, REGROW: tl.constexpr, GROWTH: tl.constexpr, W_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    """The dropped of the entries e may grow again: their growth keys, kept, and counted like those of the growth's list."""
    kept = growth_key + tl.load(row + FIRST_ENTRY)
    if REGROW:
        key = growth_keys_at(
            row, call, index, index >= 0, dropped, bonus, bonus_size, q, W_TYPE, GROW_TYPE, GROWTH, False
        )  # fmt: skip
        low_key = tl.load(own + (LOW_KEY + GROWTH_SIDE))
        low_index = tl.load(own + (LOW_INDEX + GROWTH_SIDE)).to(tl.int32)
        grows = dropped & reaches(key, index, low_key, low_index)
        tl.store(kept + e, tl.where(grows, key, BEHIND), mask=dropped)
        own_key, own_index = side_of(splitter_key, layer, GROWTH_SIDE), side_of(splitter_index, layer, GROWTH_SIDE)
        add_to_bins(side_of(bins, layer, GROWTH_SIDE), bin_of(key, index, own_key, own_index, grows), grows)
    else:
        tl.store(kept + e, tl.full(e.shape, BEHIND, tl.int64), mask=dropped)


@triton.jit
def _add_finalists(own, row, side, finalists, place, is_finalist):
    """``place``: in the layer's two lists together. Growth's finalists may fill both lists, the drop's lie in the second."""
    count = tl.sum(is_finalist.to(tl.int32), 0)
    if count > 0:
        first = tl.atomic_add(own + (FINALISTS + side), count.to(tl.int64), sem="relaxed")
        number = first + tl.cumsum(is_finalist.to(tl.int32), 0) - 1
        tl.store(list_of(finalists, row, GROWTH_SIDE) + number, place, mask=is_finalist)


@triton.jit(do_not_specialize=["k_pointer", "bonus", "bonus_size", "round", "round_pointer"])
def drop_kernel(
    rows, calls, chunk_layer, state, bins, splitter_key, splitter_index, list_key, list_index, growth_key, finalists,
    k_pointer, bonus, bonus_size, round, round_pointer,
    REGROW: tl.constexpr, GROWTH: tl.constexpr, W_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    """Decides the drop for all but its finalists."""
    layer = tl.load(chunk_layer + tl.program_id(0))
    row, call, own = row_of(rows, layer), call_of(calls, layer), state_of(state, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(own, row, DROP_SIDE)
    k = swaps(asked(row, call, k_pointer), own, row, REGROW)
    if (k > 0) & (first < count) & (count >= k) & ~overflowed(own, row):
        _total, _left, win_key, win_index, edge_key, edge_index = crossing(
            side_of(bins, layer, DROP_SIDE), side_of(splitter_key, layer, DROP_SIDE),
            side_of(splitter_index, layer, DROP_SIDE), k,
        )  # fmt: skip
        e = first + tl.arange(0, CHUNK)
        mask = e < count
        key = tl.load(list_of(list_key, row, DROP_SIDE) + e, mask=mask, other=0)
        index = tl.load(list_of(list_index, row, DROP_SIDE) + e, mask=mask, other=0)
        dropped = mask & reaches(key, index, win_key, win_index)
        is_finalist = mask & ~dropped & reaches(key, index, edge_key, edge_index)
        tl.store(growth_key + tl.load(row + FIRST_ENTRY) + e, tl.full(e.shape, STAYS, tl.int64), mask=mask & ~dropped)
        _mark_dropped(
            row, call, own, layer, e, index, dropped, growth_key, bins, splitter_key, splitter_index,
            bonus, bonus_size, round_of(round, round_pointer), REGROW, GROWTH, W_TYPE, GROW_TYPE,
        )  # fmt: skip
        _add_finalists(own, row, DROP_SIDE, finalists, e + tl.load(row + ENTRIES), is_finalist)


@triton.jit
def finalists_at(e, mask, row, list_key, list_index, growth_key, finalists, GROWTH_KEYS: tl.constexpr):
    """Of the finalists e: their place in the two lists, key (-1: none) and index."""
    place = tl.load(list_of(finalists, row, GROWTH_SIDE) + e, mask=mask, other=0)
    index = tl.load(list_of(list_index, row, GROWTH_SIDE) + place, mask=mask, other=0)
    if GROWTH_KEYS:
        room = tl.load(row + ENTRIES)
        again = place >= room
        key = tl.load(list_of(list_key, row, GROWTH_SIDE) + place, mask=mask & ~again, other=-1)
        kept = tl.load(growth_key + tl.load(row + FIRST_ENTRY) + (place - room), mask=mask & again, other=-1)
        key = tl.where(again, kept, key)
    else:
        key = tl.load(list_of(list_key, row, GROWTH_SIDE) + place, mask=mask, other=-1)
    return place, key, index


@triton.jit
def _count_finalists(count, row, list_key, list_index, growth_key, finalists, cut_key, cut_index, GROWTH_KEYS: tl.constexpr):
    """How many finalists reach the cut."""
    found = tl.full([], 0, tl.int32)
    for start in range(0, count, CHUNK):
        e = start + tl.arange(0, CHUNK)
        _place, key, index = finalists_at(e, e < count, row, list_key, list_index, growth_key, finalists, GROWTH_KEYS)
        found += tl.sum((reaches(key, index, cut_key, cut_index) & (e < count)).to(tl.int32), 0)
    return found


@triton.jit
def cut_finalists(count, left, row, list_key, list_index, growth_key, finalists, GROWTH_KEYS: tl.constexpr):
    """The cut that ``left`` of the finalists reach."""
    if count <= CHUNK:
        e = tl.arange(0, CHUNK)
        _place, key, index = finalists_at(e, e < count, row, list_key, list_index, growth_key, finalists, GROWTH_KEYS)
        cut_key, cut_index = bisect(key, index, left, 0)
    else:  # a crowd: look at all of them for each bit
        high = tl.full([], 0x7FFFFFFFFFFFFFFF, tl.int64)
        cut_key = tl.full([], 0, tl.int64)
        found = count
        while (high - cut_key > 1) & (found != left):
            middle = cut_key + ((high - cut_key) >> 1)
            reached = _count_finalists(
                count, row, list_key, list_index, growth_key, finalists, middle - 1, -1, GROWTH_KEYS
            )  # fmt: skip
            enough = reached >= left
            cut_key = tl.where(enough, middle, cut_key)
            high = tl.where(enough, high, middle)
            found = tl.where(enough, reached, found)
        cut_index = tl.full([], 0x7FFFFFFF, tl.int32)
        before = tl.full([], -1, tl.int32)
        while (cut_index - 1 > before) & (found != left):
            half = before + (((cut_index.to(tl.int64) - before) >> 1).to(tl.int32))
            reached = _count_finalists(
                count, row, list_key, list_index, growth_key, finalists, cut_key, half, GROWTH_KEYS
            )  # fmt: skip
            enough = reached >= left
            cut_index = tl.where(enough, half, cut_index)
            before = tl.where(enough, before, half)
            found = tl.where(enough, reached, found)
    return cut_key, cut_index


@triton.jit(do_not_specialize=["k_pointer", "bonus", "bonus_size", "round", "round_pointer"])
def settle_kernel(
    rows, calls, state, bins, splitter_key, splitter_index, list_key, list_index, growth_key, finalists,
    k_pointer, bonus, bonus_size, round, round_pointer,
    REGROW: tl.constexpr, GROWTH: tl.constexpr, W_TYPE: tl.constexpr, GROW_TYPE: tl.constexpr,
):  # fmt: skip
    """Decides the drop for its finalists; a program for a layer."""
    layer = tl.program_id(0)
    row, call, own = row_of(rows, layer), call_of(calls, layer), state_of(state, layer)
    if tl.load(row + ENTRIES) > 0:
        k = swaps(asked(row, call, k_pointer), own, row, REGROW)
        count = tl.load(own + (FINALISTS + DROP_SIDE)).to(tl.int32)
        if (k > 0) & (count > 0):
            _total, left, _win_key, _win_index, _edge_key, _edge_index = crossing(
                side_of(bins, layer, DROP_SIDE), side_of(splitter_key, layer, DROP_SIDE),
                side_of(splitter_index, layer, DROP_SIDE), k,
            )  # fmt: skip
            cut_key, cut_index = cut_finalists(count, left, row, list_key, list_index, growth_key, finalists, False)
            q = round_of(round, round_pointer)
            for start in range(0, count, CHUNK):
                e = start + tl.arange(0, CHUNK)
                place, key, index = finalists_at(e, e < count, row, list_key, list_index, growth_key, finalists, False)
                dropped = (e < count) & reaches(key, index, cut_key, cut_index)
                _mark_dropped(
                    row, call, own, layer, place - tl.load(row + ENTRIES), index, dropped, growth_key, bins,
                    splitter_key, splitter_index, bonus, bonus_size, q, REGROW, GROWTH, W_TYPE, GROW_TYPE,
                )  # fmt: skip


@triton.jit(do_not_specialize=["k_pointer", "round", "round_pointer"])
def apply_kernel(
    rows, calls, chunk_layer, state, bins, splitter_key, splitter_index, list_key, list_index, growth_key, finalists,
    k_pointer, round, round_pointer,
    REGROW: tl.constexpr, RESET: tl.constexpr, HAS_M: tl.constexpr, COUNTED: tl.constexpr, W_TYPE: tl.constexpr,
):  # fmt: skip
    """Mask bits, counters and zeros of all who win or lose without being finalists of the growth; chunks and sides."""
    layer, side = tl.load(chunk_layer + tl.program_id(0)), tl.program_id(1)
    row, call, own = row_of(rows, layer), call_of(calls, layer), state_of(state, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(own, row, side)
    k = swaps(asked(row, call, k_pointer), own, row, REGROW)
    if (k > 0) & (first < count) & (listed(own, row, DROP_SIDE) >= k) & ~overflowed(own, row):
        total, _left, win_key, win_index, edge_key, edge_index = crossing(
            side_of(bins, layer, GROWTH_SIDE), side_of(splitter_key, layer, GROWTH_SIDE),
            side_of(splitter_index, layer, GROWTH_SIDE), k,
        )  # fmt: skip
        if total >= k:
            e = first + tl.arange(0, CHUNK)
            mask = e < count
            index = tl.load(list_of(list_index, row, side) + e, mask=mask, other=0)
            if side == GROWTH_SIDE:
                key = tl.load(list_of(list_key, row, side) + e, mask=mask, other=STAYS)
            else:
                key = tl.load(growth_key + tl.load(row + FIRST_ENTRY) + e, mask=mask, other=STAYS)
            mask = key != STAYS
            wins = mask & (key != BEHIND) & reaches(key, index, win_key, win_index)
            is_finalist = mask & ~wins & (key != BEHIND) & reaches(key, index, edge_key, edge_index)
            settle_entries(
                row, index, tl.zeros_like(index) + side == DROP_SIDE, wins, mask & ~is_finalist, round_of(round, round_pointer),
                W_TYPE, HAS_M, COUNTED, RESET,
            )  # fmt: skip
            place = e + tl.where(side == DROP_SIDE, tl.load(row + ENTRIES), 0)
            _add_finalists(own, row, GROWTH_SIDE, finalists, place, is_finalist)
