"""The memory of one mask update, and which part of it belongs to a layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bins import BINS, add_to_histogram, find_bin, kth_bin
from ._rules import clip_growth, clip_swaps
from ._table import ENTRIES, FIRST_ENTRY, INDEX, K, N
from ._threshold import Threshold

GROW_SIDE, DROP_SIDE = tl.constexpr(0), tl.constexpr(1)

# Columns of a layer's state; where there are two, of the growth and of the drop.
USED = tl.constexpr(0)  # listed so far: growth | drop << 32
NNZ = tl.constexpr(1)
UNDECIDED = tl.constexpr(2)  # listed weights in the bin of the k-th
BOUND_KEY = tl.constexpr(4)  # a threshold from the sample: what does not pass it is not listed
BOUND_INDEX = tl.constexpr(6)
STATE_COLUMNS = tl.constexpr(8)

# Growth keys of listed active weights that do not take part in the growth: not dropped, or behind the growth's bound.
NOT_DROPPED = tl.constexpr(-2)
REJECTED = tl.constexpr(-1)


class Memory(NamedTuple):
    """Written by one launch, read by the next; sample.py initialises what must be."""

    state: Tensor  # int64 [layers, STATE_COLUMNS]
    histogram: Tensor  # int32 [layers, 2, BINS]
    splitter_key: Tensor  # [layers, 2, BINS], also the next three
    splitter_index: Tensor
    unsorted_key: Tensor
    unsorted_index: Tensor
    list_key: Tensor  # of the entries of each layer's growth list, then of its drop list; also the next
    list_index: Tensor
    growth_key: Tensor  # of the entries of each layer's drop list
    undecided: Tensor  # places in the layer's two lists together


def make_memory(layers: int, entries: int, device: torch.device) -> Memory:
    def empty(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    pairs = 2 * layers * BINS.value
    splitter_key, splitter_index = empty(2 * pairs, torch.int64), empty(2 * pairs, torch.int32)
    return Memory(
        empty(layers * STATE_COLUMNS.value, torch.int64), empty(pairs, torch.int32),
        splitter_key, splitter_index, splitter_key[pairs:], splitter_index[pairs:],
        empty(2 * entries, torch.int64), empty(2 * entries, torch.int32),
        empty(entries, torch.int64), empty(2 * entries, torch.int32),
    )  # fmt: skip


@triton.jit
def state_of(memory, layer):
    return memory.state + layer * STATE_COLUMNS


@triton.jit
def bound_of(state, side):
    return Threshold(tl.load(state + (BOUND_KEY + side)), tl.load(state + (BOUND_INDEX + side)).to(tl.int32))


@triton.jit
def side_of(pointer, layer, side):
    """A layer's histogram or splitters."""
    return pointer + (layer * 2 + side) * BINS


@triton.jit
def listed(state, row, side):
    """Entries in a list of the layer; those beyond its capacity were not written."""
    used = (tl.load(state + USED) >> (32 * side)) & 0xFFFFFFFF
    return tl.minimum(used, tl.load(row + ENTRIES)).to(tl.int32)


@triton.jit
def overflowed(state, row):
    used = tl.load(state + USED)
    return tl.maximum(used >> 32, used & 0xFFFFFFFF) > tl.load(row + ENTRIES)


@triton.jit
def list_of(pointer, row, side):
    """The layer's list of that side, of list_key, list_index or undecided."""
    return pointer + (2 * tl.load(row + FIRST_ENTRY) + side * tl.load(row + ENTRIES))


@triton.jit
def growth_keys_of(memory, row):
    """Of the entries of the layer's drop list."""
    return memory.growth_key + tl.load(row + FIRST_ENTRY)


@triton.jit
def requested_drop(row, call, k_pointer):
    """k, before the mask is known; int32."""
    if k_pointer is not None:
        k = tl.load(k_pointer + tl.load(row + INDEX))
    else:
        k = tl.load(call + K)
    return tl.minimum(tl.maximum(k, 0), tl.load(row + N)).to(tl.int32)


@triton.jit
def requested_growth(row, k_grow_pointer):
    return tl.minimum(tl.maximum(tl.load(k_grow_pointer + tl.load(row + INDEX)), 0), tl.load(row + N)).to(tl.int32)


@triton.jit
def requested_most(row, call, k_pointer, k_grow_pointer):
    """0 where nothing is dropped nor grown."""
    k = requested_drop(row, call, k_pointer)
    if k_grow_pointer is not None:
        k = tl.maximum(k, requested_growth(row, k_grow_pointer))
    return k


@triton.jit
def clip_both(row, k, k_grow_pointer, nnz, n, REGROW: tl.constexpr):
    """How many weights are dropped where k are requested, and how many grow: without k_grow_pointer as many."""
    if k_grow_pointer is None:
        k = clip_swaps(k, nnz, n, REGROW)
        k_grow = k
    else:
        k = tl.minimum(k, nnz)
        k_grow = clip_growth(requested_growth(row, k_grow_pointer), k, nnz, n, REGROW)
    return k, k_grow


@triton.jit
def numbers_of(row, call, state, k_pointer, k_grow_pointer, REGROW: tl.constexpr):
    """How many weights are dropped and grown, once the mask is counted. Where the sweep was left out nothing is dropped."""
    nnz, n = tl.load(state + NNZ).to(tl.int32), tl.load(row + N).to(tl.int32)
    return clip_both(row, requested_drop(row, call, k_pointer), k_grow_pointer, nnz, n, REGROW)


@triton.jit
def count_in_bins(memory, layer, side, key, index, mask):
    splitter_key, splitter_index = side_of(memory.splitter_key, layer, side), side_of(memory.splitter_index, layer, side)
    bin = find_bin(key, index, splitter_key, splitter_index, mask)
    add_to_histogram(side_of(memory.histogram, layer, side), bin, mask)


@triton.jit
def kth_of(memory, layer, side, k):
    """kth_bin of one side of a layer."""
    return kth_bin(
        side_of(memory.histogram, layer, side), side_of(memory.splitter_key, layer, side),
        side_of(memory.splitter_index, layer, side), k,
    )  # fmt: skip
