"""Weights that simulated ranks choose of whole layers, or of all layers: those that one process chooses, bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support import cut_cases
from support.cut_cases import SHAPES, Part
from support.lockstep import lockstep
from torch import Tensor

from dstee import ops
from dstee.distributed import agree
from dstee.sparsity_distribution import random_mask
from dstee.testing import FAMILIES, Case, assert_same_bits, values

pytestmark = pytest.mark.usefixtures("one_thread")

RANKS = (1, 2, 3, 4, 8)


def keep(case: Case, scores: list[Tensor] | None, total: int) -> None:
    ops.global_keep_(scores, case.params, case.momenta, case.mask_bits, case.counts, total, round=case.round)


def layer(case: Case, i: int) -> Case:
    """Layer ``i`` alone."""
    own = {name: getattr(case, name) and getattr(case, name)[i : i + 1] for name in cut_cases.STATE}
    return replace(case, **own)


def check_kept(seed: int) -> None:
    case, shapes = cut_cases.adversarial(seed)
    rng = np.random.default_rng([seed, 2])
    case.options = {}
    scores = [values(str(rng.choice(FAMILIES)), p.numel(), rng) for p in case.params] if rng.random() < 0.5 else None
    active = sum(int(mask.sum()) for mask in case.masks())
    total = int(rng.choice([0, active, min(active, 1), active // 2, rng.integers(0, active + 1)]))
    where = cut_cases.cut_layers(shapes, int(rng.choice(RANKS)), rng)
    parts = [Part.of(case, places) for places in where]
    own = [cut_cases.local(scores, places) for places in where]
    found = lockstep(
        [agree.kept(x or p.case.params, p.case.mask_bits, p.where, total, bool(x)) for x, p in zip(own, parts, strict=True)]
    )
    for part, x, (here, _) in zip(parts, own, found, strict=True):
        for i, place in enumerate(part.where):
            if place.n:
                keep(layer(part.case, i), x and [x[i]], here[i])
    keep(case, scores, total)
    assert [everywhere for _, everywhere in found] == [[int(mask.sum()) for mask in case.masks()]] * len(where)
    cut_cases.assert_same_parts(parts, case, where)


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_the_same_weights_stay(first: int) -> None:
    for seed in range(first, first + 100):
        check_kept(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 200))
def test_the_same_weights_stay_a_thousand_times(first: int) -> None:
    for seed in range(first, first + 200):
        check_kept(seed)


def layers(seed: int, ranks: int) -> tuple[list[tuple[int, ...]], list[list[agree.Where]], list[int], np.random.Generator]:
    """Shapes of layers, where their parts lie by rank, and how many weights are wanted of each."""
    rng = np.random.default_rng([seed, ranks])
    shapes = [SHAPES[int(i)] for i in rng.integers(0, len(SHAPES), 3)]
    sizes = [math.prod(shape) for shape in shapes]
    nnz = [int(rng.choice([0, n, min(n, 1), rng.integers(0, n + 1)])) for n in sizes]
    return shapes, cut_cases.cut_layers(shapes, ranks, rng), nnz, rng


@pytest.mark.parametrize("ranks", RANKS)
def test_random_masks_are_parts_of_the_whole_ones(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agree, "_CHUNK", 64)
    for seed in range(20):
        shapes, where, nnz, _ = layers(seed, ranks)
        names = [f"layers.{i}.weight" for i in range(len(shapes))]
        found = lockstep([agree.random_masks(names, nnz, seed, places) for places in where])
        whole = [random_mask(math.prod(s), n, seed, name) for s, n, name in zip(shapes, nnz, names, strict=True)]
        for masks, places in zip(found, where, strict=True):
            assert_same_bits(masks, cut_cases.local(whole, places), f"masks of seed {seed} at {places}")


def first(w: npt.NDArray[np.float32], nnz: int) -> Tensor:
    """The mask of the ``nnz`` largest abs(w), NaN last, then the lower index."""
    mask = np.zeros(len(w), dtype=bool)
    mask[np.argsort(np.where(np.isnan(w), 1, -np.abs(w)), kind="stable")[:nnz]] = True
    return torch.from_numpy(mask)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_largest_weights_are_those_of_the_whole(ranks: int) -> None:
    for seed in range(20):
        shapes, where, nnz, rng = layers(seed, ranks)
        dtype = cut_cases.TYPES[seed % 4]
        weights = [values(str(rng.choice(FAMILIES)), math.prod(shape), rng).to(dtype) for shape in shapes]
        found = lockstep([agree.largest(cut_cases.local(weights, places), nnz, places) for places in where])
        whole = [first(w.float().numpy(), n) for w, n in zip(weights, nnz, strict=True)]
        for masks, places in zip(found, where, strict=True):
            assert_same_bits(masks, cut_cases.local(whole, places), f"masks of seed {seed} at {places}")
