"""Bins of listed weights, between keys of the sample, the splitters. They are sorted, the last first.

Bin b holds the weights that pass b splitters. Whatever the splitters are, no weight lies in a lower bin than one behind it, so
they need not be good for the result to be right.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._threshold import LAST_INDEX, PASS_ALL, PASS_NONE, Threshold, passes

BINS = tl.constexpr(256)


@triton.jit
def find_bin(key, index, splitter_key, splitter_index, mask):
    """How many splitters each weight passes."""
    b = tl.zeros(index.shape, tl.int32)
    for s in tl.static_range(8):
        place = b + ((128 >> s) - 1)
        splitter = Threshold(
            tl.load(splitter_key + place, mask=mask, other=0), tl.load(splitter_index + place, mask=mask, other=0)
        )
        b = tl.where(passes(splitter, key, index), b + (128 >> s), b)
    return b


@triton.jit
def add_to_histogram(histogram, bin, mask):
    counts = tl.histogram(bin, BINS, mask=mask)
    tl.atomic_add(histogram + tl.arange(0, BINS), counts, mask=counts > 0, sem="relaxed")


@triton.jit
def kth_bin(histogram, splitter_key, splitter_index, k):
    """Finds the bin that holds the k-th of the listed weights.

    Returns the number listed, how many are still to be selected inside that bin, and two thresholds: what passes the first is
    selected, what passes only the second is undecided.
    """
    r = tl.arange(0, BINS) ^ (BINS - 1)  # from the first bin to the last
    count = tl.load(histogram + r)
    total = tl.cumsum(count, 0)
    before = total < k
    at = 255 - tl.sum(before.to(tl.int32), 0)  # -1: fewer than k are listed
    inside = tl.sum(tl.where(r == at, count, 0), 0)
    left = k - tl.max(tl.where(before, total, 0), 0)
    above, below = tl.minimum(tl.maximum(at, 0), BINS - 2), tl.maximum(at - 1, 0)
    last_key = tl.where(at > 0, tl.load(splitter_key + below), PASS_ALL)
    last_index = tl.where(at > 0, tl.load(splitter_index + below), LAST_INDEX)
    whole = left == inside
    first_key = tl.where(whole, last_key, tl.where(at < BINS - 1, tl.load(splitter_key + above), PASS_NONE))
    first_index = tl.where(whole, last_index, tl.where(at < BINS - 1, tl.load(splitter_index + above), -1))
    selected, undecided = Threshold(first_key, first_index), Threshold(last_key, last_index)
    return tl.sum(count, 0), tl.where(whole, 0, left), selected, undecided
