"""Thresholds in the order of a drop or a growth: larger keys come first, among equal ones smaller indices.

No two weights stand at the same place, so nothing else has to treat ties.
"""

from typing import NamedTuple

import triton
import triton.language as tl

LAST_INDEX = tl.constexpr(0x7FFFFFFF)
# Keys of a threshold that all pass, with LAST_INDEX, and of one that none passes, with -1.
PASS_ALL = tl.constexpr(-1)
PASS_NONE = tl.constexpr(0x7FFFFFFFFFFFFFFF)


class Threshold(NamedTuple):
    """The place of the last weight that passes: int64, int32. Scalars, or tensors with a threshold for each weight."""

    key: tl.tensor
    index: tl.tensor


@triton.jit
def passes(threshold, key, index):
    return (key > threshold.key) | ((key == threshold.key) & (index <= threshold.index))


@triton.jit
def none_if_zero(threshold, k):
    """The threshold of the k-th weight, or that of nothing."""
    return Threshold(tl.where(k > 0, threshold.key, PASS_NONE), tl.where(k > 0, threshold.index, -1))
