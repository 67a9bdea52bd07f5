"""What each contender should have computed: the rules again, in numpy, by partition instead of by sort.

Independent of the reference and of every contender. dstee decides ties; most other code leaves them to chance, so for it any
outcome counts as right that differs from the index order only among weights tied at a threshold, with the exact count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Algorithm", "Choice", "Expected", "array", "disagreement", "dst_ee", "dst_ee_by_score", "dst_ee_by_thresholds",
    "dst_ee_keys", "largest", "rank", "rigl_by_threshold", "sgd", "smallest", "update", "wrong_weights",
]  # fmt: skip

Bools = NDArray[np.bool_]
Keys = NDArray[np.int64]
Numbers = NDArray[Any]  # float32 or float64 values, or counters


@dataclass(frozen=True)
class Choice:
    """``taken``: the first k by key, ties by index. ``tied``: all that share the key of the last one taken."""

    taken: Bools
    tied: Bools
    threshold: int


def array(t: Tensor) -> Numbers:
    """Flat numpy values in storage order; bfloat16, which numpy lacks, as float32."""
    t = t.detach().cpu().reshape(-1)
    return (t.float() if t.is_floating_point() else t).numpy()


def rank(x: Numbers) -> Keys:
    """abs(x) as an integer that orders like it; NaN comes last."""
    bits = np.abs(x.astype(np.float32)).view(np.int32).astype(np.int64)
    return np.where(np.isnan(x), 0, bits + 1)


def largest(key: Keys, among: Bools, k: int) -> Choice:
    """The k largest keys among the candidates."""
    places = np.flatnonzero(among)
    k = min(k, places.size)
    taken, tied = np.zeros(key.size, bool), np.zeros(key.size, bool)
    if k == 0:
        return Choice(taken, tied, np.iinfo(np.int64).max)
    keys = key[places]
    threshold = int(np.partition(keys, keys.size - k)[keys.size - k])
    above = keys > threshold
    equal = places[keys == threshold]
    taken[places[above]] = True
    taken[equal[: k - int(above.sum())]] = True
    tied[equal] = True
    return Choice(taken, tied, threshold)


def smallest(key: Keys, among: Bools, k: int) -> Choice:
    choice = largest(-key, among, k)
    return Choice(choice.taken, choice.tied, -choice.threshold)


@dataclass(frozen=True)
class Expected:
    """One layer after an update. ``loose``: positions whose fate the rule leaves open, because they tie."""

    mask: Bools
    dropped: Bools
    grown: Bools
    loose: Bools


Algorithm = Callable[[Bools, Numbers, Numbers, Numbers, Numbers, int], Expected]
"""From mask, weights, gradient, N, the table of bonuses and k to the layer after the update."""


def update(
    mask: Bools, drop_key: Keys, grow_key: Keys, k_drop: int, k_grow: int | None = None, *, whole: bool = False
) -> Expected:
    """Drop the ``k_drop`` smallest, grow the largest ``k_grow`` (default as many) among what is then inactive.

    ``whole``: the drop ranks all positions and keeps the largest, as rigl-torch does (an active zero may lose to nobody).
    """
    if whole:
        drop = largest(drop_key, np.ones_like(mask), int(mask.sum()) - k_drop)
        kept = drop.taken
        dropped, tied = mask & ~kept, drop.tied
    else:
        drop = smallest(drop_key, mask, k_drop)
        dropped, tied = drop.taken, drop.tied
        kept = mask & ~dropped
    grow = largest(grow_key, ~kept, k_drop if k_grow is None else k_grow)
    loose = np.zeros_like(mask)
    if int(tied.sum()) > 1:
        loose |= tied
        # which of the tied are dropped decides who is a candidate: the threshold of the growth may move by as many places
        near = max(1, int(tied.sum()))
        candidates = np.sort(grow_key[~kept | tied])[::-1]
        at = np.searchsorted(-candidates, -grow.threshold)
        low, high = candidates[min(candidates.size - 1, at + near)], candidates[max(0, at - near)]
        loose |= (grow_key >= low) & (grow_key <= high) & (~kept | tied)
    if int(grow.tied.sum()) > 1:
        loose |= grow.tied
    return Expected(kept | grow.taken, dropped, grow.taken, loose)


def dst_ee_keys(g: Numbers, N: Numbers, bonus: Numbers) -> Keys:
    """Score |g| + B[N] in float32, then |g|."""
    score = np.abs(g.astype(np.float32)) + bonus.astype(np.float32)[np.minimum(N, bonus.size - 1)]
    return (rank(score) << 32) | rank(g)


def dst_ee(mask: Bools, w: Numbers, g: Numbers, N: Numbers, bonus: Numbers, k: int) -> Expected:
    return update(mask, rank(w), dst_ee_keys(g, N, bonus), k)


def dst_ee_by_score(mask: Bools, w: Numbers, g: Numbers, N: Numbers, bonus: Numbers, k: int) -> Expected:
    """DST-EE by the score alone: what equal scores do is left open (torch.topk)."""
    return update(mask, rank(w), dst_ee_keys(g, N, bonus) >> 32, k)


def dst_ee_by_thresholds(mask: Bools, w: Numbers, g: Numbers, N: Numbers, bonus: Numbers, k: int) -> Expected:
    return by_threshold(mask, w, dst_ee_keys(g, N, bonus) >> 32, k, grow_ties=True)


def rigl_by_threshold(mask: Bools, w: Numbers, g: Numbers, N: Numbers, bonus: Numbers, k: int) -> Expected:
    return by_threshold(mask, w, rank(g), k, grow_ties=False)


def by_threshold(mask: Bools, w: Numbers, grow_key: Keys, k: int, *, grow_ties: bool) -> Expected:
    """Everything up to the threshold goes, ties too. ``grow_ties``: all from the growth threshold on come; else as many."""
    drop = smallest(rank(w), mask, k)
    dropped = drop.taken | drop.tied
    kept = mask & ~dropped
    grow = largest(grow_key, ~kept, k if grow_ties else int(dropped.sum()))
    grown = grow.taken | grow.tied if grow_ties else grow.taken
    loose = grow.tied if not grow_ties and int(grow.tied.sum()) > 1 else np.zeros_like(mask)
    return Expected(kept | grown, dropped, grown, loose)


def disagreement(actual: Bools, expected: Expected) -> str | None:
    """None when ``actual`` is what the rule allows; else what is wrong."""
    if actual.shape != expected.mask.shape:
        return f"{actual.size} weights, expected {expected.mask.size}"
    wrong = actual != expected.mask
    if not wrong.any():
        return None
    if int(actual.sum()) != int(expected.mask.sum()):
        return f"{int(actual.sum())} active weights, expected {int(expected.mask.sum())}"
    outside = wrong & ~expected.loose
    if outside.any():
        return f"{int(outside.sum())} positions of the mask differ, first at {int(np.flatnonzero(outside)[0])}"
    return None


def wrong_weights(effective: Numbers, before: Numbers, actual: Bools, expected: Expected) -> str | None:
    """Weights that stayed keep their value, others are 0 (or, dropped and regrown, keep theirs)."""
    bad = effective != np.where(actual, before, 0)
    regrown = (expected.dropped | expected.loose) & actual
    bad &= ~(regrown & (effective == 0))
    if bad.any():
        return f"{int(bad.sum())} weights differ, first at {int(np.flatnonzero(bad)[0])}"
    return None


def sgd(w: Numbers, g: Numbers, m: Numbers, lr: float, momentum: float, weight_decay: float) -> tuple[Numbers, Numbers]:
    """One SGD step in float64: new (w, m)."""
    w, g, m = (x.astype(np.float64) for x in (w, g, m))
    m = momentum * m + (g + weight_decay * w)
    return w - lr * m, m
