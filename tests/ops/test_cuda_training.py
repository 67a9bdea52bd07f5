"""Training on a GPU equals training on the CPU, bit for bit, without a sync."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support import on_gpu
from torch import nn

import dstee
from dstee import methods
from dstee.testing import assert_same_bits

on_gpu.skip_or_fail()

DEVICE = on_gpu.DEVICE
Trained = tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD]


def make_model(dtype: torch.dtype, method: methods.Method) -> Trained:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.Flatten(), nn.Linear(24, 65), nn.Linear(65, 10)).to(dtype)
    schedule = dstee.UpdateSchedule(every=6, stop=90, drop=dstee.CosineDrop(0.4))
    sparse = dstee.sparsify(model, 0.8, method=method, schedule=schedule, seed=5)
    return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)


def train(model: nn.Module, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD, steps: range) -> None:
    """With gradients from a generator: what a real network computes differs between devices."""
    for t in steps:
        for i, p in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(1000 * t + i)
            p.grad = (torch.randn(p.shape, generator=generator) * 1e-2).to(p.device, p.dtype, non_blocking=True)
        sparse.step(optimizer)


def assert_same_models(actual: Trained, expected: Trained) -> None:
    for name, layer in expected[1].layers.items():
        other = actual[1].layers[name]
        assert_same_bits(other.param, layer.param, f"{name}: weights")
        buffers = [o.state[x.param]["momentum_buffer"] for o, x in ((actual[2], other), (expected[2], layer))]
        assert_same_bits(*buffers, f"{name}: momenta")
        assert_same_bits(other.mask_bits, layer.mask_bits, f"{name}: mask")
        if layer.counts is not None:
            assert_same_bits(other.counts, layer.counts, f"{name}: counters")
        for key in layer.state:
            assert_same_bits(other.state[key], layer.state[key], f"{name}: {key}")
    assert actual[1].state_dict().get("numbers") == expected[1].state_dict().get("numbers")


METHODS = {
    "DST-EE paper": methods.DSTEE.paper(),
    "MEST EM&S": methods.MEST(soft=True),
    "ADMM global": methods.ADMM(scope="global"),
    **{kind.name: kind() for kind in methods.METHODS.values() if kind.updates and not kind.needs_batches},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_on_a_gpu_equals_the_cpu(method: methods.Method, dtype: torch.dtype) -> None:
    here, there = make_model(dtype, method), make_model(dtype, method)
    there[0].to(DEVICE)
    for start in range(0, 90, 30):
        train(*here, range(start, start + 30))
        train(*there, range(start, start + 30))
        assert there[1].layers["0.weight"].mask_bits.device.type == DEVICE
        assert_same_models(there, here)
    assert here[1].round == there[1].round == sum(method.due(t, here[1].schedule) for t in range(1, 91)) > 0


def test_a_model_that_moves_during_training() -> None:
    here, there = make_model(torch.float32, methods.DSTEE()), make_model(torch.float32, methods.DSTEE())
    train(*here, range(40))
    train(*there, range(20))
    there[0].to(DEVICE)
    train(*there, range(20, 30))
    there[0].cpu()
    train(*there, range(30, 40))
    assert_same_models(there, here)


def test_steps_without_an_update_do_not_sync() -> None:
    """An update does, once: it looks at all weights and asks whether there is a gradient."""
    model, sparse, optimizer = make_model(torch.float32, methods.DSTEE())
    model.to(DEVICE)
    train(model, sparse, optimizer, range(2))  # masks follow, momenta are made
    for t in range(2, 20):
        with contextlib.nullcontext() if sparse.schedule.is_due(sparse.t + 1) else on_gpu.no_syncs():
            train(model, sparse, optimizer, range(t, t + 1))
    assert sparse.round == 3
