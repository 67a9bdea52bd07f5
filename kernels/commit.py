"""Sixth launch: the outcome of all listed weights but those in the bin of the growth's k-th; and how any outcome is written."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ._rules import flip_count
from ._state import (
    DROP_SIDE,
    GROW_SIDE,
    NOT_DROPPED,
    REJECTED,
    growth_keys_of,
    kth_of,
    list_of,
    listed,
    numbers_of,
    overflowed,
    state_of,
)
from ._table import BITS, CHUNK, COUNTS, ENTRIES, FIRST_CHUNK, M, W, call_of, row_of
from ._threshold import passes
from ._tiles import ROWS, round_of
from ._undecided import add_undecided

__all__ = ["Outcome", "commit_entries", "commit_kernel", "commit_tile"]


class Outcome(NamedTuple):
    """What there is to write; a kernel's constant. RESET: of regrown weights, too, w and m become 0."""

    RESET: bool
    HAS_M: bool
    COUNTED: bool
    W_TYPE: tl.dtype


@triton.jit
def _flip_counts(row, i, flips, round):
    """Stores the counters of weights whose state changes."""
    at = tl.load(row + COUNTS).to(tl.pointer_type(tl.int16)) + i
    stored = tl.load(at, mask=flips, other=0).to(tl.int32)
    tl.store(at, flip_count(stored, round).to(tl.int16), mask=flips)


@triton.jit
def _clear(row, i, gone, OUTCOME: tl.constexpr):
    tl.store(tl.load(row + W).to(tl.pointer_type(OUTCOME.W_TYPE)) + i, 0.0, mask=gone)
    if OUTCOME.HAS_M:
        tl.store(tl.load(row + M).to(tl.pointer_type(OUTCOME.W_TYPE)) + i, 0.0, mask=gone)


@triton.jit
def commit_tile(row, i, start, n, active, dropped, grown, round, OUTCOME: tl.constexpr):
    """A tile that no other program touches."""
    changed = dropped != grown
    gone = dropped
    if not OUTCOME.RESET:
        gone = dropped & ~grown
    lanes = tl.arange(0, 8)[None, :]
    byte = tl.sum(((active != changed) & (i < n)).to(tl.int32) << lanes, 1)
    differs = tl.sum(changed.to(tl.int32), 1) > 0
    bits = (tl.load(row + BITS) + (start >> 3)).to(tl.pointer_type(tl.uint8))
    tl.store(bits + tl.arange(0, ROWS), byte.to(tl.uint8), mask=differs)
    if OUTCOME.COUNTED:
        _flip_counts(row, i, changed, round)
    _clear(row, i, gone, OUTCOME)


@triton.jit
def commit_entries(row, i, was_active, grown, mask, round, OUTCOME: tl.constexpr):
    """Listed weights: candidates that grow or not, among them such as were dropped before."""
    flips = mask & (grown != was_active)
    gone = mask & was_active
    if not OUTCOME.RESET:
        gone = gone & ~grown
    address = tl.load(row + BITS) + (i >> 3)
    words = (address & -4).to(tl.pointer_type(tl.int32))
    bit = tl.full(i.shape, 1, tl.int32) << ((address & 3).to(tl.int32) * 8 + (i & 7))
    tl.atomic_xor(words, bit, mask=flips, sem="relaxed")
    if OUTCOME.COUNTED:
        _flip_counts(row, i, flips, round)
    _clear(row, i, gone, OUTCOME)


@triton.jit(do_not_specialize=["k_pointer", "k_grow_pointer", "round", "round_pointer"])
def commit_kernel(table, memory, k_pointer, k_grow_pointer, round, round_pointer, REGROW: tl.constexpr, OUTCOME: tl.constexpr):
    """A program for a chunk and a side."""
    layer, side = tl.load(table.chunk_layer + tl.program_id(0)), tl.program_id(1)
    row, call, state = row_of(table, layer), call_of(table, layer), state_of(memory, layer)
    first = (tl.program_id(0) - tl.load(row + FIRST_CHUNK).to(tl.int32)) * CHUNK
    count = listed(state, row, side)
    k, k_grow = numbers_of(row, call, state, k_pointer, k_grow_pointer, REGROW)
    if (tl.maximum(k, k_grow) > 0) & (first < count) & (listed(state, row, DROP_SIDE) >= k) & ~overflowed(state, row):
        total, _left, selected, undecided = kth_of(memory, layer, GROW_SIDE, k_grow)
        if total >= k_grow:
            e = first + tl.arange(0, CHUNK)
            mask = e < count
            index = tl.load(list_of(memory.list_index, row, side) + e, mask=mask, other=0)
            if side == GROW_SIDE:
                key = tl.load(list_of(memory.list_key, row, side) + e, mask=mask, other=NOT_DROPPED)
            else:
                key = tl.load(growth_keys_of(memory, row) + e, mask=mask, other=NOT_DROPPED)
            mask = key != NOT_DROPPED
            grown = mask & (key != REJECTED) & passes(selected, key, index)
            is_undecided = mask & ~grown & (key != REJECTED) & passes(undecided, key, index)
            was_active = tl.zeros_like(index) + side == DROP_SIDE
            commit_entries(row, index, was_active, grown, mask & ~is_undecided, round_of(round, round_pointer), OUTCOME)
            place = e + tl.where(side == DROP_SIDE, tl.load(row + ENTRIES), 0)
            add_undecided(memory, state, row, GROW_SIDE, place, is_undecided)
