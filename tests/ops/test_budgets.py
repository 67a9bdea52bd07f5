"""The ops that move budgets against the oracle, on every backend that has them: random and adversarial cases."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import budget_oracle, oracle, random_cases

import dstee
from dstee import encoding, ops
from dstee.testing import DTYPES, FAMILIES, Case, Configuration, assert_same_bits, make_case, values

EVERYTHING = ("k_grow", "where", "bonus_scale")


@functools.cache
def expected(seed: int) -> list[oracle.Layer]:
    return oracle.drop_grow(random_cases.uneven(seed))


def check_update(seed: int) -> None:
    case = random_cases.uneven(seed)
    run = case.clone()
    run.drop_grow_()
    skipped = "found_inf" in case.options and float(case.options["found_inf"]) != 0
    oracle.assert_layers(run, expected(seed), updates=case.round + (not skipped))
    run.assert_margins()


@pytest.mark.op("drop_grow_", *EVERYTHING)
@pytest.mark.parametrize("start", range(0, 126, 42))
def test_uneven_updates_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + 42):
        check_update(seed)


@pytest.mark.op("drop_grow_", *EVERYTHING)
def test_threads_and_fallbacks_match_the_oracle(detour: Configuration) -> None:
    for seed in [*range(0, 126, 18), *range(5, 126, 12)]:  # every large case, some small
        check_update(seed)


@pytest.mark.op("drop_grow_", *EVERYTHING)
def test_scaling_the_loss_changes_no_mask(backend: Configuration) -> None:
    """Gradients times a power of two: the scale follows, so that all scores do, exactly."""
    for seed in range(6):
        case = make_case(seed, [130, 9000], family=("normal", "few_valued", "structured")[seed % 3], round=2, density=0.2)
        assert case.grads is not None
        results = []
        for factor in (1.0, 2.0**-12, 2.0**16):
            run = case.clone()
            assert run.grads is not None
            for g in run.grads:
                g.mul_(factor)
            with dstee.use_backend("reference"):
                run.options["bonus_scale"] = ops.growth_scale(run.grads, run.mask_bits, run.k, 2)
            run.bonus = dstee.bonus_table(0.1, 1.0, 700, 2, dtype=torch.float64)
            run.drop_grow_()
            results.append([run.params, run.mask_bits, run.counts])
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])


def some_case(seed: int, sizes: list[int] | None = None) -> tuple[Case, np.random.Generator]:
    rng = np.random.default_rng([seed, 4])
    sizes = sizes or [int(n) for n in rng.choice([0, 1, 7, 8, 33, 64, 500], int(rng.integers(1, 5)))]
    options: dict[str, Any] = dict(
        family=FAMILIES[seed % len(FAMILIES)], dtype=DTYPES[seed % 3], round=int(rng.choice([0, 3, 300]))
    )
    density = float(rng.choice([0, 0.1, 0.5, 1]))
    return make_case(
        seed, sizes, density=density, odd=bool(seed % 2), layout=str(rng.choice(["flat", "matrix"])), **options
    ), rng


@pytest.mark.op("global_keep_")
@pytest.mark.parametrize("start", range(0, 80, 20))
def test_global_keep_matches_the_oracle(backend: Configuration, start: int) -> None:
    for seed in [*range(start, start + 20), 1000 + start]:
        case, rng = some_case(seed, [70_001, 4096, 20_000] if seed >= 1000 else None)
        scores = None
        if rng.random() < 0.7:
            dtype = (torch.float32, case.params[0].dtype)[int(rng.integers(0, 2))]
            scores = [x.clone().copy_(values(FAMILIES[seed % 7], x.numel(), rng).view_as(x)).to(dtype) for x in case.params]
        masks = [m.numpy() for m in case.masks()]
        active = int(sum(m.sum() for m in masks))
        total = int(rng.choice([0, min(1, active), active // 3, active, rng.integers(0, active + 1)]))
        ranked = [np.abs(budget_oracle.floats(p)) for p in case.params] if scores is None else map(budget_oracle.floats, scores)
        kept = budget_oracle.global_keep(list(ranked), masks, total)
        given = torch.tensor([total]) if rng.random() < 0.3 else total
        run = case.clone()
        ops.global_keep_(scores, run.params, run.momenta, run.mask_bits, run.counts, given, round=case.round)
        assert case.momenta is not None and run.momenta is not None and run.counts is not None
        for i, stays in enumerate(map(torch.from_numpy, kept)):
            what = f"layer {i} of {case.description}, total {total}"
            assert_same_bits(encoding.unpack_bits(run.mask_bits[i], stays.numel()), stays, f"mask, {what}")
            for after, before in ((run.params[i], case.params[i]), (run.momenta[i], case.momenta[i])):
                left = encoding.flat(before).masked_fill(torch.from_numpy(masks[i]) & ~stays, 0)
                assert_same_bits(encoding.flat(after), left, f"weight or momentum, {what}")
            stored = torch.where(stays, case.round + 1 - case.N[i], case.N[i]).short()
            assert_same_bits(run.counts[i], stored, f"counter, {what}")
        run.assert_margins()


@pytest.mark.op("growth_scale")
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_growth_scale_matches_the_oracle(backend: Configuration, start: int) -> None:
    for seed in [*range(start, start + 20), 1000 + start, 1001 + start]:
        sizes = ([8191, 8192, 8193], [100_003, 16_384])[seed % 2] if seed >= 1000 else None
        case, rng = some_case(seed, sizes)
        assert case.grads is not None
        k = [int(rng.choice([0, min(1, n), n // 10, n])) for n in (p.numel() for p in case.params)]
        round = int(rng.choice([0, 1, 17, 32_765]))
        given: Any = k
        if rng.random() < 0.5:  # a tensor is clipped where it lies
            given = torch.tensor([-5 if n == 0 else n + int(rng.choice([0, 0, 2**62])) for n in k])
        at = torch.tensor([round]) if rng.random() < 0.3 else round
        ks = [min(max(int(x), 0), p.numel()) for x, p in zip(given, case.params, strict=True)]
        layers = zip(case.grads, case.masks(), ks, strict=True)
        want = [budget_oracle.growth_scale(g, m.numpy(), n, round) for g, m, n in layers]
        got = ops.growth_scale(case.grads, case.mask_bits, given, at)
        assert_same_bits(got, torch.tensor(want, dtype=torch.float32), case.description)


BYTES = [(0, 24), (0, 16), (0, 8), (0, 0), (1, 24), (1, 0), (2, 56), (2, 16), (2, 8), (2, 0)]


def histogram_case(seed: int) -> tuple[Case, list[int], dict[str, Any]]:
    """A case of parts of layers, the sizes of these, and what of the case is ranked."""
    case, rng = some_case(seed)
    sizes = [p.numel() for p in case.params]
    ranked: dict[str, Any] = {}
    if rng.random() < 0.3:
        ranked["drop_scores"] = [x.clone().copy_(values("few_valued", x.numel(), rng).view_as(x)) for x in case.params]
    kind = rng.random()
    if kind < 0.3:
        ranked["grow_seeds"] = [int(x) for x in rng.integers(-(2**63), 2**63 - 1, len(sizes))]
    elif kind < 0.5:
        ranked["grow_signal"] = [x.float().copy_(values("few_valued", x.numel(), rng).view_as(x)) for x in case.params]
    if rng.random() < 0.3:
        case = replace(case, bonus=None)
    elif rng.random() < 0.5:
        case = replace(case, bonus=dstee.bonus_table(0.1, 1.0, 1000, case.round, dtype=torch.float64))
        ranked["bonus_scale"] = torch.full((len(sizes),), 0.037)
    totals = sizes
    if rng.random() < 0.6:
        runs = [int(rng.integers(1, n + 2)) for n in sizes]
        ranked["where"] = [(int(rng.integers(0, 2**34)), run, run + int(rng.integers(0, 2**20))) for run in runs]
        totals = [b + n // r * p + r + 9 for n, (b, r, p) in zip(sizes, ranked["where"], strict=True)]
    return replace(case, options=ranked), totals, ranked


@pytest.mark.op("key_histogram")
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_key_histograms_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + 20):
        case, totals, ranked = histogram_case(seed)
        layers = range(len(totals))
        rng = np.random.default_rng([seed, 5])
        thresholds = [budget_oracle.some_drop_from(case, totals, rng) for _ in range(2)]
        for growth, drop_from in ((False, None), (True, None), *((True, t) for t in thresholds)):
            least = [None] * len(totals) if drop_from is None else [tuple(row) for row in drop_from.tolist()]
            prefix = torch.zeros(len(totals), 3, dtype=torch.int64)
            for word, shift in BYTES:
                digit: Any = dict(growth=growth, word=word, shift=shift)
                known = dict(bonus=case.bonus, round=case.round, total=totals, prefix=prefix, drop_from=drop_from)
                got = ops.key_histogram(case.params, case.grads, case.mask_bits, case.counts, **known, **digit, **ranked)
                prefixes = prefix.tolist()
                want = [
                    budget_oracle.histogram(case, i, totals[i], prefix=prefixes[i], drop_from=least[i], **digit) for i in layers
                ]
                assert_same_bits(got, torch.tensor(want, dtype=torch.int32), f"{digit} from {least} of {case.description}")
                prefix[:, word] |= got.argmax(1).long() << shift  # into the fullest bin


@pytest.mark.op("count_below")
def test_count_below_matches_counting(backend: Configuration) -> None:
    for seed in range(40):
        case, rng = some_case(seed)
        limits = rng.choice(np.array([0, -1, 1e-45, 0.01, 0.25, 0.5, 3e38, np.inf, np.nan], np.float32), len(case.params))
        with np.errstate(invalid="ignore"):
            want = [
                int((np.abs(budget_oracle.floats(p))[m.numpy()] < limit).sum())
                for p, m, limit in zip(case.params, case.masks(), limits, strict=True)
            ]
        assert ops.count_below(case.params, case.mask_bits, torch.from_numpy(limits)).tolist() == want, case.description
    large = torch.linspace(-1, 1, 200_001)
    bits = encoding.pack_bits(torch.arange(200_001) % 3 == 0)
    expected = int((large[::3].abs() < 0.25).sum())
    assert ops.count_below([large], [bits], torch.tensor([0.25])).tolist() == [expected]


@pytest.mark.op("hashed_noise_")
def test_noise_is_a_hash(backend: Configuration) -> None:
    for seed, step, n in ((0, 0, 1), (1, 2, 100), (-(2**63), 10**6, 37), (5, 2**40, 0)):
        want = torch.tensor(budget_oracle.noise(list(range(n)), seed, step), dtype=torch.float32)
        assert_same_bits(ops.hashed_noise(n, seed, step), want, f"{seed}, {step}")
    places = [2**33 + i // 4 * 9 + i % 4 for i in range(30)]
    part = ops.hashed_noise((5, 6), 7, 8, where=(2**33, 4, 9))
    assert_same_bits(part.view(-1), torch.tensor(budget_oracle.noise(places, 7, 8), dtype=torch.float32))
    many = ops.hashed_noise(200_000, 3, 4)
    assert abs(float(many.mean())) < 0.005 and abs(float(many.var()) - 1 / 3) < 0.005 and float(many.abs().max()) < 2
    assert abs(float((many[1:] * many[:-1]).mean())) < 0.005
    again = ops.hashed_noise(200_000, 3, 5)
    assert abs(float((many * again).mean())) < 0.005, "steps have nothing to do with each other"
