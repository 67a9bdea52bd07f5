"""Paired comparisons and Holm's correction: worked out by hand, and as scipy does it."""

import itertools
import math
import random
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dstee._console import UsageError
from dstee.experiments.results.text import seed_list
from dstee.experiments.tables.statistics import Comparison, compare_pairs, holm, lower_than, verdict

NAMES = ("RigL", "SET")


def by_seed(values):
    return dict(enumerate(values))


# --- pairs ---------------------------------------------------------------------------------------------------------------

# Student's t: the 97.5 % quantiles of any book's table.
T_975 = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 15: 2.13145}


@pytest.mark.parametrize(
    ("group", "other", "mean", "std"),
    [
        ([3, 5], [1, 1], 3, math.sqrt(2)),  # differences 2 4
        ([1, 2, 3], [0, 0, 0], 2, 1),
        ([90, 92, 94, 95], [91, 91, 91, 91], 1.75, math.sqrt((2.75**2 + 0.75**2 + 1.25**2 + 2.25**2) / 3)),  # -1 1 3 4
        ([1, 1, 1, 1, 6], [0, 0, 0, 0, 0], 2, math.sqrt(5)),  # four times 1 less, once 4 more than the mean
        ([0, 1] * 5, [0.5] * 10, 0, math.sqrt(10 / 36)),
        ([1, -1] * 8, [0] * 16, 0, math.sqrt(16 / 15)),
    ],
)
def test_intervals_worked_out_by_hand(group, other, mean, std):
    found = compare_pairs(by_seed(group), by_seed(other), NAMES)
    half = T_975[len(group) - 1] * std / math.sqrt(len(group))
    assert found.mean == pytest.approx(mean, abs=1e-12) and found.pairs == len(group) and not found.all_equal
    assert found.interval == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert (found.p < 0.05) == (abs(mean) > half)  # the interval and the test say the same


def test_p_values_worked_out_by_hand():
    """With one degree of freedom t is Cauchy, with two its distribution function is 1/2 + t / (2 sqrt(2 + t^2))."""
    two = compare_pairs(by_seed([2, 4]), by_seed([0, 0]), NAMES)  # t = 3 / (sqrt(2) / sqrt(2)) = 3
    assert two.p == pytest.approx(1 - 2 * math.atan(3) / math.pi, rel=1e-9)
    three = compare_pairs(by_seed([1, 2, 3]), by_seed([0, 0, 0]), NAMES)  # t = 2 / (1 / sqrt(3))
    assert three.p == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-9)


def test_as_scipy_s_paired_test():
    from scipy import stats

    random.seed(5)
    for n in (2, 3, 5, 16):
        group, other = ([random.gauss(0.9, 0.02) for _ in range(n)] for _ in range(2))
        found, expected = compare_pairs(by_seed(group), by_seed(other), NAMES), stats.ttest_rel(group, other)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
        low, high = expected.confidence_interval(0.95)
        assert found.interval == pytest.approx((low, high), rel=1e-9)


def test_one_seed_has_no_interval():
    found = compare_pairs({3: 0.75}, {3: 0.5}, NAMES)
    assert found == Comparison(0.25, 1, None, None)
    assert verdict(found.mean, None) == "one seed: no test" and lower_than(found, None) is None


@pytest.mark.parametrize("offset", [0.0, 0.25, -0.0037])
def test_equal_differences(offset):
    """As accuracies of different sizes differ: rounding makes the differences not quite equal."""
    other = by_seed([0.9634, 0.1, 0.95121, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_pairs({seed: value + offset for seed, value in other.items()}, other, NAMES)
    assert found.all_equal and found.interval is None and found.mean == pytest.approx(offset, abs=1e-12)
    assert found.p == (1 if offset == 0 else 2 / 2**4)  # of 16 ways to give four signs two have all the same
    assert compare_pairs(by_seed([0.0, 0.0]), by_seed([0.0, 0.0]), NAMES).p == 1


def test_seeds_that_differ_are_named():
    with pytest.raises(UsageError) as caught:
        compare_pairs(dict.fromkeys([0, 1, 2, 7], 0.5), dict.fromkeys([0, 2, 3, 4, 5, 9], 0.5), NAMES)
    assert str(caught.value) == (
        "RigL and SET cannot be paired: RigL has no seed 3-5, 9, which SET has; SET has no seed 1, 7, which RigL has: "
        "train the same seeds of both"
    )
    with pytest.raises(UsageError, match=r"RigL and SET cannot be paired: SET has no seed 1, which RigL has: train"):
        compare_pairs({0: 1.0, 1: 1.0}, {0: 1.0}, NAMES)
    with pytest.raises(UsageError, match="no seeds to compare"):
        compare_pairs({}, {}, NAMES)


def test_without_scipy_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r'needs scipy: pip install "dstee\[cli\]"'):
        compare_pairs(by_seed([1, 2, 3]), by_seed([1, 1, 1]), NAMES)


shares = st.lists(st.tuples(*[st.integers(0, 10_000).map(lambda n: n / 10_000)] * 2), min_size=2, max_size=8)


@given(shares, st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_seeds_changes_nothing(pairs, rng):
    order = list(range(len(pairs)))
    rng.shuffle(order)
    one = compare_pairs({i: p[0] for i, p in enumerate(pairs)}, {i: p[1] for i, p in enumerate(pairs)}, NAMES)
    shuffled = compare_pairs({s: pairs[s][0] for s in order}, {s: pairs[s][1] for s in reversed(order)}, NAMES)
    assert one == shuffled
    relabelled = compare_pairs(
        {i: pairs[s][0] for i, s in enumerate(order)}, {i: pairs[s][1] for i, s in enumerate(order)}, NAMES
    )
    assert relabelled.mean == pytest.approx(one.mean, abs=1e-12) and relabelled.all_equal == one.all_equal
    assert relabelled.interval == (None if one.all_equal else pytest.approx(one.interval, abs=1e-9))
    assert relabelled.p == pytest.approx(one.p, abs=1e-9)


@given(shares)
@settings(max_examples=60, deadline=None)
def test_the_other_way_round_the_signs_change(pairs):
    a, b = ({i: p[k] for i, p in enumerate(pairs)} for k in (0, 1))
    one, other = compare_pairs(a, b, NAMES), compare_pairs(b, a, NAMES)
    assert one.mean == pytest.approx(-other.mean, abs=1e-15) and one.p == pytest.approx(other.p, rel=1e-9, abs=1e-12)
    assert (one.interval is None) == (other.interval is None) == one.all_equal
    if one.interval is not None:
        assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-12)
        assert one.interval[0] <= one.mean <= one.interval[1]


# --- families ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x .005, 3 x .01, 2 x .03, and .04 is lifted to .06
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.5, 0.9, 0.001], [1.0, 1.0, 0.003]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def rejected(p_values, alpha):
    """As Holm wrote it: in order of size, until one is not below alpha over the number of those that are left."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    wrong = [rank for rank, i in enumerate(order) if p_values[i] > alpha / (len(order) - rank)]
    return set(order[: wrong[0]] if wrong else order)


def closed(p_values, i):
    """By the closure principle: the largest Bonferroni p of all families that hold the i-th."""
    others = [j for j in range(len(p_values)) if j != i]
    families = [(i, *more) for n in range(len(others) + 1) for more in itertools.combinations(others, n)]
    return min(1.0, max(len(family) * min(p_values[j] for j in family) for family in families))


@given(st.lists(st.floats(0, 1), max_size=7))
@settings(max_examples=80, deadline=None)
def test_holm_as_defined(p_values):
    found = holm(p_values)
    assert found == pytest.approx([closed(p_values, i) for i in range(len(p_values))])
    for alpha in (0.01, 0.05, 0.3):
        if not any(math.isclose(p, alpha, rel_tol=1e-9) for p in found):
            assert {i for i, p in enumerate(found) if p <= alpha} == rejected(p_values, alpha)
    assert all(a >= b for a, b in zip(found, p_values, strict=True))


@pytest.mark.parametrize(
    ("mean", "p", "words", "lower"),
    [
        (0.1, 0.049, "higher", False),
        (-0.1, 0.0, "lower", True),
        (-0.1, 0.05, "no significant difference", False),
        (0.0, 1.0, "no significant difference", False),
        (0.2, float("nan"), "no significant difference", False),
    ],
)
def test_verdicts(mean, p, words, lower):
    assert verdict(mean, p) == words and lower_than(Comparison(mean, 5, (0, 0), p), p) is lower


def test_seeds_are_listed_briefly():
    assert [seed_list(s) for s in ((), (4,), (1, 0), (2, 0, 1), (9, 5, 6, 8))] == ["", "4", "0, 1", "0-2", "5, 6, 8, 9"]
    assert seed_list({7, 1, 2, 3, 4}) == "1-4, 7" and seed_list(np.arange(16).tolist()) == "0-15"
