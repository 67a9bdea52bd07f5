"""Every way in which ranks can disagree is named, by rank and layer, on all of them; ranks that agree notice nothing."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from support.processes import Launcher
from support.rank_steps import Trained, build, steps
from support.rank_training import Run

import dstee
from dstee.distributed import check

NAME = "third.weight"
pytestmark = pytest.mark.ranks


def flip(bits: torch.Tensor) -> None:
    bits[0] ^= 1


def reject(built: Trained) -> str:
    """What :func:`check` says; nothing but that is raised, and in less than a second."""
    start = time.monotonic()
    try:
        check(built.sparse)
    except ValueError as error:
        assert time.monotonic() - start < 1
        return str(error)
    return ""


# --- nothing wrong ---------------------------------------------------------------------------------------------------------


def agreeing(rank: int, name: str, n: int, methods: list[str]) -> None:
    for method in methods:
        built = build(name, n, Run(method))
        check(built.sparse)
        steps(built, 1, 5)
        check(built.sparse)
        check(built.sparse, dist.group.WORLD)
        assert built.sparse.round == 2


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
            disturb(built.sparse)
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


# --- which ranks, and when -------------------------------------------------------------------------------------------------


def in_two_groups(rank: int) -> tuple[str, str]:
    """Ranks 0 and 1 train one model, 2 and 3 another."""
    groups = [dist.new_group([0, 1]), dist.new_group([3, 2], sort_ranks=False)]
    built = build("copies", 2, Run(seed=rank // 2))
    check(built.sparse, groups[rank // 2])
    with pytest.raises(ValueError, match="this rank is not in the group"):
        check(built.sparse, groups[1 - rank // 2])
    everywhere = reject(built)
    if rank == 3:
        flipped_mask(built.sparse)
    try:
        check(built.sparse, groups[rank // 2])
    except ValueError as error:
        return everywhere, str(error)
    return everywhere, ""


def test_groups(launcher: Launcher) -> None:
    found = launcher.run(4, in_two_groups)
    assert all(everywhere.startswith("ranks 2, 3 have seed 1, not 0 as the others: ") for everywhere, _ in found)
    apart = [text for _, text in found]
    assert apart[:2] == ["", ""] and apart[2] == apart[3]
    # Of two, the group's first rank is right; the others of its seed are told first.
    assert apart[2].startswith("rank 2 has another mask of third.weight than rank 3")


def test_one_process_counts() -> None:
    built = build("copies", 1, Run())
    steps(built, 1, 3)
    check(built.sparse)
    flipped_mask(built.sparse)
    with pytest.raises(ValueError, match=r"^rank 0 counts \d+ active weights in the mask of third\.weight, which has \d+: "):
        check(built.sparse)


def of_seed_of_rank(rank: int, name: str) -> tuple[list[torch.Tensor], str, int]:
    built = build(name, 2, Run(seed=rank))
    masks = list(built.sparse.masks().values())
    said = reject(built)
    steps(built, 1, 1)
    return masks, said, built.sparse.seed


def test_seeds(launcher: Launcher) -> None:
    """Under DDP the first rank's counts; plain models are compared by nobody but the check."""
    (masks, said, seed), (others, other, second) = launcher.run(2, of_seed_of_rank, "ddp")
    assert said == other == "" and seed == second == 0
    assert all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))
    (masks, said, seed), (others, other, second) = launcher.run(2, of_seed_of_rank, "copies")
    assert said == other and said.startswith("rank 1 has seed 1, not 0 as rank 0: ") and (seed, second) == (0, 1)
    assert not all(torch.equal(a, b) for a, b in zip(masks, others, strict=True))


def first_steps(rank: int, optimizer: str) -> list[str]:
    def say() -> str:
        before = built.sparse.t, [p.clone() for p in built.model.parameters()]
        try:
            steps(built, 1, 1)
        except ValueError as error:
            assert before[0] == built.sparse.t
            assert all(torch.equal(a, b) for a, b in zip(before[1], built.model.parameters(), strict=True))
            return str(error)
        return ""

    run = Run(optimizer=optimizer)
    found = []
    built = build("ddp", 2, run)
    if rank:
        flipped_mask(built.sparse)
        built.sparse.layers[key(built.sparse)].clear_outside()
    found.append(say())  # fresh
    built = build("ddp", 2, run)
    found.append(say())
    if rank:
        built.sparse.seed += 1
    found.append(say())  # a later step compares nothing
    built.sparse.load_state_dict(built.sparse.state_dict())
    found.append(say())
    return found


@pytest.mark.parametrize("optimizer", ["sparse-sgd", "adamw"])
def test_first_steps_under_ddp(launcher: Launcher, optimizer: str) -> None:
    found = launcher.run(2, first_steps, optimizer)
    assert found[0] == found[1]
    fresh, fine, later, loaded = found[0]
    assert fresh.startswith("rank 1 has another mask of third.weight than rank 0: ") and fine == later == ""
    assert loaded.startswith("rank 1 has seed 4, not 3 as rank 0: ")
