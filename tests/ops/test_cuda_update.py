"""drop_grow_ of the CUDA kernels on the host harness, against the reference: layers on both sides of the limit of a small
layer, missed thresholds, full lists, grids of any size, launches that fail."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from cuda_host import build
from cuda_host.backend import HostConfiguration, compare, kept_workspaces, update
from support import random_cases

from dstee import backends, encoding, ops
from dstee.schedule import CosineDrop
from dstee.testing import DTYPES, FAMILIES, Case, assert_same_bits, make_case, place, values

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(bool(build.why_not()), reason=build.why_not() or "there is a compiler"),
]

RULE = ops.SGDRule(lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
SMALL = 1 << 14  # weights of the largest layer that one block updates
SIZES = (SMALL - 1, SMALL, SMALL + 1, SMALL + 8, 32768, 40009, 70001)
MODES = ("plain", "plain", "random", "momenta", "drop_scores")
SWAPS = ("0", "1", "all", "share", "tensor")
DENSITIES = (0.02, 0.05, 0.3, 0.9)
FUSED = ("no", "yes", "no momentum", "first step")


@functools.cache
def module() -> ModuleType:
    return build.load(build.PLAIN)


def fell_back(n: int) -> bool:
    """Whether the latest update read a layer of n weights in its last launch: each scan is 2 n bytes at least, and three are
    needed at least. Without a fallback that launch reads a few hundred undecided weights."""
    return module().traffic()["select_grow_kernel"]["loaded"] > 4 * n


# --- combinations of all options -----------------------------------------------------------------------------------------


def facts(number: int) -> dict[str, Any]:
    """What case ``number`` is about."""
    rng = np.random.default_rng([number, 7])
    lists: dict[str, Any] = dict(
        density=DENSITIES, reset_regrown=(False, True), fused=FUSED, swap=SWAPS, round=(0, 1, 31, 32765), odd=(False, True),
    )  # fmt: skip
    drawn = {name: some[int(rng.integers(0, len(some)))] for name, some in lists.items()}
    drawn |= dict(regrow=number % 2 == 0, mode=MODES[number // 2 % 5], size=SIZES[number // 10 % len(SIZES)])
    return {"family": FAMILIES[number % len(FAMILIES)], "dtype": DTYPES[number // len(FAMILIES) % 3], **drawn}


def swaps(kind: str, active: list[int], share: list[int]) -> list[int] | torch.Tensor:
    if kind == "tensor":  # clipped where it lies
        return torch.tensor([(a // 2, a + 3, 2**40, -1)[i % 4] for i, a in enumerate(active)])
    return {"0": [0] * len(active), "1": [1] * len(active), "all": active}.get(kind, share)


def spread(number: int) -> Case:
    f = facts(number)
    rule = {"no": None, "yes": RULE, "no momentum": ops.SGDRule(lr=0.1, weight_decay=1e-2)}.get(
        f["fused"], replace(RULE, nesterov=False, first_step=True)
    )
    case = make_case(
        number, [f["size"], SIZES[number % len(SIZES)]], family=f["family"], dtype=f["dtype"], density=f["density"],
        round=f["round"], odd=f["odd"], sgd=rule, counted=number % 4 > 0, regrow=f["regrow"], reset_regrown=f["reset_regrown"],
    )  # fmt: skip
    assert isinstance(case.k, list)
    options = dict(case.options)
    rng = np.random.default_rng(number)
    if f["mode"] == "random":
        options["grow_seeds"] = [977 * number - 2**62, -number]
    elif f["mode"] == "momenta" and f["fused"] != "first step":
        options["grow_signal"] = case.momenta
    elif f["mode"] == "drop_scores":
        options["drop_scores"] = [place(values(f["family"], p.numel(), rng), p, odd=f["odd"]) for p in case.params]
    momenta = None if rule is not None and rule.momentum == 0 and "grow_signal" not in options else case.momenta
    active = [int(m.sum()) for m in case.masks()]
    return replace(case, k=swaps(f["swap"], active, case.k), momenta=momenta, options=options)


NUMBERS = range(6 * len(FAMILIES))


def test_the_cases_cover_every_option() -> None:
    drawn = [facts(number) for number in NUMBERS]
    for name, all_values in (("size", SIZES), ("density", DENSITIES), ("mode", MODES), ("swap", SWAPS), ("fused", FUSED)):
        assert {f[name] for f in drawn} == set(all_values), name
    assert {(f["family"], f["dtype"]) for f in drawn} == {(family, dtype) for family in FAMILIES for dtype in DTYPES}
    assert len({(f["regrow"], f["mode"], f["size"] > SMALL) for f in drawn}) == 2 * 4 * 2
    assert len({(f["regrow"], f["reset_regrown"], f["fused"] != "no") for f in drawn}) == 8


@pytest.mark.parametrize("number", NUMBERS)
def test_layers_around_the_small_limit_equal_the_reference(number: int) -> None:
    compare(spread(number), HostConfiguration(seed=number))


@pytest.mark.parametrize("seed", range(8))
def test_updates_equal_the_reference_under_every_schedule(seed: int) -> None:
    """Small layers, and large ones of several tiles."""
    for number in range(12):
        compare(random_cases.update(31 * number), HostConfiguration(seed=100 * seed + number))
    for family in (FAMILIES[seed], FAMILIES[-1 - seed]):
        case = make_case(seed, [40009, 33, 20001], family=family, round=31, sgd=RULE)
        compare(case, HostConfiguration(seed=seed))


# --- the fallback --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_needs_the_fallback(family: str) -> None:
    """It is for accidents: none of the hostile families needs it."""
    for seed, n in enumerate((70001, SMALL + 8, 40009)):
        options = [dict(sgd=RULE), dict(regrow=False, counted=False), dict()][seed]
        case = make_case(seed, [n], family=family, dtype=DTYPES[seed], density=0.05, round=31, **options)
        with HostConfiguration(seed=seed).active():
            module().clear_traffic()
            case.drop_grow_()
            assert not fell_back(n), case.description


LIMITS = [dict(tight_bounds=True), dict(list_share=0.3), dict(list_share=0.02), dict(list_share=0.0)]
FALLBACKS: list[dict[str, Any]] = [
    dict(family="normal", sgd=RULE),
    dict(family="few_valued", dtype=torch.bfloat16, regrow=False),
    dict(family="equal", sgd=RULE, reset_regrown=True, counted=False),
    dict(family="nonfinite", dtype=torch.float16, sgd=RULE),
    dict(family="absorbed", reset_regrown=True),
    dict(family="wide", grow_seeds=[5]),
]


@pytest.mark.parametrize("limits", LIMITS, ids=lambda h: "-".join(f"{k}{v}" for k, v in h.items()))
def test_the_fallback_equals_the_reference(limits: dict[str, Any]) -> None:
    for number, options in enumerate(FALLBACKS):
        case = make_case(number, [(40009, SMALL + 1)[number % 2]], density=0.05, round=31, **options)
        configuration = HostConfiguration(seed=number, **limits)
        module().clear_traffic()
        compare(case, configuration)
        # A share of 0.3 is too little room for some only.
        assert fell_back(case.params[0].numel()) or limits == dict(list_share=0.3), f"{configuration}: {case.description}"


@pytest.mark.parametrize("limits", LIMITS, ids=lambda h: "-".join(f"{k}{v}" for k, v in h.items()))
def test_some_layers_of_a_call_fall_back_and_others_do_not(limits: dict[str, Any]) -> None:
    for number in range(6):
        case = make_case(number, [20000, 300, 40009, SMALL + 1, 32768], density=0.1, round=31, sgd=RULE if number % 2 else None)
        assert isinstance(case.k, list)
        k = [k if i % 2 else k // (10**number) for i, k in enumerate(case.k)]
        compare(replace(case, k=k), HostConfiguration(seed=number, **limits))


@pytest.mark.parametrize("value", [math.nan, 0.0, math.inf])
def test_equal_weights_that_end_with_a_chunk(value: float) -> None:
    """300 of them in each stretch of 4,096 weights, of which the first k are dropped: NaN is the largest key that there is."""
    case = make_case(1, [40009, SMALL], density=0.02, round=3)
    k = []
    for p, bits in zip(case.params, case.mask_bits, strict=True):
        i = torch.arange(p.numel()).view(p.shape)
        equal = i % 4096 < 300
        p[equal] = value
        bits.copy_(encoding.pack_bits((equal | encoding.unpack_bits(bits, p.numel()).view(p.shape)).flatten()))
        k.append(600)
    for more in (-1, 0, 1, 300):
        compare(replace(case, k=[n + more for n in k]), HostConfiguration())


# --- grids, launches, failures -------------------------------------------------------------------------------------------


def test_grids_of_any_size_give_the_same_bits() -> None:
    cases = [
        make_case(1, [70001, 500, SMALL + 1, 40009], density=0.1, round=31, sgd=RULE),
        make_case(2, [40009, SMALL, 20000], family="few_valued", density=0.3, round=4, regrow=False),
    ]
    for case in cases:
        expected = update(case, "reference")
        for processors in (*range(1, 9), 64):
            for seed in (processors, processors + 100):
                with HostConfiguration(seed=seed, processors=processors).active():
                    actual = update(case, "cuda-host")
                for name, tensors in expected.lists().items():
                    assert_same_bits(actual.lists()[name], tensors, f"{name}, {processors} processors, seed {seed}")


@pytest.mark.parametrize("offset", range(4))
def test_masks_that_start_and_end_within_a_word(offset: int) -> None:
    """Atomics change whole words; here the first and last bits flip, which may share their word with other bytes."""
    for n in range(SMALL + 1, SMALL + 34, 11):
        case = make_case(offset, [n], density=0.3, round=4, regrow=False)
        for i in (*range(40), *range(n - 40, n)):
            case.params[0][i], case.grads[0][i] = 1e-20, 1e3 + i
        case.params[0].mul_(case.masks()[0])
        bits = case.mask_bits[0].clone()
        case = replace(case, mask_bits=[place(bits, odd=offset)], k=[2000])
        compare(case, HostConfiguration(seed=offset))
        run = case.clone()
        with HostConfiguration(seed=offset).active():
            run.drop_grow_()
        changed = run.mask_bits[0] ^ bits
        assert bool((changed[:4] == 0xFF).all()) and bool((changed[-5:-1] == 0xFF).all())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([70001, 40009, SMALL + 1], 5),
        ([*[600, 9, 0] * 17, 20000, SMALL + 1, SMALL], 5),
        ([*[40, 0, 0, 0, 0, 7] * 100, 20000, 30000, SMALL + 1], 5),
        ([SMALL, 600, 0], 1),
        ([*[0, 0, 0, 0, 5] * 256], 1),
        ([*[0] * 1279, 20000], 5),
        ([5, *[0] * 1279, 5], 2),  # arguments for 1,280 layers fit one launch
        ([20000, *[0, 0, 0, 0, 5] * 256, 20000], 6),
    ],
    ids=["3", "54", "600", "small", "1280 small", "1280", "1281 small", "1281"],
)
def test_launches_of_a_call(sizes: list[int], expected: int) -> None:
    case = make_case(3, sizes, density=0.2, round=3, sgd=RULE)
    module().clear_traffic()
    compare(case, HostConfiguration(seed=3), explored=False)
    assert sum(row["launches"] for row in module().traffic().values()) == expected


@pytest.mark.long
@pytest.mark.parametrize("sizes", [[0, 0, *[9, 0, 20] * 42, 0, 7], [7] + [0] * 1277 + [0, 5, 9, 0, 20]])
def test_more_layers_than_one_launch_takes(sizes: list[int]) -> None:
    """Each launch finds its own part of k, of the seeds and of the gradients; empty layers lie at the seams."""
    case = make_case(11, sizes, density=0.5, round=4, sgd=ops.SGDRule(0.1, 0.9))
    compare(case, HostConfiguration(seed=1))
    random = dict(grow_seeds=[977 * i - 2**40 for i in range(len(sizes))])
    compare(replace(case, k=torch.tensor(case.k), bonus=None, options=random), HostConfiguration(seed=2))


@pytest.mark.parametrize("successes", range(5))
def test_memory_left_by_a_failed_call_changes_nothing(successes: int) -> None:
    """Every launch but the first reads what earlier ones wrote, never what was in the memory before."""
    for seed, family in enumerate(("normal", "few_valued", "nonfinite")):
        case = make_case(seed, [40009, 700, SMALL + 1], family=family, density=0.1, round=31, sgd=RULE)
        expected = update(case, "reference")
        run = case.clone()
        with kept_workspaces(), HostConfiguration(seed=seed).active():
            for _ in range(2):
                module().abort_after(successes)
                with pytest.raises(RuntimeError, match="aborted by the test"):
                    run.drop_grow_()
                for name, tensors in case.lists().items():  # in place: the next call finds the same layers
                    for ours, pristine in zip(run.lists()[name], tensors, strict=True):
                        ours.copy_(pristine)
            run.drop_grow_()
        for name, tensors in expected.lists().items():
            assert_same_bits(run.lists()[name], tensors, f"{name} after a failure, {case.description}")


@pytest.mark.parametrize("sgd", [None, RULE], ids=["update", "fused"])
def test_found_inf_changes_nothing(sgd: ops.SGDRule | None) -> None:
    for dtype in (torch.float32, torch.float16):
        for value in (1.0, math.inf, 0.0):
            flag = torch.full((), value, dtype=dtype)
            case = make_case(8, [40009, 900, SMALL + 1], density=0.1, round=9, sgd=sgd, found_inf=flag)
            run = case.clone()
            with HostConfiguration(seed=8).active():
                run.drop_grow_()
            same = all(torch.equal(a, b) for a, b in zip(run.mask_bits, case.mask_bits, strict=True))
            assert same == (value != 0.0)
            if value:
                for name, tensors in case.lists().items():
                    assert_same_bits(run.lists()[name], tensors, name)
            else:
                compare(case, HostConfiguration(seed=9))


def test_scalars_of_another_dtype_are_refused() -> None:
    case = make_case(12, [40], found_inf=torch.zeros((), dtype=torch.float8_e4m3fn))
    before = case.clone()
    with HostConfiguration().active(), pytest.raises(RuntimeError, match="not float32, float64, bfloat16 or float16"):
        case.drop_grow_()
    assert_same_bits(case.params + case.mask_bits, before.params + before.mask_bits)


# --- a whole training ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_three_hundred_updates_in_a_row() -> None:
    """Errors of counters, masks or zeros would add up."""
    rounds, drop = 300, CosineDrop(0.5)
    expected = make_case(21, [600, SMALL + 5], density=0.1, sgd=RULE)
    actual = expected.clone()
    active = [int(m.sum()) for m in expected.masks()]
    generator = torch.Generator().manual_seed(21)
    for round in range(rounds):
        grads = [torch.randn(p.numel(), generator=generator) * 0.01 for p in expected.params]
        now: dict[str, Any] = dict(
            grads=grads,
            k=[math.ceil(drop(round, rounds) * a) for a in active],
            bonus=encoding.bonus_table(1e-3, 1.0, 100 * (round + 1), round),
            round=round,
            sgd=RULE if round % 3 else None,
        )
        expected, actual = replace(expected, **now), replace(actual, **now)
        with backends.use_backend("reference"):
            expected.drop_grow_()
        with HostConfiguration(seed=round).active():
            actual.drop_grow_()
        for name, tensors in expected.lists().items():
            assert_same_bits(actual.lists()[name], tensors, f"{name} after update {round}")
    assert [int(m.sum()) for m in actual.masks()] == active
