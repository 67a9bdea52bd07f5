"""Counters: encode, decode and what is counted of them; the lazy form N(round) against plain N += M."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dstee import encoding, ops
from dstee.testing import (
    LARGE_SIZES,
    ROUNDS,
    SIZES,
    Configuration,
    assert_same_bits,
    geometry,
    place,
    random_counters,
    random_mask,
)

INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def test_encoding_by_hand(backend: Configuration) -> None:
    """After 5 updates there were 6 mask rounds; an active weight stores the rounds it was not active: 6 - N."""
    N = torch.tensor([0, 1, 5, 1, 2, 6])
    mask = torch.tensor([False, False, False, True, True, True])
    stored = ops.encode_counts(N, mask, 5)
    assert_same_bits(stored, torch.tensor([0, 1, 5, 5, 4, 0], dtype=torch.int16))
    bits = ops.pack_mask(mask)
    assert_same_bits(ops.decode_counts(stored, bits, 5, [6]), N.int())
    # Ten updates later nothing was written, and the active weights have ten rounds more.
    assert_same_bits(ops.decode_counts(stored, bits, 15, [2, 3]), (N + 10 * mask).int().view(2, 3))


@pytest.mark.parametrize("round", ROUNDS)
def test_both_ways(backend: Configuration, round: int) -> None:
    for n in SIZES:
        rng = np.random.default_rng([n, round])
        mask = random_mask(n, n // 3, rng)
        N = random_counters(mask, round, rng)
        stored = ops.encode_counts(N, mask, round)
        assert (stored.dtype, stored.shape) == (torch.int16, (n,))
        back = ops.decode_counts(place(stored, odd=1), place(ops.pack_mask(mask), odd=1), round, [n])
        assert_same_bits(back, N, f"{n} counters after {round} updates")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_dtype_holds_what_it_can(backend: Configuration, dtype: torch.dtype) -> None:
    """The stored form of a small counter may be a number that its own dtype does not hold."""
    round = 300
    N = torch.tensor([0, 1, 100, 127, 1, 127], dtype=dtype)
    mask = torch.tensor([False, False, False, True, True, False])
    stored = ops.encode_counts(N, mask, round)
    assert_same_bits(stored, torch.tensor([0, 1, 100, 301 - 127, 300, 127], dtype=torch.int16))


def test_the_extremes_of_int16(backend: Configuration) -> None:
    """The last round there is: N = 32,767 was active from the start, N = 1 only now, N = 32,766 all but now."""
    round = encoding.MAX_ROUNDS - 1
    N = torch.tensor([32_767, 1, 32_766, 0], dtype=torch.int32)
    mask = torch.tensor([True, True, False, False])
    stored = ops.encode_counts(N, mask, round)
    assert_same_bits(stored, torch.tensor([0, 32_766, 32_766, 0], dtype=torch.int16))
    assert_same_bits(ops.decode_counts(stored, ops.pack_mask(mask), round, [4]), N)


def test_the_lazy_form_is_n_plus_m(backend: Configuration) -> None:
    """A thousand rounds of random swaps written through the public functions, against counters that are added up."""
    rng = np.random.default_rng(0)
    mask = random_mask(97, 30, rng)
    N = mask.int()
    stored, bits = ops.encode_counts(N, mask, 0), ops.pack_mask(mask)
    for q in range(1000):
        swapped = torch.from_numpy(rng.random(97) < 0.05)
        stored = torch.where(swapped, q + 1 - stored, stored).to(torch.int16)  # all that an update writes
        mask = mask ^ swapped
        N = N + mask.int()
        bits = ops.pack_mask(mask)
        if q % 97 == 0 or q == 999:
            assert_same_bits(ops.decode_counts(stored, bits, q + 1, [97]), N, f"N after update {q}")
            assert_same_bits(ops.encode_counts(N, mask, q + 1), stored, f"stored form after update {q}")


@pytest.mark.parametrize("layout", ["matrix", "transposed", "channels_last"])
def test_encode_reads_in_memory_order(backend: Configuration, layout: str) -> None:
    rng = np.random.default_rng(4)
    mask = random_mask(1155, 300, rng)
    N = random_counters(mask, 9, rng)
    like = geometry(1155, layout)
    assert_same_bits(ops.encode_counts(place(N, like), place(mask, like), 9), ops.encode_counts(N, mask, 9))


def test_large_layers(backend: Configuration) -> None:
    for n in LARGE_SIZES:
        rng = np.random.default_rng(n)
        mask = random_mask(n, n // 10, rng)
        N = random_counters(mask, 300, rng)
        stored, bits = ops.encode_counts(N, mask, 300), ops.pack_mask(mask)
        assert_same_bits(ops.decode_counts(stored, bits, 300, [n]), N, f"{n} counters")
        assert ops.count_active([bits]).tolist() == [n // 10]
        assert ops.count_explored([stored], [bits]).tolist() == [int((N > 0).sum())]


def test_counts_of_many_layers(backend: Configuration) -> None:
    """int64, one number per layer, empty layers included; an active weight was explored whatever it stores."""
    rng = np.random.default_rng(8)
    masks = [random_mask(n, n // 4, rng) for n in SIZES]
    counters = [random_counters(m, 30, rng) for m in masks]
    bits = [place(ops.pack_mask(m), odd=i % 2) for i, m in enumerate(masks)]
    stored = [place(ops.encode_counts(N, m, 30), odd=i % 2) for i, (N, m) in enumerate(zip(counters, masks, strict=True))]
    assert_same_bits(ops.count_active(bits), torch.tensor([n // 4 for n in SIZES]))
    assert_same_bits(ops.count_explored(stored, bits), torch.tensor([int((N > 0).sum()) for N in counters]))


def test_an_old_active_weight_stores_zero_and_is_explored(backend: Configuration) -> None:
    mask = torch.tensor([True, False, True])
    stored = ops.encode_counts(torch.tensor([4, 0, 1]), mask, 3)
    assert stored.tolist() == [0, 0, 3]
    assert ops.count_explored([stored], [ops.pack_mask(mask)]).tolist() == [2]


def test_no_layers(backend: Configuration) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert_same_bits(ops.count_active([]), empty)
    assert_same_bits(ops.count_explored([], []), empty)
