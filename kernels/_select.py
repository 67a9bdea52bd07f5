"""Finding the threshold that the first k of many keys pass: by bisection, by digits."""

from __future__ import annotations

import triton
import triton.language as tl

from ._threshold import LAST_INDEX, Threshold

DIGITS = tl.constexpr(256)  # a digit is 8 bits


@triton.jit
def bisect(key, index, k, slack):
    """The threshold that k of the keys (-1: none), at most ``slack`` more, pass; 1 <= k <= number of keys. Any shape."""
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
    return Threshold(low, last)


@triton.jit
def count_digits(digits, key, index, valid, known_key, known_inverse, level):
    """Adds to the histogram the digit of ``level`` (0..7 of the key, 8..11 of the inverted index) of keys that agree so far."""
    inverse = (index ^ LAST_INDEX).to(tl.int64)
    on_key = level < 8
    shift = tl.where(on_key, 56 - 8 * level, 88 - 8 * level).to(tl.int64)
    number = tl.where(on_key, key, inverse)
    known = tl.where(on_key, known_key, known_inverse)
    same = (number >> shift) >> 8 == (known >> shift) >> 8
    same = same & valid & (on_key | (key == known_key))
    digit = ((number >> shift) & 255).to(tl.int32)
    return digits + tl.histogram(tl.ravel(digit), DIGITS, mask=tl.ravel(same))


@triton.jit
def take_digit(digits, known_key, known_inverse, k, level):
    """The digit of the k-th key. Returns what is known then, and how many are still sought, 0 when it is found."""
    r = tl.arange(0, DIGITS)
    total = tl.sum(digits, 0)
    from_here = total - tl.cumsum(digits, 0) + digits  # keys with this digit or a larger one
    enough = from_here >= k
    digit = tl.sum(enough.to(tl.int32), 0) - 1
    inside = tl.sum(tl.where(r == digit, digits, 0), 0)
    k = k - (tl.sum(tl.where(r == digit, from_here, 0), 0) - inside)
    on_key = level < 8
    shift = tl.where(on_key, 56 - 8 * level, 88 - 8 * level).to(tl.int64)
    part = digit.to(tl.int64) << shift
    known_key = tl.where(on_key, known_key | part, known_key)
    known_inverse = tl.where(on_key, known_inverse, known_inverse | part)
    return known_key, known_inverse, tl.where(inside == k, 0, k)
