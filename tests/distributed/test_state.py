"""States of weights that are cut among ranks: checkpoints between all layouts, both formats, and everything that is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support import dcp_files, layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import METHODS, Held, Run, alone, assert_equal, since, together, train
from support.sparse_states import edit, with_head
from torch import Tensor
from torch.distributed.tensor import DTensor

import dstee

pytestmark = pytest.mark.ranks

EVERY_LAYOUT = [
    ("copies", 1), ("ddp", 2), ("fsdp", 2), ("fsdp", 3), ("fsdp-nested", 4), ("fsdp-offload", 2), ("hsdp", 4),
    ("tp-columns", 3), ("tp-rows", 2), ("fsdp-tp", 4),
]  # fmt: skip
STEPS = 4
State = dict[str, Any]


def laid(name: str, n: int, run: Run, seed: int = 7) -> dstee.SparseModel:
    """A fresh sparse model, of other weights and masks."""
    return replace(run, seed=seed).sparsify(LAYOUTS[name].lay(Odd(seed), n))


def trained(name: str, n: int, run: Run) -> dstee.SparseModel:
    found: list[dstee.SparseModel] = []
    where = layouts.places(LAYOUTS[name], n)
    train(run, functools.partial(LAYOUTS[name].lay, n=n), where, lambda step, model, sparse, optimizer: found.append(sparse))
    return found[-1]


# --- the same state in every layout ----------------------------------------------------------------------------------------


def save_and_load(rank: int, name: str, n: int, run: Run, of_one: tuple[State, State]) -> list[str]:
    """Heads and digests of one state on its way through both formats."""
    sparse = trained(name, n, run)
    shaped, full = sparse.state_dict(), sparse.state_dict(full=True)
    found = [shaped["head"], full["digest"]]
    for state in (shaped, full, *of_one):  # the latter are whole, on every rank
        other = laid(name, n, run)
        other.load_state_dict(state)
        found += [other.state_dict()["head"], other.state_dict(full=True)["digest"]]
    return found


@pytest.mark.parametrize("method", ["dst-ee", "snfs"])
@pytest.mark.parametrize(("name", "n"), EVERY_LAYOUT)
def test_both_formats_are_those_of_one_process(launcher: Launcher, name: str, n: int, method: str) -> None:
    run = Run(method, steps=STEPS)
    sparse = one_process(run)
    shaped, full = sparse.state_dict(), sparse.state_dict(full=True)
    for found in launcher.run(n, save_and_load, name, n, run, (shaped, full)):
        assert found == [shaped["head"], full["digest"]] * 5


@functools.cache
def one_process(run: Run) -> dstee.SparseModel:
    found: list[dstee.SparseModel] = []
    train(run, after=lambda step, model, sparse, optimizer: found.append(sparse))
    return found[-1]


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------------


def stage(rank: int, name: str, n: int, run: Run, first: int, before: str | None, behind: str) -> Held:
    """The steps from ``first`` on, from checkpoint ``before`` to checkpoint ``behind``."""

    def after(step: int, model: torch.nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
        if step == first - 1 and before is None:
            sparse.schedule = dstee.UpdateSchedule(run.every, drop=dstee.ConstantDrop(0.3))  # which goes on in later stages
        elif step == first - 1:
            dcp_files.load(before, model, sparse, optimizer)
        if step == run.steps:
            dcp_files.save(behind, model, sparse, optimizer)

    return train(run, functools.partial(LAYOUTS[name].lay, n=n), layouts.places(LAYOUTS[name], n), after, first)


CHAINS = {
    "4-2-1-3": [("fsdp", 4), ("fsdp", 2), ("copies", 1), ("fsdp", 3)],
    "layouts": [("fsdp-tp", 4), ("fsdp", 2), ("hsdp", 4), ("tp-columns", 2), ("ddp", 2), ("copies", 1)],
    "and back": [("copies", 1), ("ddp", 3), ("tp-rows", 2), ("fsdp-nested", 4), ("fsdp-tp", 4)],
}


@pytest.mark.parametrize(
    ("chain", "optimizer"),
    [
        ("4-2-1-3", "sparse-sgd"),
        ("layouts", "sparse-sgd"),
        pytest.param("layouts", "adamw", marks=pytest.mark.slow),
        ("and back", "sparse-sgd"),
    ],
)
def test_trainings_go_on_in_other_layouts(launcher: Launcher, tmp_path: Path, chain: str, optimizer: str) -> None:
    before = None
    for i, (name, n) in enumerate(CHAINS[chain]):
        first, behind = 3 * i + 1, str(tmp_path / str(i))
        run = Run(optimizer=optimizer, before=i % 2 == 1, forward=chain == "4-2-1-3", steps=first + 2)
        got = together(launcher.run(n, stage, name, n, run, first, before, behind))
        want = since(alone(run), first - 1)
        want.facts.pop(f"updated at {first - 1}", None)
        assert_equal(got, want)
        before = behind


def as_it_is(rank: int, n: int, run: Run, folder: str) -> bool:
    sparse, other = trained("fsdp", n, run), laid("fsdp", n, run)
    dcp.save({"sparse": sparse}, checkpoint_id=folder)
    dcp.load({"sparse": other}, checkpoint_id=folder)
    return other.state_dict()["head"] == sparse.state_dict()["head"]


@pytest.mark.parametrize("method", ["dst-ee", "snfs"])
def test_checkpoints_take_the_sparse_model_as_it_is(launcher: Launcher, tmp_path: Path, method: str) -> None:
    assert launcher.run(2, as_it_is, 2, Run(method, steps=1), str(tmp_path)) == [True, True]


# --- what is refused -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted(Run):
    """With counters, whatever the method."""

    def sparsify(self, model: torch.nn.Module) -> dstee.SparseModel:
        method = METHODS[self.method]()
        schedule = dstee.UpdateSchedule(self.every, self.steps + 1)
        return dstee.sparsify(model, 0.8, method=method, schedule=schedule, seed=self.seed, track_exploration=True)


def refusal(sparse: dstee.SparseModel, state: object) -> str:
    """The error on loading ``state``, after which nothing has changed."""
    before = sparse.state_dict()["head"]
    with pytest.raises(ValueError) as caught:
        sparse.load_state_dict(state)  # type: ignore[arg-type]
    assert sparse.state_dict()["head"] == before
    return str(caught.value)


def part(t: Tensor) -> Tensor:
    return t._local_tensor.view(-1)  # type: ignore[attr-defined]


def flip(key: str, bit: int) -> Callable[[State], None]:
    """Changes one bit of the first value that this rank holds of ``fourth``."""

    def change(state: State) -> None:
        tensors = state["layers"]["fourth.weight"]
        values = part(tensors["kept"]["momentum"] if key == "kept" else tensors[key])
        values.view(torch.uint8)[bit // 8] ^= 1 << bit % 8

    return change


MASK = "layers/fourth.weight/mask"
CHANGES: list[tuple[Callable[[State], object], str]] = [
    (flip("mask", 0), "fourth.weight: mask is damaged, or not this rank's part: the fingerprint does not match"),
    (flip("mask", 1), "fourth.weight: mask is damaged"),
    (flip("mask", 7), "fourth.weight: mask holds 1"),
    (flip("counts", 0), "fourth.weight: counts "),
    (flip("counts", 15), "fourth.weight: counts lie in -32"),
    (flip("kept", 0), "fourth.weight: kept.momentum is damaged"),
    (flip("kept", 31), "fourth.weight: kept.momentum is damaged"),
    (lambda state: with_head(state, edit("t", 5), seal=False), "digest does not match: the head of the state was damaged"),
    (lambda state: with_head(state, edit("layers/fourth.weight/nnz", 9)), "the ranks load different states"),
    (lambda state: with_head(state, edit("t", 5)), "the ranks load different states"),
    (edit("head", "{}"), "head has format version None"),
    (edit("layers", 5), "layers is no dict"),
    (edit(MASK, "-"), "fourth.weight: the mask is missing"),
    (edit(MASK, lambda t: t.to_local()), "fourth.weight: mask is torch.uint8 ["),
    (edit(MASK, lambda t: t.float()), "fourth.weight: mask is torch.float32"),
    (edit(MASK, lambda t: DTensor.from_local(t._local_tensor, t.device_mesh, t.placements)), "but the weight is [33, 16]"),
]  # fmt: skip


def damage(rank: int, name: str, n: int, run: Run) -> list[str]:
    """What loading says where the last rank alone has a changed state."""
    sparse = trained(name, n, run)
    found = []
    for change, _ in CHANGES:
        state = sparse.state_dict()
        if rank == n - 1:
            change(state)
        found.append(refusal(sparse, state))
    for state in (None, sparse.state_dict(full=True)):
        shaped = sparse.state_dict()
        found.append(refusal(sparse, state if rank == n - 1 else shaped))
    sparse.load_state_dict(sparse.state_dict())
    return found


@pytest.mark.parametrize(("name", "n"), [("fsdp", 2), ("hsdp", 4), ("fsdp-tp", 4)])
def test_what_one_rank_finds_is_raised_on_all(launcher: Launcher, name: str, n: int) -> None:
    wanted = [text for _, text in CHANGES] + ["the sparse state must be a dict", "the ranks load different states"]
    by_rank = launcher.run(n, damage, name, n, Counted("snfs", steps=STEPS))
    for text, *found in zip(wanted, *by_rank, strict=True):
        assert text in found[0] and found == [found[0]] * n


def share_a_file(rank: int, name: str, n: int, run: Run, file: str) -> str:
    sparse = trained(name, n, run)
    state = sparse.state_dict()
    if rank == 0:
        torch.save(state, file)
    dist.barrier()
    return refusal(sparse, torch.load(file, weights_only=True))


@pytest.mark.parametrize(("name", "n"), [("fsdp", 2), ("fsdp", 3), ("hsdp", 4), ("tp-columns", 2), ("fsdp-tp", 4)])
def test_a_file_of_the_first_rank_is_refused(launcher: Launcher, tmp_path: Path, name: str, n: int) -> None:
    found = launcher.run(n, share_a_file, name, n, Run(steps=STEPS), str(tmp_path / "state.pt"))
    assert found == [found[0]] * n
    assert "use torch.distributed.checkpoint, or state_dict(full=True)" in found[0]


def other_layouts(rank: int, run: Run) -> list[str]:
    models = [trained("fsdp", 2, run), laid("tp-rows", 2, run), laid("copies", 2, run)]
    return [refusal(to, of.state_dict()) for of, to in [(models[0], models[1]), (models[1], models[0]), (models[0], models[2])]]


def test_tensors_of_another_layout_are_refused(launcher: Launcher) -> None:
    first, second = launcher.run(2, other_layouts, Run(steps=STEPS))
    assert first == second
    assert all("but the weight is " in text and "state_dict(full=True)" in text for text in first)
    assert "but the weight is plain" in first[2]


def without_a_layer(rank: int, name: str, n: int, run: Run) -> tuple[str, list[bool]]:
    sparse, other = trained(name, n, run), laid(name, n, run)
    kept = {name: mask.clone() for name, mask in other.masks().items()}
    state = with_head(sparse.state_dict(), lambda head: head["layers"].pop("fourth.weight"))
    text = refusal(other, state)
    other.load_state_dict(state, strict=False)
    of = {name: kept if name == "fourth.weight" else sparse.masks() for name in kept}
    return text, [torch.equal(other.mask(name), masks[name]) for name, masks in of.items()]


@pytest.mark.parametrize(("name", "n"), [("fsdp", 4), ("fsdp-tp", 4)])
def test_layers_that_a_state_lacks_keep_their_masks_if_told_so(launcher: Launcher, name: str, n: int) -> None:
    for text, same in launcher.run(n, without_a_layer, name, n, Run(steps=STEPS)):
        assert "fourth.weight: in the model, not in the state" in text and all(same)


def replace_on_one_rank(rank: int) -> str:
    sparse = trained("fsdp", 2, Run(steps=STEPS))
    state = sparse.state_dict()
    if rank == 1:
        sparse.model.fourth.weight = torch.nn.Parameter(torch.zeros(33, 16))
    found = []
    for call in (sparse.state_dict, lambda: sparse.load_state_dict(state)):
        with pytest.raises(RuntimeError) as caught:
            call()
        found.append(str(caught.value))
    assert found[0] == found[1]
    return found[0]


def test_weights_that_one_rank_has_lost_are_named_on_all(launcher: Launcher) -> None:
    first, second = launcher.run(2, replace_on_one_rank)
    assert first == second and first.startswith("fourth.weight is whole now, it was placed")
