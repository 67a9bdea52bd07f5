"""The compiled CPU kernels of the ops that move budgets, where layers are many pieces and threads share them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dstee import backends, encoding, ops, rules
from dstee.backends import native
from dstee.testing import Case, Configuration, assert_same_bits, make_case, values

pytestmark = pytest.mark.skipif(native.load()[0] is None, reason=native.load()[1])
ISAS = native.build_info().get("cpu_features", [])
SIZES = [140_009, 0, 33, 65_536, 70_001]
PLACES = [(5, 140_009, 140_009), (0, 1, 1), (3, 4, 9), (2**32 - 99, 65_530, 2**20), (7, 17, 18)]


@functools.cache
def many_pieces(family: str, dtype: torch.dtype) -> Case:
    return make_case(3, SIZES, family=family, dtype=dtype, density=0.4, swap=0.2, round=9, odd=True)


def unaligned(t: Tensor) -> Tensor:
    """The same values one byte off; memory of no bytes cannot be."""
    if t.numel() == 0:
        return t
    return torch.frombuffer(bytearray(t.numel() * t.element_size() + 1), dtype=t.dtype, offset=1).copy_(t)


def results(case: Case, total: int, signed: bool) -> dict[str, list[Tensor]]:
    """What every op that moves budgets makes of the case, after which it is another one."""
    scores = [values("few_valued", p.numel(), np.random.default_rng(i)) for i, p in enumerate(case.params)] if signed else None
    noise = [ops.hashed_noise(n, 5, 6, where=place) for n, place in zip(SIZES, PLACES, strict=True)]
    found = {"count_below": [ops.count_below(case.params, case.mask_bits, torch.tensor([0.25, 1.0, 0.0, 1e-3, torch.inf]))]}
    found["growth_scale"] = [ops.growth_scale(case.grads or [], case.mask_bits, torch.tensor([2**40, 0, 5, 99, 700]), 9)]
    found |= {"hashed_noise": noise, "key_histogram": histograms(case)}
    ops.global_keep_(scores, case.params, case.momenta, case.mask_bits, case.counts, total, round=case.round)
    return found | case.lists()


def histograms(case: Case) -> list[Tensor]:
    """Of the first words' high bytes, then of a byte of each word behind the median candidate's. The growth takes back the
    active weights from the key of one on, whose ties lie before and behind it."""
    given: dict[str, Any] = dict(bonus=case.bonus, round=case.round, where=PLACES)
    given["total"] = [base + n // run * pitch + run for n, (base, run, pitch) in zip(SIZES, PLACES, strict=True)]
    keys = torch.zeros(len(SIZES), 3, dtype=torch.int64)
    for i, (p, mask) in enumerate(zip(case.params, case.masks(), strict=True)):
        if mask.any():
            n = int(mask.nonzero()[mask.sum() // 3])
            keys[i, 0] = rules.drop_key(encoding.flat(p))[n]
            keys[i, 2] = given["total"][i] - 1 - rules.global_index(p.numel(), list(PLACES[i]), p.device)[n]
    found = []
    for growth, drop_from in ((False, None), (True, None), (True, keys)):
        prefix = torch.zeros(len(SIZES), 3, dtype=torch.int64)
        for word, shift in ((0, 24), (0, 16), (0, 8), (0, 0), (1, 24), (1, 16), (1, 8), (1, 0), (2, 16)):
            digit = dict(growth=growth, word=word, shift=shift, prefix=prefix, drop_from=drop_from)
            counted = ops.key_histogram(case.params, case.grads, case.mask_bits, case.counts, **given, **digit)
            above = counted.flip(1).cumsum(1).flip(1)
            prefix[:, word] |= ((2 * above >= above[:, :1]).sum(1) - 1) << shift
            found.append(counted)
    return found


@functools.cache
def expected(family: str, dtype: torch.dtype, share: float, signed: bool) -> tuple[int, dict[str, list[Tensor]]]:
    case = many_pieces(family, dtype).clone()
    total = int(share * int(ops.count_active(case.mask_bits).sum()))
    with backends.use_backend("reference"):
        return total, results(case, total, signed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("family", "dtype", "share", "signed"),
    [
        ("equal", torch.float32, 0.63, False),  # the last that stays lies within a piece of ties
        ("nonfinite", torch.bfloat16, 0.97, False),  # NaN is among those that stay
        ("few_valued", torch.float16, 0.5, True),
        ("normal", torch.float32, 0.0, True),
        ("denormal", torch.float32, 1.0, False),
    ],
)
def test_pieces_and_threads(isa: str, family: str, dtype: torch.dtype, share: float, signed: bool) -> None:
    total, wanted = expected(family, dtype, share, signed)
    for threads in (1, 3):
        case = many_pieces(family, dtype).clone()
        with Configuration("native", isa, threads).active():
            got = results(case, total, signed)
        case.assert_margins()
        for name, tensors in wanted.items():
            assert_same_bits(got[name], tensors, f"{name}, {threads} threads, {case.description}")


@pytest.mark.parametrize("isa", ISAS)
def test_unaligned_memory(isa: str) -> None:
    total, wanted = expected("few_valued", torch.float16, 0.5, True)
    case = many_pieces("few_valued", torch.float16).clone()
    for tensors in case.lists().values():
        tensors[:] = [unaligned(t) for t in tensors]
    with Configuration("native", isa).active():
        got = results(case, total, True)
    for name, tensors in wanted.items():
        assert_same_bits(got[name], tensors, name)
