"""A large layer whose lists are not to be trusted, the plain exact way: it is read about twenty times over."""

from __future__ import annotations

import triton
import triton.language as tl

from ._select import DIGITS, count_digits, take_digit
from ._table import TILE
from ._threshold import LAST_INDEX, PASS_ALL, Threshold, none_if_zero, passes
from ._tiles import drop_keys_at, growth_keys_at, read_tile
from .commit import commit_tile

__all__ = ["update_by_scans"]


@triton.jit
def _threshold_by_scans(
    row, call, k, n, drop_threshold, bonus,
    DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, REGROW: tl.constexpr, GROWTH_KEYS: tl.constexpr,
):  # fmt: skip
    """Of the drop, or, when that is known, of the growth: each digit of the keys is one look at the whole layer."""
    known_key, known_inverse = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    level = tl.full([], 0 if GROWTH_KEYS else 4, tl.int32)
    left = k
    while left > 0:
        digits = tl.zeros([DIGITS], tl.int32)
        for start in range(0, n, TILE):
            i, inside, active = read_tile(row, start, n)
            drop = drop_keys_at(row, i, active, DROP_BY, False)
            if GROWTH_KEYS:
                valid = inside & ~active
                if REGROW:
                    valid = valid | (active & passes(drop_threshold, drop, i))
                key = growth_keys_at(row, call, i, active, valid, bonus, GROW_BY, False)
            else:
                valid = active
                key = drop
            digits = count_digits(digits, key, i, valid, known_key, known_inverse, level)
        known_key, known_inverse, left = take_digit(digits, known_key, known_inverse, left, level)
        level += 1
        if GROWTH_KEYS:
            if bonus.table is None:  # nothing in the lower half
                level = tl.where(level == 4, 8, level)
    return Threshold(known_key, (known_inverse ^ LAST_INDEX).to(tl.int32))


@triton.jit
def update_by_scans(
    row, call, k, k_grow, n, bonus,
    UNEVEN: tl.constexpr, DROP_BY: tl.constexpr, GROW_BY: tl.constexpr, REGROW: tl.constexpr, OUTCOME: tl.constexpr,
):  # fmt: skip
    """UNEVEN: one of k and k_grow may be 0."""
    all_pass = Threshold(tl.full([], PASS_ALL, tl.int64), tl.full([], LAST_INDEX, tl.int32))
    drop_threshold = _threshold_by_scans(row, call, k, n, all_pass, bonus, DROP_BY, GROW_BY, REGROW, False)
    if UNEVEN:
        drop_threshold = none_if_zero(drop_threshold, k)
    threshold = _threshold_by_scans(row, call, k_grow, n, drop_threshold, bonus, DROP_BY, GROW_BY, REGROW, True)
    if UNEVEN:
        threshold = none_if_zero(threshold, k_grow)
    for start in range(0, n, TILE):
        i, inside, active = read_tile(row, start, n)
        drop = drop_keys_at(row, i, active, DROP_BY, False)
        dropped = active & passes(drop_threshold, drop, i)
        candidates = inside & ~active
        if REGROW:
            candidates = candidates | dropped
        key = growth_keys_at(row, call, i, active, candidates, bonus, GROW_BY, False)
        grown = candidates & passes(threshold, key, i)
        tl.debug_barrier()  # the signal may be the momentum, which is cleared now
        commit_tile(row, i, start, n, active, dropped, grown, bonus.round, OUTCOME)
