"""drop_grow_ with a k_grow of its own, where and bonus_scale, and global_keep_: rows by hand of eight weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dstee import encoding, ops
from dstee.testing import Configuration, assert_same_bits

NAN, INF, F32 = math.nan, math.inf, torch.float32


def bools(text: str) -> torch.Tensor:
    return torch.tensor([c == "1" for c in text])


@dataclass
class Row:
    """Masks are strings, first weight first; ``drop`` go and ``grow`` come."""

    rule: str
    mask: str
    w: list[float]
    g: list[float]
    drop: int
    grow: int
    mask_after: str
    w_after: list[float] | None = None
    options: dict[str, Any] = field(default_factory=dict)


W, G = [0.5, -0.25, 0, 1, 0, 0, -2, 0], [0, 0, 1, 0, 3, -5, 0, 2]  # under mask 11010010
ROWS = [
    Row("fewer come than go", "11010010", W, G, 3, 1, "00000110"),
    Row("more come than go", "11010010", W, G, 1, 3, "10011111"),
    Row("pruning alone", "11010010", W, G, 2, 0, "00010010"),
    Row("growth alone", "11010010", W, G, 0, 2, "11011110"),
    Row("nothing at all", "11010010", W, G, 0, 0, "11010010"),
    Row("all go, none comes", "11010010", W, G, 4, 0, "00000000"),
    Row("all that are inactive come", "11010010", W, G, 0, 4, "11111111"),
    Row("all come, the dropped too, which keep their values", "11010010", W, G, 2, 6, "11111111", W),
    Row("reset_regrown: those start at zero", "11010010", W, G, 2, 6, "11111111", [0, 0, 0, 1, 0, 0, -2, 0],
        dict(reset_regrown=True)),
    Row("a dropped weight is regrown only if it is among the grow best", "11010010", W, [9, 1, 1, 0, 3, -5, 0, 2], 2, 1,
        "10010010"),
    Row("without regrow the dropped are no candidates", "11010010", W, [9, 9, 1, 0, 3, -5, 0, 2], 2, 3, "00011111",
        options=dict(regrow=False)),
    Row("without regrow k is not clipped to what is inactive", "11110110", [1, 2, 3, 4, 0, 6, 7, 0], [9] * 8, 5, 1,
        "00001010", options=dict(regrow=False)),
    Row("without regrow a full mask can be pruned", "11111111", [1, 2, 3, 4, 5, 6, 7, 8], [9] * 8, 3, 0, "00011111",
        options=dict(regrow=False)),
    Row("a NaN gradient comes after all, however many come", "11010010", W, [0, 0, NAN, 0, 0, 0, 0, NAN], 0, 3, "11111110"),
    Row("ties by index on both sides", "11010010", [1, -1, 0, 1, 0, 0, -1, 0], [2] * 8, 1, 3, "11111010",
        [1, -1, 0, 1, 0, 0, -1, 0]),
    Row("from an empty mask", "00000000", [0] * 8, G, 0, 2, "00001100"),
    Row("found_inf: nothing", "11010010", W, G, 3, 1, "11010010", options=dict(found_inf=torch.tensor(1.0))),
    Row("tensors are clipped: 9 go of 4, then 8 come", "11010010", W, G, 9, 99, "11111111", W, dict(tensors=True)),
    Row("negative numbers in tensors are none", "11010010", W, G, -1, -3, "11010010", options=dict(tensors=True)),
    Row("tensors are clipped without regrow: 4 go, 4 come", "11010010", W, G, 9, 99, "00101101",
        options=dict(tensors=True, regrow=False)),
]  # fmt: skip


@pytest.mark.op("drop_grow_", "k_grow")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.rule)
def test_drop_and_grow_different_numbers(backend: Configuration, row: Row) -> None:
    mask, after = bools(row.mask), bools(row.mask_after)
    options = dict(row.options)
    as_tensor = options.pop("tensors", False)
    w, m = torch.tensor(row.w, dtype=F32), torch.arange(1.0, 9.0) * mask
    bits = encoding.pack_bits(mask)
    counts = ops.encode_counts(3 * mask.int(), mask, 5)
    k, k_grow = (torch.tensor([row.drop]), torch.tensor([row.grow])) if as_tensor else ([row.drop], [row.grow])
    ops.drop_grow_(
        [w], [torch.tensor(row.g, dtype=F32)], [m], [bits], [counts], k, k_grow=k_grow, bonus=None, round=5, **options
    )
    assert encoding.unpack_bits(bits, 8).tolist() == after.tolist()
    expected = [x * bool(here) for x, here in zip(row.w, mask & after, strict=True)] if row.w_after is None else row.w_after
    assert (w == torch.tensor(expected, dtype=F32)).all()
    assert (m == torch.arange(1.0, 9.0) * mask * (torch.tensor(expected, dtype=F32) != 0)).all() or row.w_after is None
    assert ops.decode_counts(counts, bits, 6, (8,)).tolist() == (3 * mask.int() + after.int()).tolist()


@pytest.mark.op("drop_grow_", "k_grow")
def test_equal_numbers_are_a_swap(backend: Configuration) -> None:
    for regrow in (True, False):
        results = []
        for options in ({}, {"k_grow": [2]}):
            w, bits = torch.tensor(W, dtype=F32), encoding.pack_bits(bools("11010010"))
            ops.drop_grow_(
                [w],
                [torch.tensor(G, dtype=F32)],
                None,
                [bits],
                None,
                [2],
                bonus=None,
                round=0,
                regrow=regrow,
                **options,
            )
            results.append([w, bits])
        assert_same_bits(*results)


@pytest.mark.op("drop_grow_", "where", "k_grow")
def test_random_growth_of_parts_is_that_of_the_whole(backend: Configuration) -> None:
    """Columns 2 and 3 of a matrix [4, 5]: what they grow is what the whole grows there, by the same hash."""
    whole = encoding.pack_bits(torch.zeros(20, dtype=torch.bool))
    ops.drop_grow_([torch.zeros(20)], None, None, [whole], None, [0], k_grow=[9], bonus=None, round=0, grow_seeds=[77])
    expected = encoding.unpack_bits(whole, 20).view(4, 5)[:, 2:4].reshape(-1)
    part = encoding.pack_bits(torch.zeros(8, dtype=torch.bool))
    count = int(expected.sum())
    assert 0 < count < 8
    ops.drop_grow_(
        [torch.zeros(8)], None, None, [part], None, [0], k_grow=[count], bonus=None, round=0, grow_seeds=[77], where=[(2, 2, 5)]
    )  # fmt: skip
    assert encoding.unpack_bits(part, 8).tolist() == expected.tolist()


UNITS = torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=torch.float64)
# N of eight weights, the last one active; signals; scale; which of the others comes
SCALED = [
    ("scale 1: .125+1 beats .5+.5 and .8125+.25", [2, 2, 0, 1, 2, 2, 2, 3], [0, 0.8125, 0.125, 0.5, 0, 0, 0, 0], 1.0, 2),
    ("scale .5: .8125+.125 beats .125+.5", [2, 2, 0, 1, 2, 2, 2, 3], [0, 0.8125, 0.125, 0.5, 0, 0, 0, 0], 0.5, 1),
    ("Inf: all scores are Inf, the signal decides", [2, 2, 0, 1, 2, 2, 2, 3], [0, 0.8125, 0.125, 0.5, 0, 0, 0, 0], INF, 1),
    ("2^-126: rounds order what has no signal", [2, 2, 2, 1, 2, 2, 2, 3], [0] * 8, 2.0**-126, 3),
    ("2^-126 of a half is a subnormal number, not 0", [2, 2, 2, 2, 1, 2, 2, 3], [1e-45] + [0] * 7, 2.0**-126, 4),
    ("0: the signal alone", [2, 2, 0, 1, 2, 2, 2, 3], [0, 0.8125, 0.125, 0.5, 0, 0, 0, 0], 0.0, 1),
]  # fmt: skip


@pytest.mark.op("drop_grow_", "bonus_scale")
@pytest.mark.parametrize(
    ("rule", "N", "g", "scale", "comes"), SCALED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_bonus_is_scaled(backend: Configuration, rule: str, N: list[int], g: list[float], scale: float, comes: int) -> None:
    mask = bools("00000001")
    w, bits, counts = 1.0 * mask, encoding.pack_bits(mask), ops.encode_counts(torch.tensor(N), mask, 2)
    signal, options = torch.tensor(g, dtype=F32), dict(bonus=UNITS, bonus_scale=torch.tensor([scale]))
    ops.drop_grow_([w], [signal], None, [bits], [counts], [1], round=2, regrow=False, **options)
    assert encoding.unpack_bits(bits, 8).nonzero().view(-1).tolist() == [comes]


@pytest.mark.op("drop_grow_", "bonus_scale")
def test_the_product_is_rounded_once(backend: Configuration) -> None:
    """(1 + 2^-23) * (1 + 2^-24) is just above half way to 1 + 2^-22; with the unit rounded first, it would be 1 + 2^-23."""
    mask = bools("00000001")
    options = dict(bonus=torch.tensor([1 + 2.0**-24, 1.0, 0.0], dtype=torch.float64), bonus_scale=torch.tensor([1 + 2.0**-23]))
    counts = ops.encode_counts(torch.tensor([1, 0, 1, 1, 1, 1, 1, 2]), mask, 1)
    bits = encoding.pack_bits(mask)
    ops.drop_grow_([1.0 * mask], [torch.zeros(8)], None, [bits], [counts], [1], round=1, regrow=False, **options)
    assert encoding.unpack_bits(bits, 8).nonzero().view(-1).tolist() == [1]


@dataclass
class Keep:
    """Two layers of four weights; scores None: the weights."""

    rule: str
    masks: str
    w: list[float]
    scores: list[float] | None
    total: int | torch.Tensor
    after: str


V = [3, -1, 0, 2, -4, 0, 0.5, 2]  # under 11011011
KEEP = [
    Keep("the largest |w| of both layers", "1101 1011", V, None, 3, "1001 1000"),
    Keep("ties: the first layer", "1101 1011", V, None, 2, "1000 1000"),
    Keep("ties within a layer: the lower index", "1101 1011", [1, -1, 0, 1, 1, 0, 1, 1], None, 2, "1100 0000"),
    Keep("all stay", "1101 1011", V, None, 6, "1101 1011"),
    Keep("none stays", "1101 1011", V, None, 0, "0000 0000"),
    Keep("one layer may lose all", "1101 1011", [1, 1, 0, 1, 9, 0, 9, 9], None, 3, "0000 1011"),
    Keep("NaN weights go first", "1101 1011", [NAN, -1, 0, 2, NAN, 0, 0, 2], None, 4, "0101 0011"),
    Keep("NaN stays when nothing else is left, by layer", "1101 1011", [NAN, -1, 0, 2, NAN, 0, 0, 2], None, 5, "1101 0011"),
    Keep("Inf is the largest number", "1101 1011", [3, -INF, 0, 2, -4, 0, INF, 2], None, 2, "0100 0010"),
    Keep("scores instead of weights", "1101 1011", V, [0, 5, 9, 1, 2, 9, 3, 4], 3, "0100 0011"),
    Keep("scores have signs: -1 before -2, 0 before both", "1101 1011", V, [-2, -1, 0, -3, 0, 0, -4, -9], 3, "1100 1000"),
    Keep("-0.0 ties 0.0", "1101 1011", V, [-0.0, 0.0, 0, -0.0, 0.0, 0, -0.0, 0.0], 3, "1101 0000"),
    Keep("-Inf before NaN", "1101 1011", V, [NAN, -INF, 0, NAN, -INF, 0, -INF, NAN], 3, "0100 1010"),
    Keep("subnormal scores count, negative ones too", "1101 1011", V, [0, 1e-45, 0, -1e-45, 0, 0, -1e-45, 0], 4, "1100 1001"),
    Keep("a tensor is clipped to what is active", "1101 1011", V, None, torch.tensor([99]), "1101 1011"),
    Keep("a tensor is clipped to 0", "1101 1011", V, None, torch.tensor(-3), "0000 0000"),
]  # fmt: skip


@pytest.mark.op("global_keep_")
@pytest.mark.parametrize("row", KEEP, ids=lambda row: row.rule)
def test_global_keep(backend: Configuration, row: Keep) -> None:
    masks, after = bools(row.masks.replace(" ", "")).view(2, 4), bools(row.after.replace(" ", "")).view(2, 4)
    weights, momenta = list(torch.tensor(row.w, dtype=F32).view(2, 4)), [1.0 * m for m in masks]
    scores = None if row.scores is None else list(torch.tensor(row.scores, dtype=F32).view(2, 4))
    bits = [encoding.pack_bits(m) for m in masks]
    counts = [ops.encode_counts(2 * m.int() + 1, m, 5) for m in masks]
    ops.global_keep_(scores, weights, momenta, bits, counts, row.total, round=5)
    assert [encoding.unpack_bits(b, 4).tolist() for b in bits] == after.tolist()
    assert_same_bits(torch.stack(weights), torch.tensor(row.w, dtype=F32).view(2, 4).where(after, 0.0), "weights")
    assert_same_bits(momenta, [1.0 * m for m in after], "momenta")
    for m, c, b in zip(masks, counts, bits, strict=True):  # rounds go on with the masks that are left
        expected = 2 * m.int() + 1 + encoding.unpack_bits(b, 4).int()
        assert ops.decode_counts(c, b, 6, (4,)).tolist() == expected.tolist()
