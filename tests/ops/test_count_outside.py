"""count_outside: by hand, against a plain count over random and hostile weights, any layout and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dstee import ops
from dstee.testing import DTYPES, FAMILIES, LARGE_SIZES, SIZES, Configuration, assert_same_bits, geometry, place, values


def test_by_hand(backend: Configuration) -> None:
    #                active                 |  not
    w = torch.tensor([1.0, 0.0, float("nan"), 0.0, -0.0, 1e-45, float("nan"), float("-inf"), 0.0, 3.0])
    mask = torch.arange(10) < 3
    assert ops.count_outside([w], [ops.pack_mask(mask)]).tolist() == [4]
    assert ops.count_outside([w], [ops.pack_mask(torch.ones(10, dtype=torch.bool))]).tolist() == [0]
    assert ops.count_outside([w], [ops.pack_mask(torch.zeros(10, dtype=torch.bool))]).tolist() == [6]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(backend: Configuration, family: str, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(7)
    weights, bits, expected = [], [], []
    for i, n in enumerate(SIZES):
        w, mask = values(family, n, rng).to(dtype), torch.from_numpy(rng.random(n) < (0.1, 0.5, 1.0)[i % 3])
        weights.append(place(w, odd=i % 2))
        bits.append(place(ops.pack_mask(mask), odd=(i + 1) % 2))
        expected.append(sum(1 for x, m in zip(w.tolist(), mask.tolist(), strict=True) if not m and x != 0))
    assert_same_bits(ops.count_outside(weights, bits), torch.tensor(expected))


@pytest.mark.parametrize("layout", ["matrix", "transposed", "channels_last"])
def test_positions_are_those_in_memory(backend: Configuration, layout: str) -> None:
    like = geometry(4096, layout)
    w = place(torch.arange(4096.0), like)
    bits = ops.pack_mask(w < 1000)
    assert ops.count_outside([w], [bits]).tolist() == [3096]


def test_large_layers(backend: Configuration) -> None:
    rng = np.random.default_rng(3)
    weights = [values("normal", n, rng) for n in LARGE_SIZES]
    masks = [torch.from_numpy(rng.random(n) < 0.1) for n in LARGE_SIZES]
    bits = [ops.pack_mask(mask) for mask in masks]
    expected = [int((w[~mask] != 0).sum()) for w, mask in zip(weights, masks, strict=True)]
    assert ops.count_outside(weights, bits).tolist() == expected
    kept = [w.masked_fill(~mask, 0) for w, mask in zip(weights, masks, strict=True)]
    assert ops.count_outside(kept, bits).tolist() == [0] * len(kept)


def test_no_layers_and_parameters(backend: Configuration) -> None:
    assert_same_bits(ops.count_outside([], []), torch.zeros(0, dtype=torch.int64))
    weight = torch.nn.Parameter(torch.ones(9))
    version = weight._version
    assert ops.count_outside([weight], [ops.pack_mask(torch.zeros(9, dtype=torch.bool))]).tolist() == [9]
    assert weight._version == version, "it only reads"


def test_refusals(backend: Configuration) -> None:
    w, bits = torch.ones(9), ops.pack_mask(torch.ones(9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask_bits must have one tensor per layer: got 2, expected 1"):
        ops.count_outside([w], [bits, bits])
    with pytest.raises(TypeError, match=r"params\[0\] has dtype torch.float64, expected float32, bfloat16 or float16"):
        ops.count_outside([w.double()], [bits])
    with pytest.raises(ValueError, match=r"mask_bits\[1\] has shape \[1\], expected \[2\] for params\[1\]"):
        ops.count_outside([w, w.clone()], [bits, bits[:1]])
