"""Ranks that have gone different ways are told so, and those whose fellow has died do not wait for ever."""

from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import dcp_files, layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import Held, Run, alone, assert_equal, since, together, train
from support.refusals import refusal
from torch import nn

import dstee

pytestmark = pytest.mark.ranks


class Training:
    """A model laid out as ``name`` over all ranks, with SparseSGD and gradients that are the same everywhere."""

    def __init__(self, name: str, seed: int = 3, **settings: int) -> None:
        n = dist.get_world_size()
        self.where = layouts.places(LAYOUTS[name], n)
        self.model: nn.Module = LAYOUTS[name].lay(Odd(), n)
        self.sparse = Run(every=1, seed=seed, **settings).sparsify(self.model)
        self.optimizer = dstee.SparseSGD(self.model.parameters(), self.sparse, lr=0.125, momentum=0.9)

    def step(self, number: int) -> None:
        layouts.replay(self.model, self.where, number)
        self.sparse.step(self.optimizer)


# --- a check that compares -------------------------------------------------------------------------------------------------


def checked(rank: int, name: str, fault: str) -> float:
    """Seconds until the check has raised."""
    training = Training(name)
    training.step(1)
    dstee.distributed.check(training.sparse)  # all is well
    if fault == "update" and rank == 1:
        training.step(2)
    elif fault == "weight" and rank == 1:
        p = training.model.get_parameter("module.third.weight" if name == "ddp" else "third.weight")
        with torch.no_grad():
            p.view(-1)[training.sparse.layers["third.weight"].active().view(-1).nonzero()[0]] += 1
    elif fault == "mask" and rank == 1:
        training.sparse.layers["third.weight"].mask_bits[0] ^= 3
    start = time.monotonic()
    try:
        dstee.distributed.check(training.sparse)
    finally:
        assert time.monotonic() - start < 5
    return time.monotonic() - start


@pytest.mark.parametrize("fault", ["update", "mask"])
def test_check_names_rank_and_layer(launcher: Launcher, fault: str) -> None:
    _, text = refusal(launcher.outcomes(3, checked, "ddp", fault))
    assert "rank 1" in text
    if fault == "mask":
        assert "third.weight" in text and "second.weight" not in text


def other_seed(rank: int, name: str, wrapped: bool) -> list[torch.Tensor]:
    n = dist.get_world_size()
    model: nn.Module = LAYOUTS[name].lay(Odd(), n) if wrapped else Odd()
    sparse = Run(seed=rank).sparsify(model)
    return [layer.mask_bits.clone() for layer in sparse.layers.values()]


def test_ddp_takes_the_first_ranks_seed(launcher: Launcher) -> None:
    found = launcher.run(3, other_seed, "ddp", True)
    alone = Run(seed=0).sparsify(Odd())
    for bits in found:
        assert all(torch.equal(a, layer.mask_bits) for a, layer in zip(bits, alone.layers.values(), strict=True))


def test_plain_models_keep_their_own_seed(launcher: Launcher) -> None:
    """A sweep: each rank trains a model of its own, and nothing is sent."""
    first, second = launcher.run(2, other_seed, "copies", False)
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- DSTEE_CHECK_RANKS=1 ---------------------------------------------------------------------------------------------------


def skips(rank: int) -> tuple[str, str, float]:
    """Rank 1 leaves out step 3 and goes on; debug mode says so at the next update, in time."""
    os.environ["DSTEE_CHECK_RANKS"] = "1"
    training = Training("ddp")
    start = time.monotonic()
    try:
        for number in range(1, 6):
            if not (rank == 1 and number == 3):
                start = time.monotonic()
                training.step(number)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", time.monotonic() - start


def test_debug_mode_finds_a_skipped_update(launcher: Launcher) -> None:
    found = launcher.run(3, skips)
    assert all("rank 1" in text for _, text, _ in found), found
    assert all(seconds < 5 for _, _, seconds in found)


def stops(rank: int) -> tuple[str, float]:
    """Rank 2 comes to no second update."""
    os.environ["DSTEE_CHECK_RANKS"] = "1"
    training = Training("ddp")
    training.step(1)
    start = time.monotonic()
    if rank == 2:
        time.sleep(6)
        return "", 0
    try:
        training.step(2)
    except Exception as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start


def test_debug_mode_names_a_rank_that_is_missing(launcher: Launcher) -> None:
    found = launcher.run(3, stops)
    assert "rank 2" in found[0][0].lower() or "ranks 2" in found[0][0].lower(), found
    assert all(seconds < 5 for _, seconds in found)


# --- death -----------------------------------------------------------------------------------------------------------------


def go_on(rank: int, name: str, n: int, folder: str, dies: bool) -> Held:
    """A run with a checkpoint after step 6, whose rank 1 is killed after step 9; or the rest of it."""
    run = Run(optimizer="sparse-sgd")
    where = layouts.places(LAYOUTS[name], n)

    def after(step: int, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
        if step == 6:
            dcp_files.save(folder, model, sparse, optimizer)
        if step == 9 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def resume(step: int, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
        if step == 6:
            dcp_files.load(folder, model, sparse, optimizer)

    lay = functools.partial(LAYOUTS[name].lay, n=n)
    return train(run, lay, where, after) if dies else train(run, lay, where, resume, first=7)


@pytest.mark.parametrize(("name", "fewer"), [("fsdp", "fsdp"), ("tp-rows", "fsdp")])
def test_a_killed_rank_and_a_restart(launcher: Launcher, tmp_path: Path, name: str, fewer: str) -> None:
    folder = str(tmp_path / "checkpoint")
    outcomes = launcher.outcomes(3, go_on, name, 3, folder, True, timeout=10, limit=40)
    assert outcomes[1].error == ("dead", "SIGKILL")
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.error is not None and outcome.error[0] not in ("dead", "hangs"), outcome
    got = together(launcher.run(2, go_on, fewer, 2, folder, False))
    assert_equal(got, since(alone(Run()), 6))
