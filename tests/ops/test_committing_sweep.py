"""The CPU's sweep changes what surely changes before the selection is known: what it does when it was not sure after all."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dstee import backends, ops
from dstee.backends import native
from dstee.testing import DTYPES, Case, assert_same_bits, make_case
from dstee.testing.configurations import native_isas

pytestmark = pytest.mark.skipif(native.load()[0] is None, reason=native.load()[1])

# Sampled, so that there are bounds; of each four layers the third and fourth commit too much.
SIZES = [33_001, 40_009, 32_800, 65_567]
STEP = ops.SGDRule(0.1, 0.9, weight_decay=0.01)


def updated(case: Case, isa: str = "", **limits: Any) -> tuple[Case, dict[str, int]]:
    """The case after the update by the native kernels (by the reference without ``isa``), and what they say they did."""
    module, after = native.load()[0], case.clone()
    assert module is not None
    with backends.use_backend("native" if isa else "reference"):
        try:
            module.force_isa(isa or "auto")
            module.set_test_limits(**limits)
            after.drop_grow_()
        finally:
            module.set_test_limits()
            module.force_isa("auto")
    after.assert_margins()
    return after, module.last_stats()


def assert_same(a: Case, b: Case) -> None:
    for name, tensors in b.lists().items():
        assert_same_bits(a.lists()[name], tensors, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"regrow": False}, {"reset_regrown": True}], ids=str)
@pytest.mark.parametrize("sgd", [None, STEP], ids=["update", "step and update"])
@pytest.mark.parametrize("odd", [False, True], ids=["aligned", "odd"])
def test_too_much_committed_is_undone(dtype: torch.dtype, options: dict[str, bool], sgd: ops.SGDRule | None, odd: bool) -> None:
    """Masks, counters, weights and momenta are those of the exact fallback."""
    case = make_case(5, SIZES, dtype=dtype, density=0.2, round=3, sgd=sgd, odd=odd, **options)
    expected, _ = updated(case)
    for isa in native_isas():
        found, stats = updated(case, isa, tight_bounds=True)
        assert stats["fallback_layers"] == len(SIZES)
        assert_same(found, expected)


@pytest.mark.parametrize("margin_share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("options", [{}, {"regrow": False}], ids=str)
def test_bounds_that_just_miss_are_noticed(margin_share: float, options: dict[str, bool]) -> None:
    """Committed by a hair too much, also where the weights that show it lie in a layer's end, which is only listed."""
    scanned: set[int] = set()
    for seed in range(4):
        case = make_case(seed, [33_031, 40_009, 32_799, 65_567], density=0.15, round=3, **options)
        expected, _ = updated(case)
        for isa in native_isas():
            found, stats = updated(case, isa, margin_share=margin_share)
            assert_same(found, expected)
            scanned.add(stats["fallback_layers"])
    assert margin_share > 0.1 or len(scanned) > 1, "some bounds hold, some do not"


def test_nan_weights_come_back_with_their_bits() -> None:
    case = make_case(6, SIZES, density=0.2, round=3)
    for w in case.params:
        active = w.view(-1).nonzero().view(-1)[:40]
        w.view(-1).view(torch.int32)[active] = 0x7FA00000 + torch.arange(
            40, dtype=torch.int32
        )  # signalling ones, all different
    expected, _ = updated(case)
    for isa in native_isas():
        assert_same(updated(case, isa, tight_bounds=True)[0], expected)


@pytest.mark.parametrize("counted", [True, False])
def test_most_is_committed_by_the_sweep(counted: bool) -> None:
    """The lists hold what lies between the bounds: with a million weights, less than what is swapped."""
    case = make_case(7, [1_000_003], density=0.1, round=3, counted=counted)
    expected, _ = updated(case)
    assert isinstance(case.k, list)
    for isa in native_isas():
        found, stats = updated(case, isa)
        assert stats["fallback_layers"] == 0
        assert stats["list_entries"] < 1.2 * case.k[0]
        assert_same(found, expected)


@pytest.mark.parametrize("counted", [True, False])
def test_dropped_weights_that_all_come_back(counted: bool) -> None:
    """The gradients of the others are small: none of them grows, and the sample must not let the sweep believe it."""
    case = make_case(9, SIZES, density=0.1, round=3, counted=counted)
    for g, mask in zip(case.grads or [], case.masks(), strict=True):
        g[~mask] *= 1e-6
        g[mask] += 10 * g[mask].sign()
    expected, _ = updated(case)
    for isa in native_isas():
        found, stats = updated(case, isa)
        assert_same(found, expected)
        assert stats["fallback_layers"] == 0


def test_more_is_grown_than_was_inactive() -> None:
    case = make_case(10, SIZES, density=0.8, round=3)
    assert isinstance(case.k, list)
    more = [n - math.ceil(0.8 * n) + k // 2 for n, k in zip(SIZES, case.k, strict=True)]
    case = dataclasses.replace(case, options={"k_grow": more})
    expected, _ = updated(case)
    for isa in native_isas():
        assert_same(updated(case, isa)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numbers", [0.0, 0.001, 0.02, 0.5])
@pytest.mark.parametrize("sizes", [[5000], [40_009, 65_567]], ids=str)
def test_nan_gradients_need_no_scan(dtype: torch.dtype, numbers: float, sizes: list[int]) -> None:
    """Candidates without a score come after all others, by index, whether there are few or nothing else."""
    case = make_case(8, sizes, dtype=dtype, density=0.1, round=3)
    for seed, g in enumerate(case.grads or []):
        g[torch.rand(g.shape, generator=torch.Generator().manual_seed(seed)) >= numbers] = torch.nan
    expected, _ = updated(case)
    for isa in native_isas():
        found, stats = updated(case, isa)
        assert_same(found, expected)
        assert stats["fallback_layers"] == 0 or numbers == 0.02  # close to what is grown, where a bound may miss


def test_room_for_any_number_of_small_layers() -> None:
    """The lists of a layer make room for those of the next: together they would be more than there is memory for."""
    count, n = 3000, 5000
    active = torch.arange(n) % 10 == 3
    bits = ops.pack_mask(active)
    w = torch.randn(count, n, generator=torch.Generator().manual_seed(1)) * active
    g, masks = w.flip(1), bits.repeat(count, 1)
    expected_w, expected_masks = w[-2:].clone(), masks[-2:].clone()
    with backends.use_backend("reference"):
        ops.drop_grow_(list(expected_w), list(g[-2:]), None, list(expected_masks), None, [150] * 2, bonus=None, round=0)
    module = native.load()[0]
    assert module is not None
    with backends.use_backend("native"):
        ops.drop_grow_(list(w), list(g), None, list(masks), None, [150] * count, bonus=None, round=0)
    assert module.last_stats()["fallback_layers"] == 0
    assert_same_bits(w[-2:], expected_w, "weights")
    assert_same_bits(masks[-2:], expected_masks, "masks")
