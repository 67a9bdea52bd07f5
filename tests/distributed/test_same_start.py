"""What is found of ranks that have made a model sparse, or loaded its state, each in its own way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import Run
from support.refusals import refusal

import dstee

pytestmark = pytest.mark.ranks


def step(name: str, before: bool, weights: int = 0, **settings: Any) -> None:
    """``before``: sparsify, then lay out. ``weights``: the seed of their values."""
    n = dist.get_world_size()
    where = layouts.places(LAYOUTS[name], n)
    settings = {"schedule": dstee.UpdateSchedule(2)} | settings
    model: Any = Odd(weights)
    sparse = dstee.sparsify(model, 0.8, **settings) if before else None
    model = LAYOUTS[name].lay(model, n)
    sparse = dstee.sparsify(model, 0.8, **settings) if sparse is None else sparse
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    layouts.replay(model, where, 1)
    try:
        sparse.step(optimizer)
    finally:
        count = torch.ones(())
        dist.all_reduce(count)  # nobody is left waiting
        assert count == n


def other(rank: int, name: str, before: bool, what: str) -> None:
    last = rank == dist.get_world_size() - 1
    if what == "weights":
        step(name, before, weights=rank, masks="magnitude")
    elif what == "seed":
        step(name, before, seed=7 if last else 3)
    elif what == "method":
        step(name, before, method="set" if last else "rigl")
    else:
        step(name, before, schedule=dstee.UpdateSchedule(1 if last else 2))


@pytest.mark.parametrize(
    ("name", "n", "before", "what", "words"),
    [
        ("fsdp", 2, True, "weights", "active weights on all ranks together"),
        ("fsdp-tp", 4, False, "seed", "rank 3 has seed 7, not 3 as the others"),
        ("fsdp", 2, True, "seed", "rank 1 has seed 7, not 3 as rank 0"),
        ("fsdp", 3, False, "method", "rank 2 has another method than the others"),
        ("tp-rows", 2, False, "schedule", "rank 1 has another schedule than rank 0"),
    ],
)
def test_ranks_that_differ_are_told_so(launcher: Launcher, name: str, n: int, before: bool, what: str, words: str) -> None:
    kind, text = refusal(launcher.outcomes(n, other, name, before, what))
    assert kind == "ValueError" and words in text


def test_weights_may_differ_where_masks_come_afterwards(launcher: Launcher) -> None:
    """FSDP2 takes of each rank's weights its own part."""
    launcher.run(2, other, "fsdp", False, "weights")


def whole_momenta(rank: int, kind: str) -> None:
    """The optimizer's state is that of one process."""
    model = Odd()
    sparse = Run().sparsify(model)
    made = {
        "sparse-sgd": lambda m, s: dstee.SparseSGD(m.parameters(), s, momentum=0.9),
        "adamw": lambda m, _: torch.optim.AdamW(m.parameters()),
    }
    optimizer = made[kind](model, sparse)
    layouts.replay(model, layouts.held(model), 1)
    sparse.step(optimizer)
    where = layouts.places(LAYOUTS["fsdp"], dist.get_world_size())
    sharded = LAYOUTS["fsdp"].lay(Odd(), dist.get_world_size())
    other = Run().sparsify(sharded)
    again = made[kind](sharded, other)
    again.load_state_dict(optimizer.state_dict())
    other.load_state_dict(other.state_dict())
    layouts.replay(sharded, where, 2)
    other.step(again)


@pytest.mark.parametrize(("kind", "key"), [("sparse-sgd", "momentum_buffer"), ("adamw", "exp_avg")])
def test_whole_state_of_weights_that_are_cut_is_refused(launcher: Launcher, kind: str, key: str) -> None:
    kind, text = refusal(launcher.outcomes(2, whole_momenta, kind))
    assert kind == "ValueError" and f"has {key} [5, 2, 3, 3] whole" in text and "set_optimizer_state_dict" in text
