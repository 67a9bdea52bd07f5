"""A layer of one tile, from the step to the outcome: read once and kept in registers."""

from __future__ import annotations

import triton
import triton.language as tl

from ._rules import NO_STEP
from ._select import bisect
from ._state import clip_both
from ._table import GRADIENT
from ._threshold import none_if_zero, passes
from ._tiles import drop_keys_at, growth_keys_at, load, read_tile, step_tile
from .commit import commit_tile

__all__ = ["update_small_layer"]


@triton.jit
def update_small_layer(
    row, call, k, k_grow_pointer, n, x, bonus,
    OPERATIONS: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, REGROW: tl.constexpr, OUTCOME: tl.constexpr,
):  # fmt: skip
    i, inside, active = read_tile(row, 0, n)
    if OPERATIONS != NO_STEP:
        g = load(tl.load(call + GRADIENT), i, active, DROP_BY.W_TYPE, False)
        step_tile(row, g, i, active, active, x, OPERATIONS, DROP_BY.W_TYPE, False)
        tl.debug_barrier()  # what is ranked may have been written by other threads
    k, k_grow = clip_both(row, k, k_grow_pointer, tl.sum(active.to(tl.int32)), n, REGROW)
    if tl.maximum(k, k_grow) > 0:
        drop = drop_keys_at(row, i, active, DROP_BY, False)
        grow = growth_keys_at(row, call, i, active, inside, bonus, GROW_BY, False)
        drop_threshold = bisect(tl.where(active, drop, -1), i, k, 0)
        if k_grow_pointer is not None:
            drop_threshold = none_if_zero(drop_threshold, k)
        dropped = active & passes(drop_threshold, drop, i)
        candidates = inside & ~active
        if REGROW:
            candidates = candidates | dropped
        threshold = bisect(tl.where(candidates, grow, -1), i, k_grow, 0)
        if k_grow_pointer is not None:
            threshold = none_if_zero(threshold, k_grow)
        grown = candidates & passes(threshold, grow, i)
        commit_tile(row, i, 0, n, active, dropped, grown, bonus.round, OUTCOME)
