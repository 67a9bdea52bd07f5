"""How many weights of a large layer are sampled, and how far down the sample its k-th weight may stand.

csrc/cuda/sample_size.cuh has the same law for a larger sample.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

NEIGHBOURS = tl.constexpr(8)  # weights that are sampled together: those of a byte of mask
LEAST_STRATA, MOST_STRATA = tl.constexpr(128), tl.constexpr(512)  # each gives one byte of mask
_SLOPE, _SPREAD, _OFFSET = tl.constexpr(1.25), tl.constexpr(10.0), tl.constexpr(16.0)


@triton.jit
def strata_of(n):
    return tl.minimum(tl.maximum(n // 512, LEAST_STRATA), MOST_STRATA)


@triton.jit
def sample_rank(expected):
    """The rank in the sample, first to last, behind which the k-th weight of the layer almost surely does not stand.

    expected: how many of the first k are sampled on average. A loose rank costs some room in a list, a missed one a second look
    at the layer. Neighbours may be selected together, which makes the spread sqrt(8) times that of single draws.
    """
    return (expected * _SLOPE + tl.sqrt(expected) * _SPREAD + _OFFSET).to(tl.int32)


def expected_entries(n: int, k: int) -> int:
    """Entries that one side of a layer's lists almost surely needs: what passes the bound at sample_rank, and some more.

    Rounded up in steps of a quarter octave, so that a schedule rarely changes it.
    """
    least, most = (strata.value * NEIGHBOURS.value for strata in (LEAST_STRATA, MOST_STRATA))
    sampled = min(max(n / 64, least), most)
    expected = k * sampled / n
    rank = _SLOPE.value * expected + _SPREAD.value * math.sqrt(expected) + _OFFSET.value
    listed = 1.3 * rank * n / sampled + 2048
    step = 1 << max(int(listed).bit_length() - 3, 0)
    return min(-(-int(listed) // step) * step, n)
