"""Finding the k-th of many keys: by bins, by bisection, by digits. The first are those with the larger key, then index."""

import triton
import triton.language as tl

from ._tiles import EVERYBODY, LAST_INDEX, NOBODY

BINS = tl.constexpr(256)


@triton.jit
def crossing(bins, splitter_key, splitter_index, k):
    """Finds the bin that holds the k-th of the listed weights.

    Splitters are sorted, the last first; bin b is reached by who reaches b of them. Returns the number listed, the winners
    still sought inside the bin, and two cuts: who reaches the first wins, who reaches only the second is a finalist.
    """
    r = tl.arange(0, BINS) ^ (BINS - 1)  # from the first bin to the last
    count = tl.load(bins + r)
    reached = tl.cumsum(count, 0)
    before = reached < k
    at = 255 - tl.sum(before.to(tl.int32), 0)  # -1: fewer than k are listed
    inside = tl.sum(tl.where(r == at, count, 0), 0)
    left = k - tl.max(tl.where(before, reached, 0), 0)
    above, below = tl.minimum(tl.maximum(at, 0), BINS - 2), tl.maximum(at - 1, 0)
    edge_key = tl.where(at > 0, tl.load(splitter_key + below), EVERYBODY)
    edge_index = tl.where(at > 0, tl.load(splitter_index + below), LAST_INDEX)
    whole = left == inside
    win_key = tl.where(whole, edge_key, tl.where(at < BINS - 1, tl.load(splitter_key + above), NOBODY))
    win_index = tl.where(whole, edge_index, tl.where(at < BINS - 1, tl.load(splitter_index + above), -1))
    return tl.sum(count, 0), tl.where(whole, 0, left), win_key, win_index, edge_key, edge_index


@triton.jit
def bin_of(key, index, splitter_key, splitter_index, mask):
    """How many splitters each key reaches."""
    b = tl.zeros(index.shape, tl.int32)
    for s in tl.static_range(8):
        place = b + ((128 >> s) - 1)
        cut_key = tl.load(splitter_key + place, mask=mask, other=0)
        cut_index = tl.load(splitter_index + place, mask=mask, other=0)
        b = tl.where((key > cut_key) | ((key == cut_key) & (index <= cut_index)), b + (128 >> s), b)
    return b


@triton.jit
def bisect(key, index, k, slack):
    """The cut that k of the keys (-1: none), at most ``slack`` more, reach; 1 <= k <= number of keys. Any shape."""
    high = tl.max(key) + 1
    low = tl.full([], 0, tl.int64)
    found = tl.sum((key >= 0).to(tl.int32))
    while (high - low > 1) & (found > k + slack):
        middle = low + ((high - low) >> 1)
        count = tl.sum((key >= middle).to(tl.int32))
        enough = count >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
        found = tl.where(enough, count, found)
    # Now found keys are >= low. If that is too many, they tie at low.
    last = tl.full([], LAST_INDEX, tl.int32)
    if found > k + slack:
        left = k - tl.sum((key > low).to(tl.int32))
        tied = key == low
        before = tl.min(tl.where(tied, index, LAST_INDEX)) - 1
        last = tl.max(tl.where(tied, index, -1))
        ties = tl.sum(tied.to(tl.int32))
        while (last - before > 1) & (ties != left):
            middle_index = before + ((last - before) >> 1)
            count = tl.sum((tied & (index <= middle_index)).to(tl.int32))
            enough = count >= left
            last = tl.where(enough, middle_index, last)
            before = tl.where(enough, before, middle_index)
            ties = tl.where(enough, count, ties)
    return low, last


@triton.jit
def count_digits(bins, key, index, valid, cut_key, cut_inverse, level):
    """Adds to the bins the digit of ``level`` (0..7 of the key, 8..11 of the inverted index) of keys that share all before."""
    inverse = (index ^ LAST_INDEX).to(tl.int64)
    on_key = level < 8
    shift = tl.where(on_key, 56 - 8 * level, 88 - 8 * level).to(tl.int64)
    number = tl.where(on_key, key, inverse)
    cut = tl.where(on_key, cut_key, cut_inverse)
    same = (number >> shift) >> 8 == (cut >> shift) >> 8
    same = same & valid & (on_key | (key == cut_key))
    digit = ((number >> shift) & 255).to(tl.int32)
    return bins + tl.histogram(tl.ravel(digit), BINS, mask=tl.ravel(same))


@triton.jit
def take_digit(bins, cut_key, cut_inverse, k, level):
    """The digit that holds the k-th key. Returns the longer cut and the winners sought behind it, 0 when it is found."""
    r = tl.arange(0, BINS)
    total = tl.sum(bins, 0)
    reached = total - tl.cumsum(bins, 0) + bins  # keys with this digit or a larger one
    enough = reached >= k
    digit = tl.sum(enough.to(tl.int32), 0) - 1
    inside = tl.sum(tl.where(r == digit, bins, 0), 0)
    k = k - (tl.sum(tl.where(r == digit, reached, 0), 0) - inside)
    on_key = level < 8
    shift = tl.where(on_key, 56 - 8 * level, 88 - 8 * level).to(tl.int64)
    part = digit.to(tl.int64) << shift
    cut_key = tl.where(on_key, cut_key | part, cut_key)
    cut_inverse = tl.where(on_key, cut_inverse, cut_inverse | part)
    return cut_key, cut_inverse, tl.where(inside == k, 0, k)
