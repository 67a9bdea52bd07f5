"""The interpreted Triton kernels of the ops that move budgets: the bits of the reference, over few small cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import budget_oracle

from dstee import backends, ops
from dstee.backends import triton as triton_backend
from dstee.encoding import bonus_table
from dstee.testing import DTYPES, FAMILIES, Case, assert_same_bits, make_case, values

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    triton_backend.why_not("drop_grow_", CPU) is not None, reason=triton_backend.why_not("drop_grow_", CPU) or "runs"
)
SIZES = [0, 1, 7, 500, 2049]


def check(call: Callable[[], Any], what: str = "") -> Any:
    """What both found."""
    with backends.use_backend("reference"):
        expected = call()
    with backends.use_backend("triton"):
        assert_same_bits(call(), expected, what)
    return expected


def some_case(seed: int, sizes: list[int] = SIZES) -> Case:
    return make_case(
        seed, sizes, family=FAMILIES[seed % len(FAMILIES)], dtype=DTYPES[seed % 3], density=[0.0, 0.1, 0.5, 1.0][seed % 4],
        round=5, odd=bool(seed % 2),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_count_below(seed: int) -> None:
    case = some_case(seed)
    check(lambda: ops.count_below(case.params, case.mask_bits, torch.tensor([0.3, 0.5, float("nan"), 0.01, 3e38])))


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 12])
def test_growth_scale(seed: int) -> None:
    case = some_case(seed, SIZES if seed < 12 else [8191, 8192, 8193, 30_011, 100])
    assert case.grads is not None
    for k in ([0, 1, 3, 250, 99], torch.tensor([-5, 2**40, 1, 9, 2**62])):
        for round in (0, 32_765, torch.tensor([17])):
            check(lambda k=k, round=round: ops.growth_scale(case.grads, case.mask_bits, k, round))  # type: ignore[misc]


def test_hashed_noise() -> None:
    for n, seed, step in ((0, 5, 2**40), (1, 0, 0), (100, 1, 2), (2100, -(2**63), 10**6)):
        check(lambda n=n, seed=seed, step=step: ops.hashed_noise(n, seed, step))  # type: ignore[misc]
    check(lambda: ops.hashed_noise((50, 60), 7, 8, where=(2**33, 4, 9)))


@pytest.mark.parametrize("seed", [2, 5, 10, 18])
def test_global_keep(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = some_case(seed, [0, 7, 500, 2049, 33])
    case.params[2] = case.params[2].to(torch.float32)  # layers of two dtypes
    if case.momenta is not None:
        case.momenta[2] = case.momenta[2].to(torch.float32)
    scores = [values(FAMILIES[(seed + 1) % 7], p.numel(), rng).view_as(p).to(DTYPES[seed % 3]) for p in case.params]
    active = int(ops.count_active(case.mask_bits).sum())
    for given in (None, [s.to(p.dtype) if seed % 2 else s.float() for s, p in zip(scores, case.params, strict=True)]):
        for total in (0, active // 3, active, torch.tensor([active // 2]), torch.tensor((-1, 2**40)[seed % 2])):

            def keep(given: Any = given, total: Any = total) -> list[list[torch.Tensor]]:
                run = case.clone()
                ops.global_keep_(given, run.params, run.momenta, run.mask_bits, run.counts, total, round=5)
                run.assert_margins()
                return list(run.lists().values())

            check(keep, f"total {total}, {case.description}")


HISTOGRAMS: list[dict[str, Any]] = [
    {},
    {"bonus": None},
    {"grow_seeds": [7, -(2**63), 2**40], "where": [(2**33, 9, 2**20), (0, 1, 1), (5, 2**40, 2**41)], "bonus": None},
    {"bonus_scale": torch.tensor([0.037, 1.0, 1e-6])},
]


@pytest.mark.parametrize("number", range(len(HISTOGRAMS)))
def test_key_histogram(number: int) -> None:
    options, family = HISTOGRAMS[number], ("few_valued", "nonfinite", "normal", "few_valued")[number]
    sizes = [500, 0, 2051]
    case = make_case(3, sizes, family=family, dtype=DTYPES[len(options) % 3], round=5, odd=True, density=0.3)
    ranked: dict[str, Any] = {"bonus": case.bonus, "round": 5, "total": [2**50] * 3} | options
    if "bonus_scale" in options:
        ranked |= {"bonus": bonus_table(0.1, 1.0, 1000, 5, dtype=torch.float64), "drop_scores": case.grads}
    ranking = replace(case, options=ranked)
    drop_from = budget_oracle.some_drop_from(ranking, ranked["total"], np.random.default_rng(number))
    for growth, least in ((False, None), (True, None), (True, drop_from), (True, torch.zeros(3, 3, dtype=torch.int64))):
        prefix = torch.zeros(3, 3, dtype=torch.int64)
        for word, shift in ((0, 24), (0, 16), (0, 0), (1, 24), (2, 16), (2, 8)):
            digit = {"growth": growth, "word": word, "shift": shift, "prefix": prefix, "drop_from": least} | ranked
            given = (case.params, case.grads, case.mask_bits, case.counts)
            found = check(lambda given=given, digit=digit: ops.key_histogram(*given, **digit), str(digit))  # type: ignore[misc]
            prefix[:, word] |= found.argmax(1).long() << shift  # into the fullest bin
