"""drop_grow_ on every backend against the oracle: random and hostile updates, long runs, aliased inputs, large layers."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import oracle, random_cases

from dstee import backends, encoding, ops, rules
from dstee.backends import native
from dstee.testing import FAMILIES, Case, Configuration, assert_same_bits, make_case, values

CHUNK = 63
SEEDS = 504  # at least 500 updates for every backend
UNTOUCHED = ("grads", "drop_scores", "grow_signal")


@functools.cache
def expected(seed: int) -> list[oracle.Layer]:
    return oracle.drop_grow(random_cases.update(seed))


def check(case: Case, layers: list[oracle.Layer]) -> None:
    """Runs the update on a copy and compares all that is left with the oracle, what must not change included."""
    run = case.clone()
    run.drop_grow_()
    skipped = "found_inf" in case.options and float(case.options["found_inf"]) != 0
    oracle.assert_layers(run, layers, updates=case.round + (not skipped))
    run.assert_margins()
    written = {id(t) for name in ("params", "momenta") for t in case.lists().get(name, [])}
    for name in UNTOUCHED:
        for before, after in zip(case.lists().get(name, []), run.lists().get(name, []), strict=True):
            if id(before) not in written:
                assert_same_bits(after, before, f"{name} of {case.description}")


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_random_updates_match_the_oracle(backend: Configuration, start: int) -> None:
    for seed in range(start, start + CHUNK):
        check(random_cases.update(seed), expected(seed))


@pytest.mark.parametrize("start", range(0, SEEDS, 252))
def test_threads_and_fallbacks_match_the_oracle(detour: Configuration, start: int) -> None:
    for seed in [*range(start, start + 252, 18), *range(start + 5, start + 252, 12)]:  # every large case, some small
        check(random_cases.update(seed), expected(seed))


@functools.cache
def hostile(family: str) -> tuple[Case, list[oracle.Layer]]:
    """Layers beyond the limits at which kernels switch from one block to sampled bounds and several chunks."""
    case = make_case(7, [70001, 4096, 140009, 33], family=family, density=0.05, round=31, layout="matrix")
    return case, oracle.drop_grow(case)


@pytest.mark.parametrize("family", FAMILIES)
def test_large_layers_of_every_family(backend: Configuration, family: str) -> None:
    check(*hostile(family))


@pytest.mark.parametrize("family", ["equal", "dead_units", "absorbed", "structured", "clustered"])
def test_large_layers_with_threads_and_fallbacks(detour: Configuration, family: str) -> None:
    check(*hostile(family))
    module = native.load()[0]
    assert module is not None
    if detour.fallback != "none":
        assert module.last_stats()["fallback_layers"] > 0, "the detour was asked for but not taken"


def at_round(case: Case, q: int, rounds: int) -> Case:
    """The arguments of update q of a run: new gradients, falling k, the bonus of that time."""
    rng = np.random.default_rng(q)
    for g in case.grads or []:
        g.copy_(values(FAMILIES[q % len(FAMILIES)], g.numel(), rng).nan_to_num(0.5).clamp(-8, 8).to(g.dtype))
    fraction = 0.5 * (1 + math.cos(math.pi * (q % rounds) / rounds))
    k = [math.ceil(fraction * int(m.sum())) for m in case.masks()]
    return replace(case, k=k, bonus=encoding.bonus_table(1e-3, 1.0, 100 * (q + 1), q), round=q)


@functools.cache
def trajectory(first: int, rounds: int) -> list[list[oracle.Layer]]:
    """What each update of the run must leave, from the oracle's own states alone."""
    case, states = run_start(first), []
    for q in range(first, first + rounds):
        case = at_round(case, q, rounds)
        states.append(oracle.drop_grow(case))
        case = oracle.stored(case, states[-1], updates=q + 1)
    return states


def run_start(first: int) -> Case:
    rule = ops.SGDRule(lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return make_case(11, [257, 640], density=0.1, round=first, sgd=rule)


@pytest.mark.parametrize(("first", "rounds"), [(0, 300), (32_746, 20)])
def test_a_run_counts_like_eager_counters(backend: Configuration, first: int, rounds: int) -> None:
    """Updates in a row, up to the last one that int16 counters allow: all state equals N += M at every round."""
    case = run_start(first)
    for q, layers in zip(range(first, first + rounds), trajectory(first, rounds), strict=True):
        case = at_round(case, q, rounds)
        case.drop_grow_()
        oracle.assert_layers(case, layers, updates=q + 1)
    assert case.counts is not None
    for i, p in enumerate(case.params):
        N = ops.decode_counts(case.counts[i], case.mask_bits[i], first + rounds, p.shape)
        assert N.tolist() == layers[i].N.tolist()
    explored = ops.count_explored(case.counts, case.mask_bits).tolist()
    assert explored == [int((layer.N > 0).sum()) for layer in layers]


@pytest.mark.parametrize("start", [0, 2**32 - 5, 2**32, 2**33 + 2**31, 2**40, 2**63 - 4])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x1234_5678_9ABC_DEF0])
def test_the_hash_counts_positions_beyond_32_bits(seed: int, start: int) -> None:
    """A layer of 2^32 weights fits no test; the hash adds seed and index half by half, so a seed can stand for an offset."""
    for index in range(start, start + 9):
        shifted = (seed + (index // 2**32 << 32)) % 2**64
        shifted -= 2**64 if shifted >= 2**63 else 0
        within = index % 2**32
        if within > 64:  # reach a high index within its 2^32 block by the low half of the seed
            shifted = (shifted // 2**32 << 32) | (shifted % 2**32 + within) % 2**32
            within = 0
        got = float(rules.random_signal(shifted, within + 1, torch.device("cpu"))[within])
        assert got == oracle.random_number(seed, index), f"seed {seed}, index {index}"


def test_a_round_in_a_tensor_is_the_same_round(backend: Configuration) -> None:
    """With a bonus table that is longer than the round needs, as a captured graph holds it."""
    for round in (0, 3, 40, 32_765):
        case = make_case(6, [65, 4097], density=0.2, round=round)
        other = case.clone()
        if case.bonus is not None:
            other.bonus = torch.cat([case.bonus, torch.full((3,), 1e30)])
        case.drop_grow_()
        other.round = torch.tensor([round])  # type: ignore[assignment]
        other.drop_grow_()
        for name, tensors in case.lists().items():
            assert_same_bits(other.lists()[name], tensors, f"round {round}: {name}")


def test_run_to_run_and_layer_order_change_nothing(backend: Configuration) -> None:
    """The same layer gives the same bits alone, in another place of the list, and again."""
    case = make_case(5, [4097, 1024, 70001], family="few_valued", density=0.2, round=3)
    together, again = case.clone(), case.clone()
    together.drop_grow_()
    again.drop_grow_()
    for name, tensors in together.lists().items():
        assert_same_bits(again.lists()[name], tensors, name)
    turned = case.clone()
    for tensors in turned.lists().values():
        tensors.reverse()
    turned = replace(turned, k=list(reversed(list(turned.k))))
    turned.drop_grow_()
    for name, tensors in together.lists().items():
        assert_same_bits(list(reversed(turned.lists()[name])), tensors, name)


@pytest.mark.parametrize("absorbed", [False, True], ids=["by score", "by gradient"])
@pytest.mark.parametrize("k", [120, 320])
def test_unlucky_samples(backend: Configuration, k: int, absorbed: bool) -> None:
    """All that should grow lies in a few short runs, so that a sample of neighbours sees now none, now far too much of it.

    The dropped weights, which compete again, come next: a list that lacks some of the best is filled up with them. With a
    huge bonus for all, scores tie and only the gradients tell the candidates apart.
    """
    n = 40_009
    arguments, wanted = [], []
    for layer in range(8):
        rng = np.random.default_rng(layer)
        best = np.zeros(n, dtype=bool)
        for start in rng.choice(n // 40, k // 40, replace=False) * 40:
            best[start : start + 40] = True
        mask = ~best & (rng.random(n) < 0.05)
        w = torch.from_numpy((rng.standard_normal(n) * mask).astype(np.float32))
        g = rng.random(n, dtype=np.float32) / 100 + np.float32(0.2) * mask + np.float32(0.4) * best
        active = np.flatnonzero(mask)
        dropped = active[np.argsort(np.abs(w.numpy())[active], kind="stable")[:k]]
        after = mask | best
        after[dropped] = False
        wanted.append(torch.from_numpy(after))
        arguments.append(
            (w, torch.from_numpy(g), encoding.pack_bits(torch.from_numpy(mask)), torch.zeros(n, dtype=torch.int16))
        )
    for q in range(1 if backend.backend == "reference" else 40):  # the round is what a sample's places depend on
        params, grads, bits, counts = ([t.clone() for t in tensors] for tensors in zip(*arguments, strict=True))
        bonus = torch.full((q + 2,), 2.0**24) if absorbed else None
        ops.drop_grow_(params, grads, None, bits, counts, [k] * 8, bonus=bonus, round=q)
        for i, expected_mask in enumerate(wanted):
            assert_same_bits(encoding.unpack_bits(bits[i], n), expected_mask, f"mask of layer {i}, round {q}")


@pytest.mark.parametrize("call", [Case.drop_grow_, Case.masked_sgd_], ids=["drop_grow_", "masked_sgd_"])
def test_layers_wall_to_wall_in_one_buffer(backend: Configuration, call: Callable[[Case], None]) -> None:
    """Flat parameters: what lies directly behind the last weight of a layer is the next layer, perhaps another thread's."""
    sizes = [65537, 13, 65, 1, 40009, 7, 33]
    apart = make_case(6, sizes, density=0.3, round=4, sgd=ops.SGDRule(0.1, 0.9, weight_decay=0.1))
    together = apart.clone()
    for tensors in together.lists().values():
        tensors[:] = torch.cat(tensors).split([t.numel() for t in tensors])
    call(apart)
    call(together)
    for name, tensors in apart.lists().items():
        assert_same_bits(together.lists()[name], tensors, name)


def test_the_number_of_active_weights_never_changes(backend: Configuration) -> None:
    for seed in range(0, SEEDS, 7):
        case = random_cases.update(seed).clone()
        before = ops.count_active(case.mask_bits)
        case.drop_grow_()
        assert_same_bits(ops.count_active(case.mask_bits), before, case.description)
        for m, p in zip(case.masks(), case.params, strict=True):
            assert not bool(encoding.flat(p)[~m].any()), f"a weight outside the mask is not 0: {case.description}"


@pytest.mark.parametrize("round", [0, 5, 7, 29, 31, 70])  # tables of 2..72 entries, around what fits a kernel's registers
def test_counters_that_no_round_allows_take_the_last_entry(backend: Configuration, round: int) -> None:
    case = make_case(round, [5003, 40_009], density=0.3, swap=0.9, round=round)
    assert case.counts is not None
    case.bonus = torch.rand(round + 2, generator=torch.Generator().manual_seed(round))
    for i, counts in enumerate(case.counts):
        counts.copy_(torch.from_numpy(np.random.default_rng([round, i]).integers(-(2**15), 2**15, counts.numel())))
        counts[::2] %= 2 * round + 3  # half of them near the table's end
    expected, run = case.clone(), case.clone()
    with backends.use_backend("reference"):
        expected.drop_grow_()
    run.drop_grow_()
    for name, tensors in expected.lists().items():
        assert_same_bits(run.lists()[name], tensors, name)


def test_an_empty_list_is_no_work(backend: Configuration) -> None:
    ops.drop_grow_([], [], [], [], [], [], bonus=None, round=0)
    ops.drop_grow_([], None, None, [], None, torch.zeros(0, dtype=torch.int64), bonus=None, round=0)


@pytest.mark.parametrize("k", [299, 300, 301, 600, 650])
@pytest.mark.parametrize("value", [math.nan, 0.0, -0.0, math.inf, 0.25])
def test_equal_weights_that_end_with_a_chunk(backend: Configuration, value: float, k: int) -> None:
    """300 of them in each stretch of 65,536 weights, of which the first k are dropped: NaN is the largest key that there is."""
    n, stretch = 140009, 1 << 16
    i = torch.arange(n)
    active = (i % stretch < 300 * 97) & (i % stretch % 97 == 0) & (i < 2 * stretch)
    w = torch.where(active, torch.tensor(value), torch.zeros(()))
    larger = (i % 131 == 5) & ~active
    w[larger] = 3.0 if math.isfinite(value) else (math.inf if math.isnan(value) else -math.inf)
    g = torch.randn(n, generator=torch.Generator().manual_seed(1))
    found = []
    for name in ("reference", None):
        weights, bits = w.clone(), encoding.pack_bits(active | larger)
        with backends.use_backend(name) if name else contextlib.nullcontext():
            ops.drop_grow_([weights], [g], None, [bits], None, [k], bonus=None, round=0)
        found.append((weights, bits))
    assert_same_bits(found[1][1], found[0][1], "mask")
    assert_same_bits(found[1][0], found[0][0], "weights")
