"""The listed weights in the bin of the k-th, in whatever order they came: keeping them, and the threshold among them."""

from __future__ import annotations

import triton
import triton.language as tl

from ._select import bisect
from ._state import GROW_SIDE, UNDECIDED, growth_keys_of, list_of
from ._table import CHUNK, ENTRIES
from ._threshold import LAST_INDEX, Threshold, passes


@triton.jit
def add_undecided(memory, state, row, side, place, is_undecided):
    """``place``: in the layer's two lists together. The growth's may fill both lists, the drop's lie in the second."""
    count = tl.sum(is_undecided.to(tl.int32), 0)
    if count > 0:
        first = tl.atomic_add(state + (UNDECIDED + side), count.to(tl.int64), sem="relaxed")
        number = first + tl.cumsum(is_undecided.to(tl.int32), 0) - 1
        tl.store(list_of(memory.undecided, row, GROW_SIDE) + number, place, mask=is_undecided)


@triton.jit
def read_undecided(memory, row, e, mask, GROWTH_KEYS: tl.constexpr):
    """Of the undecided e: their place in the two lists, key (-1: none) and index."""
    place = tl.load(list_of(memory.undecided, row, GROW_SIDE) + e, mask=mask, other=0)
    index = tl.load(list_of(memory.list_index, row, GROW_SIDE) + place, mask=mask, other=0)
    if GROWTH_KEYS:
        capacity = tl.load(row + ENTRIES)
        was_dropped = place >= capacity
        key = tl.load(list_of(memory.list_key, row, GROW_SIDE) + place, mask=mask & ~was_dropped, other=-1)
        kept = tl.load(growth_keys_of(memory, row) + (place - capacity), mask=mask & was_dropped, other=-1)
        key = tl.where(was_dropped, kept, key)
    else:
        key = tl.load(list_of(memory.list_key, row, GROW_SIDE) + place, mask=mask, other=-1)
    return place, key, index


@triton.jit
def _count_passing(memory, row, count, threshold, GROWTH_KEYS: tl.constexpr):
    found = tl.full([], 0, tl.int32)
    for start in range(0, count, CHUNK):
        e = start + tl.arange(0, CHUNK)
        _place, key, index = read_undecided(memory, row, e, e < count, GROWTH_KEYS)
        found += tl.sum((passes(threshold, key, index) & (e < count)).to(tl.int32), 0)
    return found


@triton.jit
def threshold_of_undecided(memory, row, count, left, GROWTH_KEYS: tl.constexpr):
    """The threshold that ``left`` of the undecided pass."""
    if count <= CHUNK:
        e = tl.arange(0, CHUNK)
        _place, key, index = read_undecided(memory, row, e, e < count, GROWTH_KEYS)
        threshold = bisect(key, index, left, 0)
    else:  # too many for the registers of a program: look at all of them for each bit
        high = tl.full([], 0x7FFFFFFFFFFFFFFF, tl.int64)
        low = tl.full([], 0, tl.int64)
        found = count
        while (high - low > 1) & (found != left):
            middle = low + ((high - low) >> 1)
            passing = _count_passing(memory, row, count, Threshold(middle - 1, -1), GROWTH_KEYS)
            enough = passing >= left
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
            found = tl.where(enough, passing, found)
        last = tl.full([], LAST_INDEX, tl.int32)
        before = tl.full([], -1, tl.int32)
        while (last - 1 > before) & (found != left):
            half = before + (((last.to(tl.int64) - before) >> 1).to(tl.int32))
            passing = _count_passing(memory, row, count, Threshold(low, half), GROWTH_KEYS)
            enough = passing >= left
            last = tl.where(enough, half, last)
            before = tl.where(enough, before, half)
            found = tl.where(enough, passing, found)
        threshold = Threshold(low, last)
    return threshold
