"""The share of later important weights that growth ignored: by hand, against sets, and against many random draws."""

import itertools
import statistics

import pytest
import torch
from torch import nn

from dstee import metrics, ops
from dstee.methods import DSTEE, RigL, Static
from dstee.metrics import Ignored
from dstee.optim import SparseSGD
from dstee.schedule import ConstantDrop, UpdateSchedule
from dstee.sparsification import sparsify


def hand_made(before, after):
    """One layer of two rows with these masks before and after its update."""
    model = nn.Sequential(nn.Linear(5, 2, bias=False))
    sparse = sparsify(model, 0.5)
    layer = sparse.layers["0.weight"]
    old, new = (torch.tensor(mask, dtype=torch.bool) for mask in (before, after))
    layer.previous_bits, layer.mask_bits, layer.nnz = ops.pack_mask(old), ops.pack_mask(new), int(new.sum())
    with torch.no_grad():
        layer.param.mul_(new)
    return sparse


BEFORE = [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]
AFTER = [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]  # (0, 1) and (1, 2) dropped, (0, 2) and (1, 4) grown
# (0, 1) and (1, 2), the largest, were active before the update and do not count.
LATER = [[9.0, 99.0, 0.1, 0.7, 0.2], [0.2, 9.0, 99.0, 0.3, 0.9]]


def test_by_hand():
    sparse = hand_made(BEFORE, AFTER)
    found = metrics.ignored_later(sparse, {"0.weight": torch.tensor(LATER)})
    # Important: (1, 4) with 0.9, which was grown, and (0, 3) with 0.7, which was not. Candidates: 10 less the 2 that stayed.
    assert found.per_layer == {"0.weight": Ignored(candidates=8, grown=2, important=2, missed=1)}
    one = found.per_layer["0.weight"]
    assert (one.share, one.random) == (0.5, 0.75) == (found.share, found.random)
    # Two drawn of eight, two sought: P(0, 1, 2 hits) = 15/28, 12/28, 1/28.
    mean = 12 / 28 + 2 / 28
    variance = 12 / 28 + 4 / 28 - mean**2
    assert one.random == pytest.approx(1 - mean / 2) and one.random_std == pytest.approx(variance**0.5 / 2)


def test_what_was_dropped_and_grown_again_counts_as_grown():
    sparse = hand_made(BEFORE, AFTER)
    found = metrics.ignored_later(sparse, {"0.weight": torch.tensor(LATER)}, {"0.weight": 3})
    # The third is (1, 3) with 0.3; a weight that stayed was dropped and came back: 9 candidates.
    assert found.per_layer == {"0.weight": Ignored(9, 3, 3, 2)}


def test_equal_importance_goes_by_index():
    sparse = hand_made(BEFORE, AFTER)
    # (0, 2), which was grown, and (0, 3)
    assert metrics.ignored_later(sparse, {"0.weight": torch.ones(2, 5)}).per_layer["0.weight"].missed == 1


def test_no_more_is_sought_than_was_inactive():
    full = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    after = [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    found = metrics.ignored_later(hand_made(full, after), {"0.weight": torch.ones(2, 5)}, {"0.weight": 4})
    assert found.per_layer == {"0.weight": Ignored(5, 4, 1, 0)}


def updated(method=None, layout=torch.contiguous_format):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 4, 6)).to(memory_format=layout)
    schedule = UpdateSchedule(every=2, drop=ConstantDrop(0.3))
    sparse = sparsify(model, 0.7, method=method or RigL(regrow=False), schedule=schedule, seed=1)
    optimizer = SparseSGD(model.parameters(), sparse, lr=0.05)
    before = sparse.masks()
    for step in range(2):
        optimizer.zero_grad()
        model(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        before = sparse.masks()
        sparse.step(optimizer)
    return sparse, before


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("method", [RigL(regrow=False), DSTEE(c_rel=1.0)])
def test_against_sets(method, layout):
    sparse, before = updated(method, layout)
    generator = torch.Generator().manual_seed(7)
    importance = {name: torch.rand(layer.shape, generator=generator) for name, layer in sparse.layers.items()}
    found = metrics.ignored_later(sparse, importance)
    missed_in_all = sought_in_all = 0
    for name in sparse.layers:
        old, new = before[name].flatten().tolist(), sparse.mask(name).flatten().tolist()
        later = importance[name].flatten().tolist()
        grown = {i for i in range(len(old)) if new[i] and not old[i]}
        stayed = {i for i in range(len(old)) if new[i] and old[i]}
        ranked = sorted((i for i in range(len(old)) if not old[i]), key=lambda i: (-later[i], i))
        missed = set(ranked[: len(grown)]) - grown
        assert found.per_layer[name] == Ignored(len(old) - len(stayed), len(grown), len(grown), len(missed))
        missed_in_all, sought_in_all = missed_in_all + len(missed), sought_in_all + len(grown)
    assert found.share == missed_in_all / sought_in_all and 0.5 < found.share < 1
    assert list(found.per_layer) == list(sparse.layers)


def test_random_growth_by_counting_all_draws():
    one = Ignored(candidates=9, grown=4, important=3, missed=0)
    shares = [len({0, 1, 2} - set(draw)) / 3 for draw in itertools.combinations(range(9), 4)]
    assert one.random == pytest.approx(statistics.fmean(shares))
    assert one.random_std == pytest.approx(statistics.pstdev(shares))
    other = Ignored(5, 2, 2, 0)
    both = [
        (len({0, 1, 2} - set(x)) + len({0, 1} - set(y))) / 5
        for x in itertools.combinations(range(9), 4)
        for y in itertools.combinations(range(5), 2)
    ]
    total = metrics.IgnoredGrowth({"a": one, "b": other})
    assert total.random == pytest.approx(statistics.fmean(both))
    assert total.random_std == pytest.approx(statistics.pstdev(both))
    assert Ignored(1, 1, 1, 0).random_std == 0


def test_what_does_not_fit_is_refused():
    sparse, _ = updated()
    good = {name: torch.rand(layer.shape) for name, layer in sparse.layers.items()}
    for importance, text in (
        ({**good, "3.wieght": good["3.weight"]}, r"importance has '3.wieght' \(did you mean '3.weight'\?\)"),
        ({"3.weight": good["3.weight"]}, r"importance of 0.weight: got nothing, expected a tensor \[12, 3, 3, 3\]"),
        ({**good, "3.weight": torch.rand(6, 3)}, r"importance of 3.weight: got \[6, 3\], expected a tensor \[6, 48\]"),
        ({**good, "0.weight": torch.full((12, 3, 3, 3), float("nan"))}, "importance of 0.weight is NaN in places"),
    ):
        with pytest.raises(ValueError, match=text):
            metrics.ignored_later(sparse, importance)
    with pytest.raises(ValueError, match=r"grown says 0 for 0\.weight, expected"):
        metrics.ignored_later(sparse, good, {"0.weight": 0})
    for method in (Static(), RigL()):
        with pytest.raises(ValueError, match="the last update grew nothing, or there was none"):
            metrics.ignored_later(sparsify(nn.Linear(4, 4), 0.5, method=method), {"weight": torch.rand(4, 4)})
