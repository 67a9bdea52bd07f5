"""drop_grow_ by hand: rows of eight weights, one rule each, small enough to check with a pencil."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support import oracle

from dstee import encoding, ops, rules
from dstee.ops import SGDRule
from dstee.testing import DTYPES, Configuration, assert_same_bits

NAN, INF = math.nan, math.inf
ABSORBING = [2.0**24, 0.0, 0.0, 0.0]  # 2^24 + x == 2^24 in float32 for 0 <= x <= 1
EXPLORING = [1.0, 0.5, 0.25, 0.125]


@dataclass
class Row:
    """Masks are strings, first weight first. ``w_after`` defaults to w on the mask that is left, 0 elsewhere."""

    rule: str
    mask: str
    w: list[float]
    g: list[float]
    k: int
    mask_after: str
    w_after: list[float] | None = None
    N: list[int] | None = None
    N_after: list[int] | None = None
    bonus: list[float] | None = None
    round: int = 0
    options: dict[str, Any] = field(default_factory=dict)


W = [0.5, -0.25, 0, 1, 0, 0, -2, 0]  # under mask 11010010
ROWS = [
    Row("the smallest |w| go, the largest |g| come",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], 2, "00011110"),
    Row("a dropped weight with a large gradient is grown again and keeps its value",
        "11010010", W, [9, 0, 1, 0, 3, -5, 0, 2], 2, "10010110"),
    Row("reset_regrown: grown again, it starts at zero",
        "11010010", W, [9, 0, 1, 0, 3, -5, 0, 2], 2, "10010110", [0, 0, 0, 1, 0, 0, -2, 0],
        options=dict(reset_regrown=True)),
    Row("without regrow the dropped are no candidates",
        "11010010", W, [9, 9, 1, 0, 3, -5, 0, 2], 2, "00011110", options=dict(regrow=False)),
    Row("without regrow k is what is inactive: two of three swaps are left",
        "11110110", [1, 2, 3, 4, 0, 6, 7, 0], [9] * 8, 3, "00111111", options=dict(regrow=False)),
    Row("without regrow a full mask has nothing to swap",
        "11111111", [1, 2, 3, 4, 5, 6, 7, 8], [9] * 8, 3, "11111111", options=dict(regrow=False)),
    Row("a full mask can only grow what it dropped",
        "11111111", [1, 2, 3, 4, 5, 6, 7, 8], [9] * 8, 3, "11111111"),
    Row("an empty mask has nothing to drop",
        "00000000", [0] * 8, [9] * 8, 0, "00000000"),
    Row("k = 0 changes nothing",
        "11010010", W, [9] * 8, 0, "11010010"),
    Row("k = all swaps everything",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], 4, "00101101"),
    Row("equal |w| go by index, whatever their sign",
        "11010010", [0.5, -0.5, 0, 0.5, 0, 0, -0.5, 0], [0, 0, 1, 0, 3, -5, 0, 2], 2, "00011110"),
    Row("-0.0 is as close to zero as 0.0",
        "00011100", [0, 0, 0, 0.0, -0.0, 0.0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 2], 2, "00100101"),
    Row("-0.0 first",
        "00011100", [0, 0, 0, -0.0, 0.0, -0.0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 2], 2, "00100101"),
    Row("equal |g| come by index, whatever their sign",
        "00000011", [0, 0, 0, 0, 0, 0, 1, 2], [-3, 1, 3, -3, 3, 0, 0, 0], 2, "10100000"),
    Row("with no gradient at all the first candidates come",
        "00000111", [0, 0, 0, 0, 0, 1, 2, 3], [0, -0.0, 0, 0, 0, 0, 0, 0], 2, "11000001"),
    Row("a NaN weight is dropped before a zero one",
        "11010010", [0, NAN, 0, NAN, 0, 0, 1, 0], [0, 0, 1, 0, 3, -5, 0, 2], 2, "10001110"),
    Row("an infinite weight is the largest number, not a NaN",
        "11010010", [-INF, 3e38, 0, INF, 0, 0, NAN, 0], [0, 0, 1, 0, 3, -5, 0, 2], 3, "00011101"),
    Row("a NaN gradient comes after every other, a zero one included",
        "00000011", [0, 0, 0, 0, 0, 0, 1, 2], [NAN, NAN, 0, NAN, 0, NAN, NAN, NAN], 2, "00101000"),
    Row("NaN gradients come when nothing else is left, by index",
        "00000111", [0, 0, 0, 0, 0, 1, 2, 3], [NAN, -NAN, 7, NAN, NAN, NAN, NAN, NAN], 3, "11100000"),
    Row("an infinite gradient comes first, either sign, by index",
        "00000011", [0, 0, 0, 0, 0, 0, 1, 2], [1, 3e38, -INF, 0, INF, INF, 0, 0], 2, "00101000"),
    Row("a subnormal gradient is larger than none",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 1e-45, 0, 0, 0, 0], 1, "00010000"),
    Row("Eq. 1: scores .125+1, .5+.5 and .8125+.25; the never active weight wins",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0.8125, 0.125, 0.5, 0, 0, 0, 0], 1, "00100000",
        N=[2, 2, 0, 1, 2, 2, 2, 3], N_after=[2, 2, 1, 1, 2, 2, 2, 3], bonus=EXPLORING, round=2),
    Row("Eq. 1: with a larger gradient the weight of two rounds wins",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 1.0, 0.125, 0.5, 0, 0, 0, 0], 1, "01000000",
        N=[2, 2, 0, 1, 2, 2, 2, 3], N_after=[2, 3, 0, 1, 2, 2, 2, 3], bonus=EXPLORING, round=2),
    Row("the dropped weight competes with the bonus of its own rounds: 1 + .25 against .125 + 1",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0.125, 0, 0, 0, 0, 1.0], 1, "00000001",
        N=[1, 1, 0, 1, 1, 1, 1, 2], N_after=[1, 1, 0, 1, 1, 1, 1, 3], bonus=EXPLORING, round=2),
    Row("without a bonus the counters still count",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 1.0, 0.125, 0.5, 0, 0, 0, 0], 1, "01000000",
        N=[0, 0, 0, 0, 0, 0, 0, 3], N_after=[0, 1, 0, 0, 0, 0, 0, 3], round=2),
    Row("an absorbed gradient still decides, then the index",
        "00000111", [0, 0, 0, 0, 0, 1, 2, 3], [0.25, 0.75, 0.5, 0.75, 5, 0, 0, 0], 3, "01110000",
        N=[0, 0, 0, 0, 1, 3, 3, 3], bonus=ABSORBING, round=2),
    Row("equal scores from different sums: .5+.5 before .25+.75 by |g|",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0.25, 0.5, 0, 0, 0, 0], 1, "00010000",
        N=[2, 2, 0, 1, 2, 2, 2, 3], bonus=[0.75, 0.5, 0.0, 0.0], round=2),
    Row("a NaN gradient stays last under a huge bonus",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, NAN, 0, 0, 0, 0, 0], 1, "10000000",
        N=[2, 2, 0, 2, 2, 2, 2, 3], bonus=ABSORBING, round=2),
    Row("a negative counter takes the last entry of the table: .25+.125 against 0+.5",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0.25, 0, 0, 0, 0, 0, 0, 0], 1, "01000000",
        N=[-1, 1, -2, 2, -3, 3, -4, 3], N_after=[-1, 2, -2, 2, -3, 3, -4, 3], bonus=EXPLORING, round=2),
    Row("a negative counter's weight is grown like any other: .5+.125 against 0+.5",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0.5, 0, 0, 0, 0, 0, 0, 0], 1, "10000000",
        N=[-1, 1, -2, 2, -3, 3, -4, 3], N_after=[0, 1, -2, 2, -3, 3, -4, 3], bonus=EXPLORING, round=2),
    Row("a counter behind the table takes its last entry: .25+.125 against 0+.5",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0.25, 0, 0, 0, 0, 0, 0, 0], 1, "01000000",
        N=[8, 1, 4, 5, 32, 33, 32767, 3], N_after=[8, 2, 4, 5, 32, 33, 32767, 3], bonus=EXPLORING, round=2),
    Row("a dropped weight with a negative counter takes the last entry: .25+.125 against 0+.5",
        "00000001", [0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0.25], 1, "01000000",
        N=[2, 1, 2, 2, 2, 2, 2, -1], N_after=[2, 2, 2, 2, 2, 2, 2, -1], bonus=EXPLORING, round=2),
    Row("found_inf = 1: nothing changes, not even the step",
        "11010010", W, [9, 0, 1, 0, 3, -5, 0, 2], 2, "11010010",
        options=dict(found_inf=torch.tensor(1.0), sgd=SGDRule(1.0))),
    Row("found_inf = 0: as if it were not there",
        "11010010", W, [9, 0, 1, 0, 3, -5, 0, 2], 2, "10010110", options=dict(found_inf=torch.tensor([0.0]))),
    Row("the step comes first: after w - g the third and fourth are smallest",
        "11010010", [0.5, -0.25, 0, 1, 0, 0, -2, 0], [-1, 1, 8, 1, 3, -5, -2, 2], 2, "11100100",
        [1.5, -1.25, 0, 0, 0, 0, 0, 0], options=dict(sgd=SGDRule(1.0), regrow=False)),
    Row("drop_scores replace the weights",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], 2, "11001100",
        options=dict(drop_scores=[7, 7, 0, -1, 0, 0, 1, 0])),
    Row("grow_signal replaces the gradients",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], 2, "00110011",
        options=dict(grow_signal=[0, 0, 4, 0, 1, 2, 0, -3])),
    Row("k in a tensor is clipped to the active weights",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], 2**40, "00101101", options=dict(k_tensor=True)),
    Row("a negative k in a tensor swaps nothing",
        "11010010", W, [0, 0, 1, 0, 3, -5, 0, 2], -1, "11010010", options=dict(k_tensor=True)),
]  # fmt: skip


def bools(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_hand_worked_updates(backend: Configuration, row: Row, dtype: torch.dtype) -> None:
    for x in row.w + row.g:
        if not math.isnan(x) and (0 < abs(x) < INF) != (0 < abs(float(torch.tensor(x, dtype=dtype))) < INF):
            pytest.skip(f"{x} does not exist in {dtype}")
    options = dict(row.options)
    mask, after = bools(row.mask), bools(row.mask_after)
    momentum = torch.arange(10.0, 90, 10) * mask
    N = torch.tensor(row.N) if row.N else mask.int() * (row.round + 1)
    w, g, m = (torch.tensor(x, dtype=dtype) for x in (row.w, row.g, momentum.tolist()))
    bits, counts = encoding.pack_bits(mask), encoding.flip_counts(N, mask, row.round).short()  # any N, also impossible ones
    for name in ("drop_scores", "grow_signal"):
        if name in options:
            options[name] = [torch.tensor(options[name], dtype=dtype)]
    k: Any = torch.tensor([row.k]) if options.pop("k_tensor", False) else [row.k]
    bonus = torch.tensor(row.bonus) if row.bonus else None

    ops.drop_grow_([w], [g], [m], [bits], [counts], k, bonus=bonus, round=row.round, **options)

    assert_same_bits(ops.unpack_mask(bits, [8]), after, "mask")
    kept = mask & after
    w_after = torch.tensor(row.w_after) if row.w_after else torch.tensor(row.w).masked_fill(~kept, 0)
    assert_same_bits(w, w_after.to(dtype), "w")
    m_after = momentum.masked_fill(~kept, 0)
    if options.get("reset_regrown"):
        m_after[w_after == 0] = 0
    assert_same_bits(m, m_after.to(dtype), "m")
    ticked = float(options.get("found_inf", 0)) == 0
    N_after = torch.tensor(row.N_after) if row.N_after else N + after.int() * ticked
    assert_same_bits(ops.decode_counts(counts, bits, row.round + ticked, [8]), N_after.int(), "N")


# mix(mix(low) ^ high) >> 8 of the first eight positions: the numbers that every backend and machine must reproduce.
HASHES = {
    0: [0, 5829961, 3561215, 6784506, 9427303, 13941346, 418276, 5549290],
    -1: [10044756, 6776962, 11599943, 3725312, 2051720, 16252949, 6077783, 10596745],
    0x0123_4567_89AB_CDEF: [1860260, 4878526, 5003450, 10981193, 13950895, 16286409, 7197662, 14399266],
}


@pytest.mark.parametrize("seed", HASHES)
def test_random_growth_takes_the_largest_hashes(backend: Configuration, seed: int) -> None:
    """SET: with k = 3 of the candidates, those with the largest numbers of the table come; gradients play no part."""
    table = HASHES[seed]
    assert [round(2**24 * oracle.random_number(seed, i)) for i in range(8)] == table
    assert (2**24 * rules.random_signal(seed, 8, torch.device("cpu"))).tolist() == table
    mask = bools("00011001")
    w = torch.tensor([0, 0, 0, 1.0, 2, 0, 0, 3])
    bits = encoding.pack_bits(mask)
    ops.drop_grow_([w], None, None, [bits], None, [3], bonus=None, round=0, grow_seeds=[seed], regrow=False)
    candidates = [0, 1, 2, 5, 6]
    best = sorted(candidates, key=lambda i: -table[i])[:3]
    assert ops.unpack_mask(bits, [8]).nonzero().flatten().tolist() == sorted(best)


def test_random_growth_adds_the_bonus(backend: Configuration) -> None:
    """A hash is below 1, so that a bonus of 1 and more for never active weights decides alone."""
    mask, N = bools("00000011"), torch.tensor([1, 1, 0, 1, 0, 1, 2, 2])
    bits, counts = encoding.pack_bits(mask), ops.encode_counts(N, mask, 1)
    w = torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 2.0])
    ops.drop_grow_([w], None, None, [bits], [counts], [2], bonus=torch.tensor([1.0, 0, 0]), round=1, grow_seeds=[5])
    assert_same_bits(ops.unpack_mask(bits, [8]), bools("00101000"), "mask")
