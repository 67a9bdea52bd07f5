"""What contenders are held to, the rules in numpy, against the reference and against sorting."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import expected
from bench.expected import array
from bench.layers import make_layers
from bench.session import Setting, drop_grow
from dstee import backends
from dstee.testing import assert_same_bits

SHAPES = [(40, 30), (16, 8, 3, 3), (9,)]


def by_sort(key: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    order = np.lexsort((np.arange(key.size), -key, ~among))[: min(k, int(among.sum()))]
    taken = np.zeros(key.size, bool)
    taken[order] = True
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_largest_is_the_head_of_a_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    key, among = rng.integers(0, rng.integers(1, 40), n).astype(np.int64), rng.random(n) < 0.7
    for k in (0, 1, n // 2, n):
        choice = expected.largest(key, among, k)
        assert np.array_equal(choice.taken, by_sort(key, among, k))
        assert not choice.taken.any() or set(key[choice.tied]) == {choice.threshold}


@pytest.mark.parametrize("seed", range(4))
def test_the_rule_in_numpy_is_the_reference(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties: gradients and weights of few values."""
    layers = make_layers(SHAPES, 0.2, 0.4, seed)
    for tensors in (layers.params, layers.grads):
        scale = tensors[0].abs().max() / 3
        tensors[:] = [(t / scale).round() * scale for t in tensors]
    setting = Setting("drop_grow", layers, 0.2, 0.4)
    monkeypatch.setattr("bench.session.MOST_FOR_REFERENCE", 0)
    by_numpy = setting.expected
    assert setting.gate == "the rule in numpy"
    with backends.use_backend("reference"):
        state = layers.clone()
        drop_grow(state, setting.bonus)
    for name in ("params", "mask_bits", "counts"):
        assert_same_bits(getattr(by_numpy, name), getattr(state, name), name)


def test_ties_may_fall_either_way_and_nothing_else() -> None:
    mask = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    w = expected.rank(np.array([3.0, 1.0, 1.0, 0, 0, 0, 0], np.float32))
    g = expected.rank(np.array([0.0, 0.1, 0.1, 5.0, 4.0, 4.0, 1.0], np.float32))
    outcome = expected.update(mask, w, g, 1)
    right = np.array([1, 0, 1, 1, 0, 0, 0], bool)
    assert expected.disagreement(right, outcome) is None
    assert expected.disagreement(np.array([1, 1, 0, 1, 0, 0, 0], bool), outcome) is None, "the other of two equal weights"
    assert "positions" in str(expected.disagreement(np.array([1, 0, 1, 0, 0, 0, 1], bool), outcome))
    assert "expected 3" in str(expected.disagreement(np.array([1, 1, 1, 1, 0, 0, 0], bool), outcome))
    kept = np.where(right, [3.0, 1, 1, 0, 0, 0, 0], 0)
    assert expected.wrong_weights(kept, np.array([3.0, 1, 1, 0, 0, 0, 0]), right, outcome) is None
    assert expected.wrong_weights(kept * 2, np.array([3.0, 1, 1, 0, 0, 0, 0]), right, outcome) is not None


def test_thresholds_take_all_that_tie() -> None:
    mask = np.array([1, 1, 1, 0, 0, 0], bool)
    w, g = np.array([1, 1, 2, 0, 0, 0], np.float32), np.array([0, 0, 0, 7, 7, 1], np.float32)
    found = expected.by_threshold(mask, w, expected.rank(g), 1, grow_ties=True)
    assert found.mask.tolist() == [False, False, True, True, True, False]


def test_our_rule_table_keys_are_integers() -> None:
    keys = expected.dst_ee_keys(
        array(torch.tensor([1.0, -2.0, float("nan")])), np.array([0, 1, 0]), np.array([0.5, 0.25], np.float32)
    )
    assert keys.dtype == np.int64 and keys.argmax() == 1 and keys.argmin() == 2
