"""masks_from_scores, and what sparsify and a layer make of masks and of numbers that lie on the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dstee
from dstee.layer_batch import LayerBatch
from dstee.sparse_layer import LaterCounts

SCORES = {"a": torch.tensor([[3.0, -1.0], [0.0, 2.0]]), "b": torch.tensor([3.0, 2.0, math.nan])}


def test_the_best_of_each_layer():
    masks = dstee.masks_from_scores(SCORES, k={"a": 2, "b": 3})
    assert masks["a"].tolist() == [[True, False], [False, True]] and masks["b"].tolist() == [True, True, True]
    a, b = dstee.masks_from_scores(list(SCORES.values()), k=[3, 1])
    assert a.tolist() == [[True, False], [True, True]] and b.tolist() == [True, False, False], "scores have a sign"


def test_the_best_of_all_layers():
    for total in (4, torch.tensor([4])):
        masks = dstee.masks_from_scores(SCORES, total=total)
        assert masks["a"].tolist() == [[True, False], [False, True]] and masks["b"].tolist() == [True, True, False]
    assert not any(m.any() for m in dstee.masks_from_scores(SCORES, total=0).values())
    assert dstee.masks_from_scores([], total=0) == [] and dstee.masks_from_scores({}, k={}) == {}


def test_masks_have_the_memory_order_of_scores_and_leave_these_alone():
    scores = torch.arange(6.0).view(2, 3).t()
    before = scores.clone()
    (mask,) = dstee.masks_from_scores([scores.requires_grad_()], k=[2])
    assert mask.stride() == (1, 3) and torch.equal(mask, before >= 4) and torch.equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "given", "error", "text"),
    [
        (SCORES, {}, ValueError, "pass k, .*or total.*one of them"),
        (SCORES, dict(k={"a": 1, "b": 1}, total=2), ValueError, "one of them"),
        (SCORES, dict(k={"a": 1}), ValueError, r"k must be a dict with the names of scores, \['a', 'b'\], got \['a'\]"),
        (SCORES, dict(k=[1, 1]), ValueError, "k must be a dict.*got list"),
        (SCORES, dict(total=8), ValueError, r"total must be in 0\.\.7"),
        (SCORES, dict(k={"a": 5, "b": 1}), ValueError, r"k\[0\] must be in 0\.\.4"),
        ([torch.ones(3, dtype=torch.float64)], dict(total=1), TypeError, r"scores\[0\] has dtype torch.float64.*convert"),
        (torch.ones(3), dict(total=1), TypeError, "scores must be a list of tensors"),
    ],
)
def test_refusals(scores, given, error, text):
    with pytest.raises(error, match=text):
        dstee.masks_from_scores(scores, **given)


def sparse_mlp() -> tuple[nn.Sequential, dstee.SparseModel]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    scores = {name: p.detach().abs() for name, p in model.named_parameters() if p.dim() == 2}
    return model, dstee.sparsify(model, masks=dstee.masks_from_scores(scores, total=20))


def test_sparsify_takes_them():
    model, sparse = sparse_mlp()
    assert sparse.nnz == 20 and sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() == 2) == 20


def test_the_number_of_active_weights_may_come_from_the_device():
    _, sparse = sparse_mlp()
    layers = list(sparse.layers.values())
    batch = LayerBatch(layers, [layer.param for layer in layers], [], [])
    on_device = batch.nnz
    assert on_device.tolist() == [layer.nnz for layer in layers] and on_device.dtype == torch.int64
    layers[0].nnz = LaterCounts(on_device + 3), 0
    assert sparse.nnz == 23 and type(layers[0].nnz) is int
