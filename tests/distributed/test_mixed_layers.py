"""Models of which some weights are cut and others are not, or are cut over other ranks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Layout, Odd
from support.processes import Launcher
from support.rank_training import Held, Run, alone, assert_equal, together, train
from support.refusals import refusal
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import dstee

pytestmark = pytest.mark.ranks


def _some_ignored(model: Odd, n: int) -> nn.Module:
    plain = {model.third.weight, model.first.weight, model.row.weight}
    return fully_shard(model, mesh=init_device_mesh("cpu", (n,)), ignored_params=plain)


def _four_meshes(model: Odd, n: int) -> nn.Module:
    """Layers over rows of the ranks, over columns, over all of them, and whole ones."""
    mesh = init_device_mesh("cpu", (n // 2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"third": ColwiseParallel(output_layouts=Replicate())})
    fully_shard(model.fourth, mesh=mesh["data"])
    fully_shard(model.second, mesh=init_device_mesh("cpu", (n,)))
    return model


def _replicated(model: Odd, n: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (n,))
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            copy = distribute_tensor(p.detach(), mesh, [Replicate()])
            setattr(module, name, nn.Parameter(copy, requires_grad=p.requires_grad))
    model.tie()
    return model


def _of_one_rank(model: Odd, n: int) -> nn.Module:
    return fully_shard(model, mesh=init_device_mesh("cpu", (n, 1), mesh_dim_names=("copy", "shard"))["shard"])


LAYS: dict[str, tuple[int, Callable[[Odd, int], nn.Module]]] = {
    "some-ignored": (3, _some_ignored),
    "four-meshes": (4, _four_meshes),
    "replicated": (2, _replicated),
    "of-one-rank": (2, _of_one_rank),
}


def on_rank(rank: int, name: str, runs: list[Run]) -> list[Held]:
    n, lay = LAYS[name]
    where = layouts.places(Layout(name, (n,), lay), n)
    return [train(run, functools.partial(lay, n=n), where) for run in runs]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "some-ignored")) for name in LAYS])
def test_trainings_are_those_of_one_process(launcher: Launcher, name: str) -> None:
    runs = [Run("granet"), Run("snfs", optimizer="adamw", before=True)]
    by_rank = launcher.run(LAYS[name][0], on_rank, name, runs)
    for i, run in enumerate(runs):
        assert_equal(together([of_rank[i] for of_rank in by_rank]), alone(run))


# --- a world of two trainings ----------------------------------------------------------------------------------------------


RUNS = (Run(every=2), Run("snfs", every=3, seed=4))


def of_a_half(rank: int) -> Held:
    """Ranks 0 and 1 train one model, 2 and 3 another, with updates at other steps; some weights of both are whole."""
    os.environ["DSTEE_CHECK_RANKS"] = "5"
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("half", "shard"))["shard"]

    def lay(model: Odd, n: int) -> nn.Module:
        return fully_shard(model, mesh=mesh, ignored_params={model.third.weight})

    where = layouts.places(Layout("half", (2,), lay), 2)
    return train(RUNS[rank // 2], functools.partial(lay, n=2), where)


def test_halves_of_the_ranks_train_by_themselves(launcher: Launcher) -> None:
    """And are compared by themselves."""
    by_rank = launcher.run(4, of_a_half)
    for half, run in enumerate(RUNS):
        assert_equal(together(by_rank[2 * half : 2 * half + 2]), alone(run))


# --- disagreement ----------------------------------------------------------------------------------------------------------


def without_gradients(rank: int, ranks: tuple[int, ...]) -> None:
    """``ranks`` alone have no gradient of a weight that lies on half of all ranks, and again on the others."""
    where = layouts.places(LAYOUTS["fsdp-tp"], dist.get_world_size())
    model = LAYOUTS["fsdp-tp"].lay(Odd(), dist.get_world_size())
    sparse = Run(every=1).sparsify(model)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    layouts.replay(model, where, 1)
    if rank in ranks:
        layouts.named(model)["conv.weight"].grad = None
    try:
        sparse.step(optimizer)
    finally:
        count = torch.ones(())
        dist.all_reduce(count)  # nobody is left waiting
        assert count == 4


@pytest.mark.parametrize("ranks", [(1,), (1, 3)])
def test_all_ranks_hear_of_a_missing_gradient(launcher: Launcher, ranks: tuple[int, ...]) -> None:
    kind, text = refusal(launcher.outcomes(4, without_gradients, ranks))
    assert kind == "RuntimeError" and "only some ranks have a gradient of conv.weight" in text
