"""Last launch, a program for a layer: what grows in the bin of the k-th; small layers; the fallback of large ones."""

from __future__ import annotations

import triton
import triton.language as tl

from ._state import DROP_SIDE, GROW_SIDE, NNZ, UNDECIDED, clip_both, kth_of, listed, overflowed, requested_drop, state_of
from ._table import CHUNK, ENTRIES, TILE, N, call_of, row_of
from ._threshold import passes
from ._tiles import bonus_of, is_set, round_of, with_scalars
from ._undecided import read_undecided, threshold_of_undecided
from .commit import commit_entries
from .fallback import update_by_scans
from .small_layer import update_small_layer

__all__ = ["select_grow_kernel"]


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
def select_grow_kernel(
    table, memory, numbers, k_pointer, k_grow_pointer, bonus, bonus_size, round, round_pointer, lr_pointer, found_inf,
    OPERATIONS: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, REGROW: tl.constexpr, OUTCOME: tl.constexpr,
):  # fmt: skip
    layer = tl.program_id(0)
    row, call = row_of(table, layer), call_of(table, layer)
    n = tl.load(row + N).to(tl.int32)
    scored = bonus_of(row, bonus, bonus_size, round_of(round, round_pointer))
    k = requested_drop(row, call, k_pointer)
    if n <= TILE:
        if not is_set(found_inf):
            x = with_scalars(numbers, lr_pointer, None)
            update_small_layer(row, call, k, k_grow_pointer, n, x, scored, OPERATIONS, DROP_BY, GROW_BY, REGROW, OUTCOME)
    else:
        state = state_of(memory, layer)
        # Where the sweep was left out no weight counts as active: 0, but for a growth of its own.
        k, k_grow = clip_both(row, k, k_grow_pointer, tl.load(state + NNZ).to(tl.int32), n, REGROW)
        uneven: tl.constexpr = k_grow_pointer is not None
        if uneven:
            if is_set(found_inf):
                k_grow = k_grow * 0
        if tl.maximum(k, k_grow) > 0:
            total, left, _selected, _undecided = kth_of(memory, layer, GROW_SIDE, k_grow)
            if overflowed(state, row) | (listed(state, row, DROP_SIDE) < k) | (total < k_grow):
                update_by_scans(row, call, k, k_grow, n, scored, uneven, DROP_BY, GROW_BY, REGROW, OUTCOME)
            elif left > 0:
                count = tl.load(state + (UNDECIDED + GROW_SIDE)).to(tl.int32)
                threshold = threshold_of_undecided(memory, row, count, left, True)
                for start in range(0, count, CHUNK):
                    e = start + tl.arange(0, CHUNK)
                    mask = e < count
                    place, key, index = read_undecided(memory, row, e, mask, True)
                    was_active, grown = place >= tl.load(row + ENTRIES), passes(threshold, key, index) & mask
                    commit_entries(row, index, was_active, grown, mask, scored.round, OUTCOME)
