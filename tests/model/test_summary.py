"""Figures of the summary: dead units of every layout of weights, and the most that updates can have explored."""

from __future__ import annotations

import pytest
import torch
from support.small_models import Experts, mlp
from torch import Tensor, nn

import dstee
from dstee import metrics
from dstee.schedule import ConstantDrop, UpdateSchedule


def silence(sparse: dstee.SparseModel, name: str, mask: Tensor) -> None:
    layer = sparse.layers[name]
    layer.mask_bits, layer.nnz = dstee.ops.pack_mask(mask), int(mask.sum())
    layer.param.data.uniform_(0.1, 1).mul_(mask)


@pytest.mark.parametrize("transposed", [None, True, False])
def test_dead_units_of_experts_are_those_of_each_expert(transposed):
    """[experts, in, out], unless the module says that its experts are not transposed, as those of transformers do."""
    model = Experts()
    if transposed is not None:
        model.is_transposed = transposed
    if transposed is False:
        model.gate_up, model.down = nn.Parameter(torch.randn(4, 10, 6)), nn.Parameter(torch.randn(4, 6, 5))
    sparse = dstee.sparsify(model, 0.5, include=["gate_up", "down"])
    mask = torch.ones(4, 5, 6, dtype=torch.bool)
    mask[0, :, 2:4] = mask[3, :, 5] = False
    mask[1, 0] = False  # an input
    turn = transposed is False
    silence(sparse, "down", mask.transpose(1, 2).contiguous() if turn else mask)
    silence(sparse, "gate_up", torch.ones(sparse.layers["gate_up"].shape, dtype=torch.bool))
    assert metrics.dead_units(sparse).per_layer == {"gate_up": 0.0, "down": 3 / 24}
    silent = (model(torch.rand(4, 7, 6)) == 0).all(1)
    assert int(silent.sum()) == 3
    row = sparse.summary().layers[1]
    assert (row.dead, row.units) == (3, 24)


def test_dead_units_of_attention_are_those_of_query_key_and_value():
    sparse = dstee.sparsify(nn.MultiheadAttention(4, 2), 0.5)
    mask = torch.ones(12, 4, dtype=torch.bool)
    mask[[0, 5, 11]] = False
    mask[1, :3] = False
    silence(sparse, "in_proj_weight", mask)
    assert metrics.dead_units(sparse).per_layer["in_proj_weight"] == 3 / 12


def train(sparse: dstee.SparseModel, steps: int) -> None:
    optimizer = dstee.SparseSGD(sparse.model.parameters(), sparse, lr=0.1)
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        for p in sparse.model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        sparse.step(optimizer)


@pytest.mark.parametrize("method", ["rigl", "set", dstee.DSTEE(c=100.0)])
def test_the_limit_of_exploration_by_hand(method):
    schedule = UpdateSchedule(every=2, stop=7, drop=ConstantDrop(0.3))  # updates at 2, 4 and 6
    sparse = dstee.sparsify(
        mlp(), {"0.weight": 0.75, "3.weight": 0.2}, method=method, schedule=schedule, track_exploration=True
    )  # 27 of 108 swap 9 a time (8.1 rounded up), 36 of 45 swap 11
    for steps, updates in ((0, 0), (1, 0), (1, 1), (2, 2), (2, 3), (6, 3)):
        train(sparse, steps)
        limit = metrics.exploration_limit(sparse)
        most = [27 + 9 * updates, min(45, 36 + 11 * updates)]
        assert limit.per_layer == {"0.weight": most[0] / 108, "3.weight": most[1] / 45}
        assert limit.total == sum(most) / 153
        found = metrics.exploration(sparse)
        assert all(found.per_layer[name] <= limit.per_layer[name] for name in sparse.layers)
        rows = sparse.summary()
        assert [row.explorable for row in rows.layers] == most and rows.total.explorable == sum(most)
        assert str(rows).splitlines()[-1].split()[-1] == f"{found.total / limit.total:.4f}"
    if isinstance(method, dstee.DSTEE):  # exploration alone: every weight that is grown is new
        assert found.per_layer["0.weight"] == limit.per_layer["0.weight"]


def test_the_limit_of_exploration_without_updates():
    static = dstee.sparsify(mlp(), 0.5, method="static", track_exploration=True)
    static.set_progress(10_000, 0)
    assert metrics.exploration_limit(static) == metrics.exploration(static)
    falling = dstee.sparsify(mlp(), {"0.weight": 0.75, "3.weight": 0.0}, schedule=UpdateSchedule(10, 30, dstee.CosineDrop(0.4)))
    falling.set_progress(100, 2)  # updates at 10 and 20, by 0.3 and 0.1 of 27 weights
    assert metrics.exploration_limit(falling).per_layer["0.weight"] == (27 + 9 + 3) / 108
    falling.model[0].weight.requires_grad_(False)
    assert metrics.exploration_limit(falling).per_layer["0.weight"] == 27 / 108


@pytest.mark.parametrize("method", [dstee.DeepR(l1=1.0, noise=3.0), dstee.MEST(soft=True), dstee.SNFS()])
def test_exploration_beyond_the_schedule_is_not_limited_by_it(method):
    schedule = UpdateSchedule(every=4, stop=30, drop=ConstantDrop(0.05))
    sparse = dstee.sparsify(mlp(), 0.8, method=method, schedule=schedule, track_exploration=True)
    sparse.model[3].weight.requires_grad_(False)
    train(sparse, 28)
    limit, found = metrics.exploration_limit(sparse), metrics.exploration(sparse)
    assert limit.per_layer == {"0.weight": 1.0, "3.weight": sparse.layers["3.weight"].nnz / 45}
    assert all(found.per_layer[name] <= limit.per_layer[name] for name in sparse.layers)
