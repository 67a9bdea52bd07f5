"""First launch of an update, two programs a layer: from a sample, the bound behind which almost surely no weight is selected.

Reads about 50 KB a layer. Small layers need no sample.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._bins import BINS
from ._rules import HAS_MOMENTUM, NO_STEP, drop_key, mix, to_float
from ._sample_size import MOST_STRATA, NEIGHBOURS, sample_rank, strata_of
from ._select import bisect
from ._state import BOUND_INDEX, BOUND_KEY, DROP_SIDE, UNDECIDED, USED, requested_drop, requested_growth, side_of, state_of
from ._table import BITS, GRADIENT, TILE, M, N, W, call_of, row_of
from ._threshold import LAST_INDEX, PASS_ALL, PASS_NONE, Threshold, passes
from ._tiles import bonus_of, drop_keys_at, growth_keys_at, load, round_of, stepped, with_scalars

__all__ = ["sample_kernel"]


@triton.jit
def _sort_splitters(splitter_key, splitter_index, unsorted_key, unsorted_index, count):
    """The last first; behind them as many that nothing passes as make BINS."""
    r = tl.arange(0, BINS)
    inside = r < count
    key = tl.load(unsorted_key + r, mask=inside, other=0)
    index = tl.load(unsorted_index + r, mask=inside, other=0)
    place = tl.zeros([BINS], tl.int32)
    for part in range(0, BINS, 16):
        other = part + tl.arange(0, 16)
        other_key = tl.load(unsorted_key + other, mask=other < count, other=0)[None, :]
        other_index = tl.load(unsorted_index + other, mask=other < count, other=0)[None, :]
        later = (other_key < key[:, None]) | ((other_key == key[:, None]) & (other_index > index[:, None]))
        place += tl.sum((later & (other < count)[None, :]).to(tl.int32), 1)
    tl.store(splitter_key + place, key, mask=inside)
    tl.store(splitter_index + place, index, mask=inside)
    tl.store(splitter_key + r, tl.full([BINS], PASS_NONE, tl.int64), mask=r >= count)
    tl.store(splitter_index + r, tl.full([BINS], -1, tl.int32), mask=r >= count)


@triton.jit
def _take_splitters(memory, layer, side, key, index, passed):
    """Up to BINS - 1 of the sampled weights that would be listed."""
    passed = passed.to(tl.int32)
    in_row = tl.sum(passed, 1)
    number = (tl.cumsum(in_row, 0) - in_row)[:, None] + tl.cumsum(passed, 1) - passed
    total = tl.sum(in_row, 0)
    stride = tl.maximum((total + BINS - 2) // (BINS - 1), 1)
    take = (passed != 0) & (number % stride == 0)
    unsorted_key, unsorted_index = side_of(memory.unsorted_key, layer, side), side_of(memory.unsorted_index, layer, side)
    tl.store(unsorted_key + number // stride, key, mask=take)
    tl.store(unsorted_index + number // stride, index, mask=take)
    tl.debug_barrier()
    _sort_splitters(
        side_of(memory.splitter_key, layer, side), side_of(memory.splitter_index, layer, side), unsorted_key, unsorted_index,
        (total + stride - 1) // stride,
    )  # fmt: skip


@triton.jit
def _sample_places(n, strata, salt):
    """The first of the neighbours that each stratum gives, at a hashed place in it, and whether there is such a stratum.

    Regular steps would alias with the rows of a matrix whose gradients are scaled by row or column.
    """
    stratum = tl.arange(0, MOST_STRATA)
    sampled = stratum < strata
    size = n // strata
    jitter = mix(stratum.to(tl.uint32) ^ salt) % tl.maximum(size - 15, 1).to(tl.uint32)
    return tl.where(sampled, (stratum * size + jitter.to(tl.int32) + 7) & -8, 0), sampled


@triton.jit(
    do_not_specialize=[
        "k_pointer", "k_grow_pointer", "bonus", "bonus_size", "round", "round_pointer", "lr_pointer", "tight_bounds",
    ]
)  # fmt: skip
def sample_kernel(
    table, memory, numbers, k_pointer, k_grow_pointer, bonus, bonus_size, round, round_pointer, lr_pointer, tight_bounds,
    OPERATIONS: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr,
):  # fmt: skip
    """tight_bounds: see test_limits.py."""
    layer, side = tl.program_id(0), tl.program_id(1)
    row, call, state = row_of(table, layer), call_of(table, layer), state_of(memory, layer)
    n = tl.load(row + N).to(tl.int32)
    if n > TILE:
        tl.store(state + (USED + side), 0)  # USED, NNZ: one for each program
        tl.store(state + (UNDECIDED + side), 0)
        r = tl.arange(0, BINS)
        tl.store(side_of(memory.histogram, layer, side) + r, tl.zeros([BINS], tl.int32))
        k = requested_drop(row, call, k_pointer)
        if k_grow_pointer is not None:
            k = tl.where(side == DROP_SIDE, k, requested_growth(row, k_grow_pointer))
            if k == 0:  # the other side may list
                tl.store(state + (BOUND_KEY + side), PASS_NONE)
                tl.store(state + (BOUND_INDEX + side), -1)
        if k > 0:
            current = round_of(round, round_pointer)
            strata = strata_of(n)
            first, sampled = _sample_places(n, strata, mix((current * 977 + layer).to(tl.uint32)))
            lanes = tl.arange(0, NEIGHBOURS)[None, :]
            i = first[:, None] + lanes
            byte = load(tl.load(row + BITS), first >> 3, sampled, tl.uint8, False).to(tl.int32)
            active = ((byte[:, None] >> lanes) & 1) != 0
            here = tl.broadcast_to(sampled[:, None], active.shape)
            mine = here & (active == (side == DROP_SIDE))
            if side == DROP_SIDE:
                if DROP_BY.OTHER or OPERATIONS == NO_STEP:
                    key = drop_keys_at(row, i, mine, DROP_BY, False)
                else:  # as they will be after the step
                    w = load(tl.load(row + W), i, mine, DROP_BY.W_TYPE, False)
                    g = load(tl.load(call + GRADIENT), i, mine, DROP_BY.W_TYPE, False)
                    m = w
                    if HAS_MOMENTUM & OPERATIONS:
                        m = load(tl.load(row + M), i, mine, DROP_BY.W_TYPE, False)
                    w, m = stepped(w, m, g, with_scalars(numbers, lr_pointer, None), OPERATIONS, DROP_BY.W_TYPE)
                    key = drop_key(to_float(w)).to(tl.int64)
            else:
                key = growth_keys_at(row, call, i, active, mine, bonus_of(row, bonus, bonus_size, current), GROW_BY, False)
            key = tl.where(mine, key, -1)
            count = tl.sum(mine.to(tl.int32))
            place = sample_rank(k.to(tl.float32) * (strata * NEIGHBOURS).to(tl.float32) / n.to(tl.float32))
            if tight_bounds != 0:
                place = place * 0 + 1
            bound = Threshold(tl.full([], PASS_ALL, tl.int64), tl.full([], LAST_INDEX, tl.int32))
            if place < count:
                bound = bisect(key, i, place, place >> 3)
            tl.store(state + (BOUND_KEY + side), bound.key)
            tl.store(state + (BOUND_INDEX + side), bound.index.to(tl.int64))
            _take_splitters(memory, layer, side, key, i, mine & passes(bound, key, i))
