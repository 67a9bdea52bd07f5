"""Parts of an update that simulated ranks agree on: what one process does alone, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import cut_cases
from support.cut_cases import Part
from support.lockstep import Traffic, lockstep

from dstee import ops
from dstee.distributed import agree
from dstee.distributed.where import whole
from dstee.encoding import bonus_table
from dstee.testing import make_case

pytestmark = pytest.mark.usefixtures("one_thread")

RANKS = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_ranks_update_as_one(first: int) -> None:
    for seed in range(first, first + 50):
        cut_cases.check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 200))
def test_two_thousand_more(first: int) -> None:
    for seed in range(first, first + 200):
        cut_cases.check(seed)


@pytest.mark.parametrize("ranks", RANKS)
def test_updates_follow_each_other(ranks: int) -> None:
    """Drops alone, growth alone, and a swap, on what the parts before them have left."""
    rng = np.random.default_rng(ranks)
    shapes = [(40, 17), (5, 7, 3, 3), (1, 8)]
    case = make_case(ranks, [math.prod(shape) for shape in shapes], family="few_valued", density=0.5, round=3)
    where = cut_cases.cut_layers(shapes, ranks, rng)
    parts = [Part.of(case, places) for places in where]
    for k, k_grow in (([100, 20, 2], [0, 0, 0]), ([0, 0, 0], [50, 70, 3]), ([60, 0, 1], [60, 10, 0])):
        for c in (case, *(part.case for part in parts)):
            c.k, c.options, c.bonus = k, {"k_grow": k_grow}, bonus_table(0.01, 1.0, 70, c.round)
        lockstep([part.update(k, k_grow, k_grow) for part in parts])
        case.drop_grow_()
        cut_cases.assert_same_parts(parts, case, where)
        for c in (case, *(part.case for part in parts)):
            c.round += 1


@pytest.mark.parametrize("how", cut_cases.CUTS)
def test_equal_weights_are_told_apart_by_three_bytes_of_index(how: str) -> None:
    shape = (257, 2, 131)
    case = make_case(0, [math.prod(shape)], family="equal", density=0.5, counted=False)
    where = [[place] for place in cut_cases.cut(shape, 4, how, np.random.default_rng(0))]
    traffic = Traffic()
    got = cut_cases.update(case, where, traffic=traffic)
    case.drop_grow_()
    cut_cases.assert_same_parts(got, case, where)
    assert len(traffic.rows) == 2 * (4 + 3)


@pytest.mark.parametrize("ranks", RANKS)
def test_scales_are_those_of_the_whole(ranks: int) -> None:
    """Where more is asked for than there is, too: the scale goes by what was asked for."""
    rng = np.random.default_rng(ranks)
    shapes = [cut_cases.LARGE, (40, 17), (1,), (7, 5), (3, 3)]
    for density in (0.1, 0.95, 1.0):
        case = make_case(ranks, [math.prod(s) for s in shapes], density=density, round=7)
        case.bonus = bonus_table(0.1, 1.0, 500, 7, dtype=torch.float64)
        nnz = [int(mask.sum()) for mask in case.masks()]
        asked = [n // 2 for n in nnz[:-1]] + [9]
        there = [min(n, p.numel() - active) for n, p, active in zip(asked, case.params, nnz, strict=True)]
        parts = [Part.of(case, places) for places in cut_cases.cut_layers(shapes, ranks, rng)]
        bonus = {"bonus": case.bonus, "round": 7, "regrow": False, "scale_k": asked}
        ranked = [agree.Ranked(p.case.params, p.case.mask_bits, p.where, p.case.grads, p.case.counts, **bonus) for p in parts]
        found = lockstep([agree.shares(r, [0] * len(there), there) for r in ranked])
        expected = ops.growth_scale(case.grads, case.mask_bits, asked, 7)
        for _, _, scale in found:
            for i, n in enumerate(there):
                assert not n or scale[i] == expected[i], f"layer {i} of density {density}"


def test_denormals_are_told_apart_where_the_caller_flushes_them() -> None:
    shapes = [(40, 17), (12, 9)]
    case = make_case(0, [math.prod(shape) for shape in shapes], family="denormal", round=2)
    case.bonus = bonus_table(0.1, 1.0, 500, 2, dtype=torch.float64)
    case.options["bonus_scale"] = ops.growth_scale(case.grads, case.mask_bits, case.k, 2)
    where = cut_cases.cut_layers(shapes, 3, np.random.default_rng(0))
    torch.set_flush_denormal(True)
    try:
        got = cut_cases.update(case, where)
    finally:
        torch.set_flush_denormal(False)
    case.drop_grow_()
    cut_cases.assert_same_parts(got, case, where)


@pytest.mark.parametrize(("k", "k_grow", "words"), [(6, 0, "the drop wants 6"), (0, 5, "the growth wants 5")])
def test_too_few_candidates_are_named_on_all_ranks(k: int, k_grow: int, words: str) -> None:
    case = make_case(0, [10, 9], density=0.5, counted=False)
    case.options["regrow"] = False
    where = [[whole(10), whole(9)], [whole(10)._replace(n=0), whole(9)._replace(n=0)]]
    parts = [Part.of(case, places) for places in where]
    with pytest.raises(RuntimeError, match=f"layer 1 has .* candidates on all ranks, but {words}"):
        lockstep([part.update([5, k], [5, k_grow], [0, 0]) for part in parts])


def test_parts_that_overlap_are_found() -> None:
    case = make_case(0, [64], family="equal", density=0.5, counted=False)
    parts = [Part.of(case, [whole(64)]) for _ in range(2)]
    with pytest.raises(RuntimeError, match="layer 0 has 2 weights of one index"):
        lockstep([part.update([5], [5], [5]) for part in parts])


def test_layers_without_a_change_and_ranks_without_a_weight_send_no_more_than_they_must() -> None:
    shapes = [(5, 4), (6, 2), (3, 3)]
    case = make_case(1, [math.prod(shape) for shape in shapes], density=0.5)
    where = [[whole(20), whole(12)._replace(n=0), whole(9)], [whole(20)._replace(n=0), whole(12), whole(9)._replace(n=0)]]
    traffic = Traffic()
    for k in ([0, 0, 0], [3, 4, 0]):
        case.k = k
        got = cut_cases.update(case, where, traffic=traffic)
        if not any(k):
            assert not traffic.rows
    case.drop_grow_()
    cut_cases.assert_same_parts(got, case, where)
    assert set(traffic.layers) == {0, 1}


@pytest.mark.parametrize("how", cut_cases.CUTS)
@pytest.mark.parametrize("bonus", [False, True])
def test_few_equal_scores_take_one_more_round(how: str, bonus: bool) -> None:
    """Two of five neighbours that tie in score and signal grow: these agree in all bytes of both but the last of the index."""
    shape = (257, 2, 131)
    n = math.prod(shape)
    case = make_case(0, [n], density=0.5, counted=bonus, round=5, regrow=False)
    if bonus:
        case.bonus = bonus_table(1e-3, 1.0, 70, 5)
    inactive = (~case.masks()[0]).nonzero().view(-1)
    scale = torch.linspace(0.5, 1.5, n)
    scale[inactive[1000:1005]] = 1.75
    case.grads = [scale.view_as(case.params[0])]
    case.counts = case.counts and [torch.zeros(n, dtype=torch.int16)]
    case.k, case.options["k_grow"] = [0], [2]
    where = [[place] for place in cut_cases.cut(shape, 4, how, np.random.default_rng(0))]
    traffic, parts = Traffic(), [Part.of(case, places) for places in where]
    lockstep([part.update([0], [2], [2]) for part in parts], 1, traffic)
    case.drop_grow_()
    cut_cases.assert_same_parts(parts, case, where)
    assert len(traffic.rows) <= 4 + 1 + bonus


# --- traffic --------------------------------------------------------------------------------------------------------------


def resnet50(width: int) -> list[tuple[int, ...]]:
    """The 54 weights of ResNet-50 whose first layer has ``width`` channels in place of 64."""
    shapes: list[tuple[int, ...]] = [(width, 3, 7, 7)]
    channels = width
    for inner, blocks in ((width, 3), (2 * width, 4), (4 * width, 6), (8 * width, 3)):
        for block in range(blocks):
            shapes += [(inner, channels, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            shapes += [(4 * inner, channels, 1, 1)] if block == 0 else []
            channels = 4 * inner
    return [*shapes, (16 * width, channels)]


def sent(width: int, ranks: int, regrow: bool, bonus: str, dtype: torch.dtype = torch.float32) -> Traffic:
    shapes, traffic = resnet50(width), Traffic()
    case = make_case(1, [math.prod(s) for s in shapes], dtype=dtype, counted=bool(bonus), round=5, regrow=regrow)
    if bonus == "scaled":
        case.bonus = bonus_table(0.1, 1.0, 500, 5, dtype=torch.float64)
    rng = np.random.default_rng(0)
    where = [list(parts) for parts in zip(*[cut_cases.cut(s, ranks, "rows", rng) for s in shapes], strict=True)]
    cut_cases.update(case, where, traffic=traffic)
    assert len(shapes) == 54 and max(traffic.rows) <= 54 * (1 if regrow and bonus != "scaled" else 3)
    return traffic


def of_layers(traffic: Traffic) -> int:
    """The most bytes that a layer has sent."""
    return 1024 * int(np.bincount(traffic.layers).max())


@pytest.mark.parametrize(
    ("regrow", "bonus", "rounds"), [(True, "", 7), (False, "", 4), (True, "plain", 7), (False, "plain", 4), (True, "scaled", 8)]
)
def test_traffic_depends_neither_on_ranks_nor_on_size(regrow: bool, bonus: str, rounds: int) -> None:
    few, many, larger = (sent(width, ranks, regrow, bonus) for width, ranks in ((4, 2), (4, 5), (8, 2)))
    assert few == many
    assert len(few.rows) <= len(larger.rows) <= rounds
    assert of_layers(larger) <= 12 * 1024
    assert sum(larger.bytes) <= 1.4 * sum(few.bytes)


@pytest.mark.parametrize("bonus", ["", "plain"])
def test_traffic_of_bfloat16_whose_values_tie(bonus: str) -> None:
    traffic = sent(8, 2, True, bonus, torch.bfloat16)
    assert len(traffic.rows) <= 13 and of_layers(traffic) <= 16 * 1024
