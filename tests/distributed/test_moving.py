"""``Module.to``, which hosts call when they like, leaves a sharded model's training as it is."""

from __future__ import annotations

import pytest
import torch
from support.processes import Launcher
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import dstee

pytestmark = pytest.mark.ranks


def train(rank: int, moved: bool) -> tuple[int, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 2))
    fully_shard(model)
    sparse = dstee.sparsify(model, 0.9, schedule=dstee.UpdateSchedule(2))
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    x, y = torch.randn(32, 20), torch.randint(0, 2, (32,))
    for _ in range(6):
        if moved:
            model.to("cpu")  # weights and gradients
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sparse.step(optimizer)
    return sparse.round, [p.full_tensor() for p in model.parameters()] + [m.full_tensor() for m in sparse.masks().values()]


def test_a_sharded_model_is_moved(launcher: Launcher) -> None:
    stayed, moved = (launcher.run(2, train, moved) for moved in (False, True))
    for (rounds, expected), (found_rounds, found) in zip(stayed, moved, strict=True):
        assert rounds == found_rounds == 3
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
