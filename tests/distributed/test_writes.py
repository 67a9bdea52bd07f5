"""What somebody writes to weights that are cut among ranks, on all of them or on one alone."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_steps import build, steps
from support.rank_training import Run
from support.refusals import refusal
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import dstee

pytestmark = pytest.mark.ranks


def write(rank: int, name: str, kind: str) -> tuple[list[str], int]:
    """The warnings of the steps after it, and the updates."""
    training = build(name, dist.get_world_size(), Run())
    steps(training, 1, 2)
    p = layouts.named(training.model)["third.weight"]
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "all":
            p.add_(1)
        elif rank == 1 and kind == "here":
            p.to_local().add_(1)
        elif rank == 1 and kind == "inside":
            p.to_local().mul_(0.5)
        elif kind == "elsewhere":
            other = torch.zeros(p.shape)
            other.view(-1)[::7] = 1
            p.copy_(distribute_tensor(other, p.device_mesh, p.placements))
        steps(training, 3, 6)
    for layer in training.sparse.layers.values():
        assert not layer.local[layer.inactive()].any()
    return [str(w.message).split(":")[0] for w in caught], training.sparse.round


@pytest.mark.parametrize(("name", "n"), [("fsdp", 3), ("tp-rows", 2)])
@pytest.mark.parametrize("kind", ["all", "here", "inside"])
def test_weights_outside_the_masks_are_0_again(launcher: Launcher, name: str, n: int, kind: str) -> None:
    """A rank that has written to its own part alone sees to it alone, at a step that updates nothing."""
    for rank, (found, updates) in enumerate(launcher.run(n, write, name, kind)):
        warned = kind == "all" or (kind == "here" and rank == 1)
        assert found == ["weights outside the masks were written and are 0 again"] * warned
        assert updates == 3


def test_weights_of_other_masks_are_refused(launcher: Launcher) -> None:
    kind, text = refusal(launcher.outcomes(2, write, "fsdp", "elsewhere"))
    assert kind == "ValueError" and "they belong to other masks" in text


# --- averages ----------------------------------------------------------------------------------------------------------------


def average(rank: int, same: bool) -> None:
    """Its weights lie on the same ranks, in parts of the same shape, which are parts of the whole as the model's or others."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    model, copy = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    for one, placements in ((model, (Shard(0), Shard(1))), (copy, (Shard(0), Shard(1)) if same else (Shard(1), Shard(0)))):
        one[0].weight = nn.Parameter(distribute_tensor(one[0].weight.detach(), mesh, placements))
    sparse = dstee.sparsify(model, 0.8)
    sparse.apply_masks(copy)
    assert torch.equal(copy[0].weight.full_tensor() != 0, sparse.mask("0.weight").full_tensor())


def whole_average(rank: int) -> None:
    sparse = Run().sparsify(LAYOUTS["fsdp"].lay(Odd(), 2))
    sparse.apply_masks(Odd(1))


def sharded_average(rank: int) -> None:
    sparse = Run().sparsify(LAYOUTS["fsdp"].lay(Odd(), 2))
    other = fully_shard(Odd(1), mesh=init_device_mesh("cpu", (2,)))
    sparse.apply_masks(other)
    for name, layer in sparse.layers.items():
        assert not layouts.local(layouts.named(other)[name])[layer.inactive().view(-1)].any()


def test_averages_are_masked_where_they_lie_as_the_model(launcher: Launcher) -> None:
    launcher.run(4, average, True)
    launcher.run(2, sharded_average)


@pytest.mark.parametrize("n", [2, 4])
def test_averages_that_lie_otherwise_are_refused(launcher: Launcher, n: int) -> None:
    kind, text = refusal(launcher.outcomes(2, whole_average) if n == 2 else launcher.outcomes(4, average, False))
    assert kind == "ValueError" and "cut among ranks in another way" in text
