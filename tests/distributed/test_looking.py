"""What a SparseModel tells of weights that are cut among ranks is what it tells of whole ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.processes import Launcher
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import dstee
from dstee import metrics

pytestmark = pytest.mark.ranks


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 2))


def trained(model: nn.Module) -> dstee.SparseModel:
    method = dstee.DSTEE(c=1e-3)
    return dstee.sparsify(model, 0.9, method=method, schedule=dstee.UpdateSchedule(2))


def told(model: nn.Module) -> tuple[dstee.SparseModel, dict[str, Any]]:
    sparse = trained(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 20, generator=generator), torch.randint(0, 2, (32,), generator=generator)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    for _ in range(6):
        optimizer.zero_grad()
        loss().backward()
        norm = sparse.clip_grad_norm_(0.5)
        sparse.step(optimizer)
    found = {
        "summary": str(sparse.summary()),
        "churn": metrics.churn(sparse),
        "exploration": metrics.exploration(sparse),
        "dead units": metrics.dead_units(sparse),
        "density": sparse.density(),
        "norm": round(float(norm), 4),
        "exploitation": round(metrics.exploitation(sparse, loss), 4),
    }
    sparse.check_weights()  # the forward before left FSDP2's root gathered
    return sparse, found


def on_rank(rank: int) -> dict[str, Any]:
    model = build()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    sparse, found = told(fully_shard(model))
    mask, counter = sparse.mask("0.weight"), sparse.counter("0.weight")
    assert isinstance(mask, DTensor) and mask.dtype is torch.bool and isinstance(counter, DTensor)
    found["mask"], found["counter"] = mask.full_tensor(), counter.full_tensor()
    weight = sparse.layers["0.weight"].param
    assert isinstance(weight, DTensor) and mask.placements == weight.placements
    sharding = sparse.layers["0.weight"].sharding
    assert sharding is not None and copy.deepcopy(sharding) == sharding and pickle.loads(pickle.dumps(sharding)) == sharding
    with pytest.raises(ValueError, match="the weights are cut among ranks"):
        sparse.export()
    sparse.remove("0.weight")
    sparse.check_weights()
    return found


def test_shards_are_told_of_as_wholes(launcher: Launcher) -> None:
    sparse, expected = told(build())
    expected |= {"mask": sparse.mask("0.weight"), "counter": sparse.counter("0.weight")}
    for found in launcher.run(3, on_rank):
        for name, value in expected.items():
            same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
            assert same, f"{name} is {found[name]}, expected {value}"
