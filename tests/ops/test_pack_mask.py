"""pack_mask and unpack_mask: bit order, padding, any size and memory order, sizes beyond 2^31."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dstee import encoding, ops
from dstee.backends import native
from dstee.testing import LARGE_SIZES, SIZES, Configuration, assert_same_bits, geometry, place, random_mask


def test_bits_by_hand(backend: Configuration) -> None:
    """Weight 0 is the lowest bit of byte 0; the last byte is filled up with zeros."""
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)
    bits = torch.tensor([0b0000_0001, 0b1000_0110, 0b0000_0011], dtype=torch.uint8)
    assert_same_bits(ops.pack_mask(mask), bits)
    assert_same_bits(ops.unpack_mask(bits, [18]), mask)
    assert_same_bits(ops.unpack_mask(bits, (2, 9)), mask.view(2, 9))


@pytest.mark.parametrize("odd", [0, 1, 5])
def test_every_size_both_ways(backend: Configuration, odd: int) -> None:
    for n in (*range(70), *SIZES, *LARGE_SIZES):
        rng = np.random.default_rng(n)
        mask = random_mask(n, n // 3, rng)
        packed = ops.pack_mask(place(mask, odd=odd))
        expected = torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
        assert_same_bits(packed, expected, f"bits of {n} weights")
        assert_same_bits(ops.unpack_mask(place(packed, odd=odd), [n]), mask, f"mask of {n} weights")


@pytest.mark.parametrize("fill", [False, True])
def test_full_and_empty(backend: Configuration, fill: bool) -> None:
    for n in SIZES:
        mask = torch.full((n,), fill)
        packed = ops.pack_mask(mask)
        assert int(ops.count_active([packed])) == n * fill, f"padding bits of {n} weights must stay 0"
        assert_same_bits(ops.unpack_mask(packed, [n]), mask)


@pytest.mark.parametrize("layout", ["matrix", "transposed", "channels_last"])
@pytest.mark.parametrize("n", [0, 48, 1155, 4096])
def test_memory_order_decides(backend: Configuration, layout: str, n: int) -> None:
    """Bit i is the i-th element in memory, whatever the strides."""
    mask = random_mask(n, n // 2, np.random.default_rng(n))
    like = geometry(n, layout)
    packed = ops.pack_mask(place(mask, like))
    assert_same_bits(packed, ops.pack_mask(mask))
    assert_same_bits(encoding.unflat(ops.unpack_mask(packed, [n]), like), place(mask, like))


def test_shapes_without_elements_or_dimensions(backend: Configuration) -> None:
    assert_same_bits(ops.pack_mask(torch.tensor(True)), torch.tensor([1], dtype=torch.uint8))
    assert_same_bits(ops.unpack_mask(torch.tensor([1], dtype=torch.uint8), []), torch.tensor(True))
    assert ops.unpack_mask(torch.empty(0, dtype=torch.uint8), [3, 0, 2]).shape == (3, 0, 2)


def test_results_are_new_memory(backend: Configuration) -> None:
    mask = torch.ones(16, dtype=torch.bool)
    bits = ops.pack_mask(mask)
    back = ops.unpack_mask(bits, [16])
    bits.zero_()
    mask.zero_()
    assert bool(back.all())


@pytest.mark.parametrize("n", [2**31 - 1, 2**31, 2**32 + 9, 2**40 + 1])
def test_sizes_beyond_32_bits_are_computed_exactly(n: int) -> None:
    assert encoding.mask_bytes(n) == -(-n // 8)
    meta = torch.empty(n, dtype=torch.bool, device="meta")
    packed = torch.ops.dstee.pack_mask(meta)
    assert (packed.shape, packed.dtype) == ((-(-n // 8),), torch.uint8)
    assert torch.ops.dstee.unpack_mask(packed, [n]).shape == (n,)


def test_a_mask_beyond_32_bits() -> None:
    """2^31 + 9 weights, all but a few inactive: untouched zero pages, so that 0.3 GB are enough."""
    module, reason = native.load()
    if module is None:
        pytest.skip(f"the reference would need 20 GB: {reason}")
    n, active = 2**31 + 9, [0, 2**31 - 1, 2**31, 2**31 + 8]
    bits = torch.zeros(encoding.mask_bytes(n), dtype=torch.uint8)
    for i in active:
        bits[i // 8] |= 1 << i % 8
    with Configuration("native").active():
        assert int(ops.count_active([bits])) == 4
        bits.fill_(0xFF)
        assert int(ops.count_active([bits])) == 8 * bits.numel()
