"""Torch makes optimizers step in secret, with lr 0 and gradients of 0, when it wants their state: nothing may come of it."""

from __future__ import annotations

import functools

import pytest
import torch
from support import layouts
from support.layouts import LAYOUTS
from support.processes import Launcher
from support.rank_training import Held, Run, alone, assert_equal, together, train
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import dstee

pytestmark = pytest.mark.ranks


def looked_at(rank: int, name: str, n: int, run: Run, moments: tuple[int, ...]) -> Held:
    """The run, with a look at the optimizer's state after some of its steps, 0 being before the first."""
    where = layouts.places(LAYOUTS[name], n)

    def look(step: int, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
        if step in moments:
            t, groups = sparse.t, [dict(group, params=len(group["params"])) for group in optimizer.param_groups]
            state = get_optimizer_state_dict(model, optimizer)
            assert sparse.t == t and state["param_groups"]
            assert groups == [dict(group, params=len(group["params"])) for group in optimizer.param_groups]
            assert all(p.grad is None for p in model.parameters())

    return train(run, functools.partial(LAYOUTS[name].lay, n=n), where, look)


@pytest.mark.parametrize("moments", [(0, 0, 1), (5, 6, 16)])
@pytest.mark.parametrize(
    "optimizer",
    ["sparse-sgd", "sparse-sgd-dampened", pytest.param("sparse-sgd-without-momentum", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(("name", "n"), [("ddp", 2), ("fsdp", 3)])
def test_a_look_at_the_state_changes_nothing(
    launcher: Launcher, name: str, n: int, optimizer: str, moments: tuple[int, ...]
) -> None:
    run = Run(optimizer=optimizer)
    assert_equal(together(launcher.run(n, looked_at, name, n, run, moments)), alone(run))


@pytest.mark.parametrize(("name", "n"), [("ddp", 2), ("fsdp", 3)])
def test_later_looks_at_adamw(launcher: Launcher, name: str, n: int) -> None:
    """Before its first step torch's own optimizers count the hidden one; later none is made."""
    run = Run(optimizer="adamw")
    assert_equal(together(launcher.run(n, looked_at, name, n, run, (1, 6, 16))), alone(run))
