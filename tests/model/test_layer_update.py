"""Layers that drop and grow different numbers, in the one call: by a brute-force sort, ties, NaN and infinities included."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

import dstee
from dstee import ops
from dstee.layer_update import LayerUpdate, drop_grow_
from dstee.rules import random_signal

VALUES = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5, math.inf, -math.inf, math.nan, 3.25]


def brute(w, mask, g, N, drop, grow, bonus, regrow) -> list[bool]:
    """The total order of ops.drop_grow_, with sorts: NaN weights first, NaN gradients last."""

    def weak(i: int) -> tuple[float, int]:
        return (-1.0 if math.isnan(w[i]) else abs(w[i])), i

    def strong(i: int) -> tuple[float, float, int]:
        if math.isnan(g[i]):
            return 1.0, 1.0, i
        magnitude = abs(g[i])
        score = float(torch.tensor(magnitude) + (0 if bonus is None else bonus[N[i]]))
        return -score, -magnitude, i

    dropped = set(sorted((i for i in range(len(w)) if mask[i]), key=weak)[:drop])
    free = [i for i in range(len(w)) if not mask[i] or (regrow and i in dropped)]
    grown = set(sorted(free, key=strong)[:grow])
    return [(mask[i] and i not in dropped) or i in grown for i in range(len(w))]


def case(rng: random.Random, dtype: torch.dtype, regrow: bool, nan: bool, alone: bool) -> tuple[LayerUpdate, Tensor, list[int]]:
    n = rng.randint(1, 40)
    values = VALUES if nan else [v for v in VALUES if not math.isnan(v)]
    mask = torch.tensor([rng.random() < rng.choice([0.1, 0.5, 0.9]) for _ in range(n)])
    w = torch.tensor([rng.choice(values) for _ in range(n)]).to(dtype).masked_fill_(~mask, 0)
    g = torch.tensor([rng.choice(values) for _ in range(n)]).to(dtype)
    active = int(mask.sum())
    drop = rng.randint(0, active)
    grow = 0 if alone else rng.randint(0, n - active + (drop if regrow else 0))
    N = [rng.randint(int(mask[i]), 3 + int(mask[i])) for i in range(n)]
    counts = None if alone else ops.encode_counts(torch.tensor(N), mask, 3)
    return LayerUpdate(w, ops.pack_mask(mask), drop, grow, g, None, counts), mask, N


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_update_equals_sorting(seed, dtype, regrow):
    rng = random.Random(seed)
    cases = [case(rng, dtype, regrow, seed % 2 == 0, seed % 4 > 1) for _ in range(6)]
    bonus = None if seed % 3 == 0 or seed % 4 > 1 else dstee.bonus_table(0.5, 1.0, 10, 3)
    expected = [
        brute(layer.weight.tolist(), mask.tolist(), layer.signal.tolist(), N, layer.drop, layer.grow, bonus, regrow)
        for layer, mask, N in cases
    ]
    before = [layer.weight.clone() for layer, _, _ in cases]
    layers = [layer for layer, _, _ in cases]
    zeroed = drop_grow_(layers, bonus=bonus, round=3, regrow=regrow, report_zeroed=True)
    for (layer, mask, N), new, old, gone in zip(cases, expected, before, zeroed, strict=True):
        assert layer.bools().tolist() == new
        kept = mask & layer.bools()
        assert torch.equal(layer.weight.nan_to_num(7), torch.where(kept, old, 0).nan_to_num(7))
        assert torch.equal(gone, mask & ~layer.bools())
        if layer.counts is None:
            continue
        counter = ops.decode_counts(layer.counts, layer.mask_bits, 4, (len(N),))
        assert counter.tolist() == [a + b for a, b in zip(N, new, strict=True)]


def test_seeded_growth_does_not_depend_on_other_layers():
    torch.manual_seed(0)

    def layer(drop: int, grow: int) -> LayerUpdate:
        mask = torch.arange(100) % 2 == 0
        return LayerUpdate(torch.ones(100) * mask, ops.pack_mask(mask), drop, grow, seed=77)

    alone, even, uneven = layer(10, 10), layer(10, 10), layer(0, 10)
    drop_grow_([alone], bonus=None, round=0)
    drop_grow_([even, uneven], bonus=None, round=0)
    assert torch.equal(alone.mask_bits, even.mask_bits)
    score = random_signal(77, 100, torch.device("cpu")).masked_fill(torch.arange(100) % 2 == 0, -1)
    assert set(score.topk(10).indices.tolist()) == set(
        (uneven.bools() & (torch.arange(100) % 2 == 1)).nonzero().view(-1).tolist()
    )


def test_numbers_out_of_range():
    for drop, grow in ((3, 0), (0, 9), (-1, 0), (1, 10), (0, -1)):
        w = torch.tensor([1.0, 2.0] + [0.0] * 8)
        layer = LayerUpdate(w, ops.pack_mask(w != 0), drop, grow)
        with pytest.raises(ValueError, match=f"cannot drop {drop} and grow {grow} of 10 weights, 2 active"):
            drop_grow_([layer], bonus=None, round=0)
        assert layer.mask_bits.tolist() == [3, 0]


def test_reset_regrown_weights_are_reported() -> None:
    """Weights 0 and 1 are dropped, and the gradient brings 1 back at once: the masks alone do not tell that it was reset."""
    w, mask = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([True, True, True, False])
    for drop, grow in ((2, 2), (2, 1)):
        layer = LayerUpdate(w.clone(), ops.pack_mask(mask), drop, grow, torch.tensor([0.0, 9.0, 0.0, 5.0]))
        assert drop_grow_([layer], bonus=None, round=0, reset_regrown=True) == []
        layer = LayerUpdate(w.clone(), ops.pack_mask(mask), drop, grow, torch.tensor([0.0, 9.0, 0.0, 5.0]))
        (zeroed,) = drop_grow_([layer], bonus=None, round=0, reset_regrown=True, report_zeroed=True)
        assert layer.bools().tolist() == [False, True, True, grow == 2]
        assert zeroed.tolist() == [True, True, False, False] and layer.weight.tolist() == [0.0, 0.0, 3.0, 0.0]
