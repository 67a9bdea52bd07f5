"""The k-th of any number of keys, a byte for each pair of launches: programs count it, then one takes that of the k-th.

A key is two nonnegative int64 words, larger first, no two alike. What is known of the k-th, its further bytes 0, is a threshold
that the first k reach once nothing is left to find.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import STORE_OPTIONS
from ._select import DIGITS

# Columns of what is known: the words of the k-th key, and how many are sought among those that agree with it, 0 when found.
FIRST, SECOND, LEFT = (tl.constexpr(c) for c in range(3))
KNOWN_COLUMNS = tl.constexpr(3)
_NOTHING = 1 << 62


def nothing_known(k: Tensor) -> Tensor:
    """int64 [len(k), KNOWN_COLUMNS] for numbers from 0 to that of the keys; what no key reaches for 0."""
    return torch.stack([torch.where(k > 0, 0, _NOTHING), torch.zeros_like(k), k], 1)


def take_digits(known: Tensor, digits: Tensor, shift: int, second: bool) -> None:
    """``digits``: int64 [len(known), DIGITS], which count_digits has added to; 0 afterwards."""
    take_digits_kernel[(len(known),)](known, digits, shift, second, **STORE_OPTIONS)


@triton.jit
def reaches(known, first, second):
    known_first = tl.load(known + FIRST)
    return (first > known_first) | ((first == known_first) & (second >= tl.load(known + SECOND)))


@triton.jit
def count_digits(known, digits, first, second, candidates, shift, SECOND_WORD: tl.constexpr):
    """Counts the byte at ``shift`` of one of the words, of those that agree with what is known before it."""
    if SECOND_WORD:
        candidates = candidates & (first == tl.load(known + FIRST))
        word, prefix = second, tl.load(known + SECOND)
    else:
        word, prefix = first, tl.load(known + FIRST)
    add_digits(digits, word, prefix, candidates, shift)


@triton.jit
def add_digits(digits, word, prefix, candidates, shift):
    rest = word >> shift
    same = candidates & ((rest >> 8) == ((prefix >> shift) >> 8))
    counts = tl.histogram(tl.ravel((rest & 255).to(tl.int32)), DIGITS, mask=tl.ravel(same))
    tl.atomic_add(digits + tl.arange(0, DIGITS), counts.to(digits.dtype.element_ty), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["shift"])
def take_digits_kernel(known, digits, shift, SECOND_WORD: tl.constexpr):
    known += tl.program_id(0).to(tl.int64) * KNOWN_COLUMNS
    left = tl.load(known + LEFT)
    if left > 0:
        r = tl.arange(0, DIGITS)
        at = digits + tl.program_id(0).to(tl.int64) * DIGITS + r
        count = tl.load(at)
        from_here = tl.sum(count, 0) - tl.cumsum(count, 0) + count  # keys with this byte or a larger one
        digit = tl.sum((from_here >= left).to(tl.int32), 0) - 1
        inside = tl.sum(tl.where(r == digit, count, 0), 0)
        left = left - (tl.sum(tl.where(r == digit, from_here, 0), 0) - inside)
        word = known + (SECOND if SECOND_WORD else FIRST)
        tl.store(word, tl.load(word) | (digit.to(tl.int64) << shift))
        tl.store(known + LEFT, tl.where(inside == left, 0, left))
        tl.store(at, tl.zeros([DIGITS], tl.int64))
