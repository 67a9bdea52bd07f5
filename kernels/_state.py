"""The memory of one mask update, and which part of it belongs to a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._select import BINS
from ._table import ENTRIES, FIRST_ENTRY, N

# Columns of a layer's state.
USED = tl.constexpr(0)  # listed so far: growth | drop << 32
NNZ = tl.constexpr(1)
FINALISTS = tl.constexpr(2)  # of the growth, of the drop
LOW_KEY = tl.constexpr(4)  # who does not reach it is not listed; growth, drop
LOW_INDEX = tl.constexpr(6)
STATE_COLUMNS = tl.constexpr(8)
GROWTH_SIDE, DROP_SIDE = tl.constexpr(0), tl.constexpr(1)

# Growth keys of listed active weights: not dropped; dropped, but behind all that are listed for the growth.
STAYS = tl.constexpr(-2)
BEHIND = tl.constexpr(-1)


@dataclass
class Work:
    """Written by one launch, read by the next; nothing is initialised but by prepare.

    state: int64 [layers, STATE_COLUMNS]; bins: int32 [layers, 2, BINS]; splitter_key, splitter_index: [layers, 2, BINS], and as
    much again to sort them; key, index, finalists: of the entries of each layer's growth list, then of its drop list;
    growth_key: of the drop list's entries.
    """

    state: Tensor
    bins: Tensor
    splitter_key: Tensor
    splitter_index: Tensor
    key: Tensor
    index: Tensor
    growth_key: Tensor
    finalists: Tensor


def make_work(layers: int, entries: int, device: torch.device) -> Work:
    def empty(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    pairs = 2 * layers * BINS.value
    return Work(
        empty(layers * STATE_COLUMNS.value, torch.int64), empty(pairs, torch.int32),
        empty(2 * pairs, torch.int64), empty(2 * pairs, torch.int32),
        empty(2 * entries, torch.int64), empty(2 * entries, torch.int32),
        empty(entries, torch.int64), empty(2 * entries, torch.int32),
    )  # fmt: skip


@triton.jit
def state_of(state, layer):
    return state + layer * STATE_COLUMNS


@triton.jit
def side_of(pointer, layer, side):
    """A layer's bins or splitters."""
    return pointer + (layer * 2 + side) * BINS


@triton.jit
def listed(state, row, side):
    """Entries in a list of the layer; those beyond its room were not written."""
    used = (tl.load(state + USED) >> (32 * side)) & 0xFFFFFFFF
    return tl.minimum(used, tl.load(row + ENTRIES)).to(tl.int32)


@triton.jit
def overflowed(state, row):
    used = tl.load(state + USED)
    return tl.maximum(used >> 32, used & 0xFFFFFFFF) > tl.load(row + ENTRIES)


@triton.jit
def list_of(pointer, row, side):
    """The layer's list of that side, of key, index or finalists."""
    return pointer + (2 * tl.load(row + FIRST_ENTRY) + side * tl.load(row + ENTRIES))


@triton.jit
def swaps(k, state, row, REGROW: tl.constexpr):
    """The weights to swap, once the mask is counted; int32."""
    nnz = tl.load(state + NNZ).to(tl.int32)
    k = tl.minimum(k, nnz)
    if not REGROW:
        k = tl.minimum(k, tl.load(row + N).to(tl.int32) - nnz)
    return k
