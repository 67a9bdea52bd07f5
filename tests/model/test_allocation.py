"""allocate against rational arithmetic, layer by layer."""

from __future__ import annotations

import random

import pytest
import torch
from support.allocation_oracle import by_fractions

import dstee

TABLE = [
    (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),  # the odd one goes to the first
    (11, [1, 1, 1], [9, 9, 9], [4, 4, 3]),
    (10, [5, 3, 2], [9, 9, 9], [5, 3, 2]),
    (10, [1, 2, 4], [9, 9, 9], [1, 3, 6]),  # 1.43, 2.86, 5.71: two more for the remainders .86 and .71
    (10, [1, 2, 4], [9, 9, 3], [2, 5, 3]),  # 7 for the first two: 2.33, 4.67
    (10, [0, 0, 0], [4, 4, 4], [4, 3, 3]),  # no share: evenly
    (10, [0, 1, 1], [9, 4, 4], [2, 4, 4]),  # what the others have no room for
    (99, [1, 2, 3], [4, 5, 6], [4, 5, 6]),  # clipped
    (0, [1, 2, 3], [4, 5, 6], [0, 0, 0]),
    (3, [1, 1], [0, 9], [0, 3]),
]


@pytest.mark.parametrize(("budget", "shares", "capacity", "expected"), TABLE)
def test_by_hand(budget, shares, capacity, expected):
    assert by_fractions(budget, shares, capacity) == expected
    for given in (budget, torch.tensor([budget])):
        for kind in (torch.int64, torch.float32):
            assert dstee.allocate(given, torch.tensor(shares, dtype=kind), torch.tensor(capacity)).tolist() == expected


def test_random_and_huge_numbers():
    rng = random.Random(0)
    for _ in range(400):
        layers, big = rng.randint(1, 8), rng.random() < 0.4
        capacity = [rng.randint(0, 2**40 if big else 12) for _ in range(layers)]
        shares = [rng.choice([0, 1, 1, 2, 3, rng.randint(0, 2**31 - 1 if big else 9)]) for _ in range(layers)]
        if rng.random() < 0.2:  # ratios that differ by less than a float64 tells
            shares = [rng.randint(2**31 - 4, 2**31 - 1) for _ in range(layers)]
        budget = rng.choice([0, sum(capacity), rng.randint(0, sum(capacity) + 3)])
        got = dstee.allocate(budget, torch.tensor(shares), torch.tensor(capacity))
        assert got.tolist() == by_fractions(budget, shares, capacity), (budget, shares, capacity)


def test_floats_count_by_their_ratio():
    shares, capacity = torch.tensor([1.0, 3.0, 0.5, float("nan")]), torch.tensor([10**6] * 4)
    expected = [200, 600, 100, 0]
    for factor in (1.0, 2.0**-140, 2.0**100):
        assert dstee.allocate(900, shares * factor, capacity).tolist() == expected
    assert dstee.allocate(5, torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize(
    ("budget", "shares", "capacity", "error", "text"),
    [
        (-1, [1], [1], ValueError, r"budget must be in 0\.\.\d+, got -1"),
        (1, [1, -1], [1, 1], ValueError, r"shares\[1\] must be in 0\.\.\d+, got -1"),
        (1, [2**31], [1], ValueError, r"shares\[0\] must be in 0\.\.2147483647, got 2147483648"),
        (1, [1, 1], [1, -3], ValueError, r"capacity\[1\] must be in .*got -3"),
        (1, [1, 1], [1], ValueError, r"capacity is \[1\] on cpu, expected \[2\]"),
        (1, [True], [1], TypeError, "shares must be int64 or floating-point"),
        (1, [1], [1.0], TypeError, "capacity int64, got torch.int64 and torch.float32"),
        (torch.tensor([1, 2]), [1], [1], TypeError, r"budget must be an int or a one-element int64.*\[2\]"),
    ],
)
def test_refusals(budget, shares, capacity, error, text):
    with pytest.raises(error, match=text):
        dstee.allocate(budget, torch.tensor(shares), torch.tensor(capacity))
