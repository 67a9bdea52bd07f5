"""Every way in which ranks can disagree is named, by rank and layer, on all of them; ranks that agree notice nothing."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from support import layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import OPTIMIZERS, Run
from torch import nn

import dstee
from dstee.distributed import check

NAME = "third.weight"
pytestmark = pytest.mark.ranks

Model = tuple[nn.Module, dstee.SparseModel, torch.optim.Optimizer, dict[str, torch.Tensor]]


def build(name: str, n: int, run: Run) -> Model:
    layout = LAYOUTS[name]
    where = layouts.places(layout, n)
    model = layout.lay(Odd(), n)
    sparse = run.sparsify(model)
    return model, sparse, OPTIMIZERS[run.optimizer](model, sparse), where


def steps(built: Model, first: int, last: int) -> None:
    model, sparse, optimizer, where = built
    for step in range(first, last + 1):
        layouts.replay(model, where, step)
        sparse.step(optimizer)
        optimizer.zero_grad()


def flip(bits: torch.Tensor) -> None:
    bits[0] ^= 1


def reject(built: Model) -> str:
    """What :func:`check` says; nothing but that is raised, and in less than a second."""
    start = time.monotonic()
    try:
        check(built[1])
    except ValueError as error:
        assert time.monotonic() - start < 1
        return str(error)
    return ""


# --- nothing wrong ---------------------------------------------------------------------------------------------------------


def agreeing(rank: int, name: str, n: int, methods: list[str]) -> None:
    for method in methods:
        built = build(name, n, Run(method))
        check(built[1])
        steps(built, 1, 5)
        check(built[1])
        check(built[1], dist.group.WORLD)
        assert built[1].round == 2


@pytest.mark.parametrize(
    ("name", "n"), [("copies", 2), ("ddp", 3), ("fsdp", 4), ("hsdp", 4), ("tp-columns", 2), ("tp-rows", 3), ("fsdp-tp", 4)]
)
def test_agreement(launcher: Launcher, name: str, n: int) -> None:
    methods = ["dst-ee", "snfs", "rigl-replace"] if name in ("copies", "ddp") else ["dst-ee", "rigl-replace"]
    launcher.run(n, agreeing, name, n, methods)


# --- every disagreement ----------------------------------------------------------------------------------------------------


def another_seed(sparse: dstee.SparseModel) -> None:
    sparse.seed += 1


def more_steps(sparse: dstee.SparseModel) -> None:
    sparse.set_progress(sparse.t + 1, sparse.round)


def more_rounds(sparse: dstee.SparseModel) -> None:
    sparse.set_progress(sparse.t, sparse.round + 1)


def another_method(sparse: dstee.SparseModel) -> None:
    sparse.method = dstee.SET()


def another_setting(sparse: dstee.SparseModel) -> None:
    sparse.method = dataclasses.replace(sparse.method, c_rel=0.25)  # type: ignore[type-var]


def another_schedule(sparse: dstee.SparseModel) -> None:
    sparse.schedule = dstee.UpdateSchedule(4, 17, dstee.ConstantDrop(0.3))


def missing_layer(sparse: dstee.SparseModel) -> None:
    sparse.remove(key(sparse))


def missing_counters(sparse: dstee.SparseModel) -> None:
    sparse.layers[key(sparse)].counts = None


def another_number(sparse: dstee.SparseModel) -> None:
    sparse.layers[key(sparse)].nnz += 1


def flipped_mask(sparse: dstee.SparseModel) -> None:
    flip(sparse.layers[key(sparse)].mask_bits)


def moved_weight(sparse: dstee.SparseModel) -> None:
    """As many active weights as there should be."""
    layer = sparse.layers[key(sparse)]
    mask = layer.active()
    flat = mask.view(-1)
    on, off = int(flat.nonzero()[0]), int((~flat).nonzero()[0])
    flat[on], flat[off] = False, True
    layer.mask_bits = dstee.ops.pack_mask(mask)


def flipped_before(sparse: dstee.SparseModel) -> None:
    bits = sparse.layers[key(sparse)].previous_bits
    assert bits is not None
    flip(bits)


def flipped_counter(sparse: dstee.SparseModel) -> None:
    counts = sparse.layers[key(sparse)].counts
    assert counts is not None
    counts[-1] += 1


def another_average(sparse: dstee.SparseModel) -> None:
    sparse.layers[key(sparse)].state["momentum"].view(-1)[3] += 1


def broken_model(sparse: dstee.SparseModel) -> None:
    del sparse.layers[key(sparse)].module.weight


def key(sparse: dstee.SparseModel) -> str:
    return next(name for name in sparse.layers if name.endswith(NAME))


EVERYWHERE: list[tuple[Callable, str]] = [
    (another_seed, r"rank {r} has seed 4, not 3 as (the others|rank 0): "),
    (more_steps, r"rank {r} has t 4, not 3 as "),
    (more_rounds, r"rank {r} has round 2, not 1 as "),
    (another_method, r"rank {r} has another method than .*method set instead of dst-ee"),
    (another_setting, r"rank {r} has another method than .*\(c_rel 0.25 instead of 0.1\)"),
    (another_schedule, r"rank {r} has another schedule than .*\(every 4 instead of 2\)"),
    (missing_layer, r"rank {r} has no sparse third\.weight, unlike "),
    (missing_counters, r"rank {r} has another third\.weight than .*\(counters False instead of True\)"),
    (another_number, r"rank {r} has another third\.weight than .*\(active \d+ instead of \d+\)"),
    (broken_model, r"cannot be compared: on rank {r}, third\.weight is no parameter of its module any more"),
]
OF_COPIES: list[tuple[Callable, str]] = [
    (flipped_mask, r"rank {r} has another mask of third\.weight than "),
    (moved_weight, r"rank {r} has another mask of third\.weight than "),
    (flipped_before, r"rank {r} has another mask before the last update of third\.weight than "),
    (flipped_counter, r"rank {r} has other counters of third\.weight than "),
]


def disturbed(rank: int, name: str, n: int, run: Run, disturbances: list[Callable], who: int) -> list[str]:
    found = []
    for disturb in disturbances:
        built = build(name, n, run)
        steps(built, 1, 3)
        if rank == who:
            disturb(built[1])
        found.append(reject(built))
    return found


def assert_named(by_rank: list[list[str]], cases: list[tuple[Callable, str]], who: int) -> None:
    assert all(said == by_rank[0] for said in by_rank)
    for said, (disturb, pattern) in zip(by_rank[0], cases, strict=True):
        assert re.search(pattern.format(r=who), said), (disturb.__name__, said)
        assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "n", "who"), [("copies", 2, 1), ("copies", 3, 0), ("ddp", 2, 1), ("ddp", 3, 1), ("fsdp", 3, 2)]
)
def test_numbers_and_settings(launcher: Launcher, name: str, n: int, who: int) -> None:
    said = launcher.run(n, disturbed, name, n, Run(), [disturb for disturb, _ in EVERYWHERE], who)
    assert_named(said, EVERYWHERE, who)


@pytest.mark.parametrize(("name", "n", "who"), [("copies", 2, 1), ("copies", 3, 0), ("ddp", 3, 1), ("hsdp", 4, 3)])
def test_tensors_of_copies(launcher: Launcher, name: str, n: int, who: int) -> None:
    said = launcher.run(n, disturbed, name, n, Run(), [disturb for disturb, _ in OF_COPIES], who)
    assert_named(said, OF_COPIES, who)


@pytest.mark.parametrize(("name", "n"), [("fsdp", 2), ("fsdp", 4), ("tp-rows", 3), ("hsdp", 4)])
def test_masks_of_parts_must_add_up(launcher: Launcher, name: str, n: int) -> None:
    (said,) = {said[0] for said in launcher.run(n, disturbed, name, n, Run(), [flipped_mask], n - 1)}
    if name == "hsdp":
        assert said.startswith("rank 3 has another mask of third.weight than the others")
    else:
        everybody = ", ".join(map(str, range(n)))
        assert re.match(rf"ranks {everybody} count \d+ active weights in the mask of third\.weight, which has \d+: ", said)


def test_what_a_method_keeps(launcher: Launcher) -> None:
    (said,) = {said[0] for said in launcher.run(2, disturbed, "copies", 2, Run("snfs"), [another_average], 1)}
    assert said.startswith("rank 1 has another momentum of third.weight than rank 0: ")
