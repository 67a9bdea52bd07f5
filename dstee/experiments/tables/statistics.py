"""Comparison of trainings that are paired by seed: mean difference, 95 % interval and p of a t test, Holm's correction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dstee._console import UsageError, needs
from dstee.experiments.results.text import seed_list

__all__ = ["ALPHA", "Comparison", "compare_pairs", "holm", "lower_than", "verdict"]

ALPHA = 0.05
"""Of corrected p-values, below which a difference is called one; intervals cover 1 - ALPHA."""
_NOISE = 1e-12
"""Of the values' size: differences that are closer to one another are equal, but for the rounding of a subtraction."""


@dataclass(frozen=True)
class Comparison:
    """One group less another, over ``pairs`` seeds that both have.

    ``interval`` (95 %) and ``p`` (two-sided, not corrected) are those of the paired t test, None for less than two pairs.
    ``all_equal``: the differences are all the same, so that the t test has nothing to estimate their spread from. There is no
    interval then, and p is that of the exact test by signs: 2^(1 - pairs), or 1 where the differences are 0. (With few test
    samples two seeds often differ by the same number of them; a t test would take that for certainty.)
    """

    mean: float
    pairs: int
    interval: tuple[float, float] | None
    p: float | None
    all_equal: bool = False


def compare_pairs(group: Mapping[int, float], other: Mapping[int, float], names: tuple[str, str]) -> Comparison:
    """``group`` less ``other``, both values by seed.

    Raises:
        UsageError: their seeds are not the same; the text says which are missing where. There is none. scipy is missing.
    """
    missing = [
        f"{mine} has no seed {seed_list(more.keys() - have.keys())}, which {others} has"
        for mine, have, others, more in ((names[0], group, names[1], other), (names[1], other, names[0], group))
        if more.keys() - have.keys()
    ]
    if missing:
        raise UsageError(f"{names[0]} and {names[1]} cannot be paired: {'; '.join(missing)}: train the same seeds of both")
    if not group:
        raise UsageError(f"{names[0]} and {names[1]} have no seeds to compare")
    differences = [group[seed] - other[seed] for seed in sorted(group)]
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return Comparison(mean, 1, None, None)
    size = max(abs(value) for side in (group, other) for value in side.values())
    if max(differences) - min(differences) <= _NOISE * size:
        p = 1.0 if abs(mean) <= _NOISE * size else 2.0 ** (1 - len(differences))
        return Comparison(mean, len(differences), None, p, True)
    try:
        from scipy import stats
    except ImportError as error:
        raise UsageError(needs("a comparison with intervals and p-values", "scipy", "cli")) from error
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(1 - ALPHA)
    return Comparison(mean, len(differences), (float(interval.low), float(interval.high)), float(test.pvalue))


def lower_than(comparison: Comparison, corrected: float | None) -> bool | None:
    """Whether the group is significantly lower; None where that cannot be said."""
    return None if corrected is None else corrected < ALPHA and comparison.mean < 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in their order (S. Holm, Scand. J. Statist. 6, 1979).

    The i-th smallest of m (from 0) is multiplied by m - i; none is then smaller than one before it, nor larger than 1.
    """
    corrected = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected


def verdict(mean: float, corrected: float | None) -> str:
    """In words: "higher", "lower", or that no difference was shown; of one pair nothing can be said."""
    if corrected is None:
        return "one seed: no test"
    if not corrected < ALPHA:
        return "no significant difference"
    return "higher" if mean > 0 else "lower"
