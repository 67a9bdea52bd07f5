"""bonus_table: paper Eq. 1 for every counter, computed in float64 and rounded once."""

from __future__ import annotations

import math
import struct
from decimal import Decimal, getcontext

import pytest
import torch

from dstee.ops import bonus_table
from dstee.testing import assert_same_bits


def float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def test_by_hand() -> None:
    """c = 1, eps = 1 and ln t = 3 (t = 20 is the nearest integer): the bonus halves with the first active round."""
    table = bonus_table(1.0, 1.0, 20, 2)
    ln = 2.995732273553991
    assert table.tolist() == [float32(ln), float32(ln / 2), float32(ln / 3), float32(ln / 4)]


@pytest.mark.parametrize("c", [0.0, 1e-5, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("eps", [1e-6, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("t", [1, 2, 100, 10**6])
def test_every_entry_is_rounded_once(c: float, eps: float, t: int) -> None:
    """Equal to float64 arithmetic rounded by the C library, and within one float32 rounding of 40 exact digits."""
    getcontext().prec = 40
    table = bonus_table(c, eps, t, 400)
    assert (table.dtype, table.shape, table.device.type) == (torch.float32, (402,), "cpu")
    assert_same_bits(table, torch.tensor([float32(c * math.log(t) / (j + eps)) for j in range(402)]))
    for j in range(0, 402, 37):
        exact = Decimal(c) * Decimal(t).ln() / (Decimal(j) + Decimal(eps))
        assert abs(Decimal(float(table[j])) - exact) <= exact * Decimal(2) ** -24 * Decimal("1.0001")


def test_bonus_falls_with_the_counter_and_starts_at_zero() -> None:
    table = bonus_table(1e-3, 1.0, 5000, 32_765)
    assert table.numel() == 32_767
    assert bool((table[1:] <= table[:-1]).all()) and bool((table > 0).all())
    assert not bool(bonus_table(1e-3, 1.0, 1, 3).any()), "ln 1 = 0: no exploration at the first step"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(c=-1e-3), "c must be"),
        (dict(c=math.nan), "c must be"),
        (dict(c=math.inf), "c must be"),
        (dict(eps=0.0), "eps must be"),
        (dict(eps=-1.0), "eps must be"),
        (dict(eps=math.nan), "eps must be"),
        (dict(eps=math.inf), "eps must be"),
        (dict(t=0), "t must be"),
        (dict(t=-3), "t must be"),
        (dict(rounds=-1), "rounds must be"),
        (dict(rounds=32_766), r"rounds must be in 0..32765"),
        (dict(c=1e38, eps=1e-6), "larger eps"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refuses_what_has_no_bonus(change: dict, text: str) -> None:
    arguments = dict(c=1e-3, eps=1.0, t=100, rounds=3) | change
    with pytest.raises(ValueError, match=text):
        bonus_table(**arguments)
