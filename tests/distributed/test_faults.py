"""What 0.1.0 got wrong over several processes, most of it in silence."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import dcp_files, layouts
from support.layouts import LAYOUTS, Odd
from support.processes import Launcher
from support.rank_training import Held, Run, alone, assert_equal, look, look_at_weights, since, together, train
from support.refusals import refusal
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

import dstee

pytestmark = pytest.mark.ranks


# --- 1: FSDP2 after a forward without backward -----------------------------------------------------------------------------


def sparsify_gathered(rank: int, optimizer: str) -> Held:
    layout = LAYOUTS["fsdp-nested"]

    def lay(model: Odd) -> nn.Module:
        laid = layout.lay(model, 2)
        with torch.no_grad():
            laid(layouts.inputs())
        return laid

    return train(Run(optimizer=optimizer), lay, layouts.places(layout, 2))


@pytest.mark.parametrize("optimizer", ["sparse-sgd", "adamw"])
def test_sparsify_after_a_forward_without_backward(launcher: Launcher, optimizer: str) -> None:
    assert_equal(together(launcher.run(2, sparsify_gathered, optimizer)), alone(Run(optimizer=optimizer)))


# --- 2: FSDP1 --------------------------------------------------------------------------------------------------------------


def sparsify_fsdp1(rank: int, use_orig_params: bool) -> None:
    warnings.simplefilter("default")  # torch's own, about FSDP1
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 4))
    wrapped = FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    dstee.sparsify(wrapped, 0.5)


@pytest.mark.parametrize("use_orig_params", [True, False])
def test_fsdp1_is_refused(launcher: Launcher, use_orig_params: bool) -> None:
    kind, text = refusal(launcher.outcomes(2, sparsify_fsdp1, use_orig_params))
    assert kind in ("TypeError", "ValueError") and "fully_shard" in text


# --- 3, 4: optimizers inside optimizers ------------------------------------------------------------------------------------


class Container(torch.optim.Optimizer):
    """As torchtitan's: one optimizer for each part of the model, the steps are theirs and so is the state."""

    def __init__(self, *parts: list[nn.Parameter]) -> None:
        self.optimizers = [torch.optim.AdamW(part, lr=0.01, weight_decay=0.1) for part in parts]
        super().__init__([p for part in parts for p in part], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self.optimizers:
            one.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for one in self.optimizers:
            one.zero_grad(set_to_none)


def zero_redundancy(params: Iterable[nn.Parameter], kind: type[torch.optim.Optimizer], **settings: Any) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    return ZeroRedundancyOptimizer(params, kind, **settings)


def through(rank: int, kind: str, name: str, n: int) -> Held:
    """AdamW's run with another optimizer around it; the state is the inner one's."""
    run = Run(optimizer="adamw")
    where = layouts.places(LAYOUTS[name], n)
    model = LAYOUTS[name].lay(Odd(), n)
    sparse = run.sparsify(model)
    params = [p for p in model.parameters() if p.requires_grad]
    if kind == "zero":
        outer: Any = zero_redundancy(params, torch.optim.AdamW, lr=0.01, weight_decay=0.1)
        inner = [outer.optim]
    else:
        outer = Container(params[:4], params[4:])
        inner = outer.optimizers
    held = Held({}, {}, where)
    look(held, sparse, 0)
    for step in range(1, run.steps + 1):
        layouts.replay(model, where, step)
        held.facts[f"updated at {step}"] = sparse.step(outer)
        look(held, sparse, step)
    look_at_weights(held, model, outer)
    for one in inner:
        held.values |= {k: v for k, v in state_of(one, model).items()}
    return held


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, p in layouts.named(model).items():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                found[f"{key} {name}"] = layouts.local(value)
    return found


def test_state_inside_zero(launcher: Launcher) -> None:
    want = alone(Run(optimizer="adamw"))
    parts = launcher.run(2, through, "zero", "ddp", 2)
    owned = [{key for key in part.values if key.startswith("exp_avg ")} for part in parts]
    assert all(owned) and not owned[0] & owned[1], "each rank keeps the state of its own parameters"
    state = {key: value for part in parts for key, value in part.values.items() if key.split()[0].startswith("exp_avg")}
    for part in parts:
        part.values = part.values | state
    assert_equal(together(parts), want)


@pytest.mark.parametrize(("name", "n"), [("ddp", 2), ("fsdp", 2)])
def test_state_inside_a_container(launcher: Launcher, name: str, n: int) -> None:
    assert_equal(together(launcher.run(n, through, "container", name, n)), alone(Run(optimizer="adamw")))


# --- 5: see test_disagreement.py. 6: names ---------------------------------------------------------------------------------


def masks_by_plain_name(rank: int, kind: str) -> dict[str, Any]:
    model = wrapped(kind)
    sparse = dstee.sparsify(model, 0.8, seed=3)
    return {"names": list(sparse.layers), "masks": [sparse.mask(name).clone() for name in sparse.layers]}


def wrapped(kind: str) -> nn.Module:
    model = Odd()
    if kind == "checkpoint_wrapper":
        model.third = checkpoint_wrapper(model.third)  # type: ignore[assignment]
    if kind == "compile":
        model.second = torch.compile(model.second, backend="eager")  # type: ignore[assignment]
    if kind in ("compile", "ddp(compile)"):
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return DistributedDataParallel(model) if kind in ("ddp", "ddp(compile)") else model


@pytest.mark.parametrize("kind", ["checkpoint_wrapper", "compile", "ddp", "ddp(compile)"])
def test_wrappers_do_not_change_masks_or_names(launcher: Launcher, kind: str) -> None:
    model = Odd()
    plain = dstee.sparsify(model, 0.8, seed=3)
    for found in launcher.run(2, masks_by_plain_name, kind):
        assert found["names"] == list(plain.layers)
        for name, mask in zip(plain.layers, found["masks"], strict=True):
            assert torch.equal(mask, plain.mask(name)), name


def resume(rank: int, before: str, after: str) -> bool:
    """Three steps in one wrapping, two more in another, against five in the first."""
    run = Run()
    where = layouts.held(Odd())

    def steps(model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer, *numbers: int) -> None:
        for step in numbers:
            for name, p in model.named_parameters():
                name = name.replace("module.", "").replace("_orig_mod.", "").replace("_checkpoint_wrapped_", "")
                if p.requires_grad:
                    layouts.set_gradient(p, layouts.gradient(name, p.shape, step), where[name])
            sparse.step(optimizer)

    def made(kind: str) -> tuple[nn.Module, dstee.SparseModel, torch.optim.Optimizer]:
        model = wrapped(kind)
        sparse = run.sparsify(model)
        return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.125, momentum=0.9)

    model, sparse, optimizer = made(before)
    steps(model, sparse, optimizer, 1, 2, 3)
    saved = copy.deepcopy((sparse.state_dict(), optimizer.state_dict(), [p.detach() for p in model.parameters()]))
    steps(model, sparse, optimizer, 4, 5)
    other, resumed, its = made(after)
    with torch.no_grad():
        for p, q in zip(other.parameters(), saved[2], strict=True):
            p.copy_(q)
    resumed.load_state_dict(saved[0])
    its.load_state_dict(saved[1])
    steps(other, resumed, its, 4, 5)
    assert resumed.t == 5 and resumed.round == 2
    same = [torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True)]
    return all(same) and all(torch.equal(a, b) for a, b in zip(sparse.masks().values(), resumed.masks().values(), strict=True))


@pytest.mark.parametrize(
    ("before", "after"), [("ddp", "plain"), ("plain", "ddp(compile)"), ("checkpoint_wrapper", "ddp"), ("compile", "plain")]
)
def test_resume_under_other_wrappers(launcher: Launcher, before: str, after: str) -> None:
    assert launcher.run(2, resume, before, after) == [True, True]


# --- 8: ZeRO-1 around SparseSGD --------------------------------------------------------------------------------------------


def zero_around_sparse_sgd(rank: int) -> None:
    model = DistributedDataParallel(Odd())
    sparse = dstee.sparsify(model, 0.8)
    optimizer = zero_redundancy(model.parameters(), dstee.SparseSGD, sparse=sparse, lr=0.1, momentum=0.9)
    layouts.replay(model, layouts.held(model), 1)
    sparse.step(optimizer)


def test_zero_around_sparse_sgd_is_refused(launcher: Launcher) -> None:
    kind, text = refusal(launcher.outcomes(2, zero_around_sparse_sgd))
    assert kind in ("TypeError", "ValueError") and "torch.optim.SGD" in text and "after wrapping" not in text


# --- 7: a state after one update into a fresh process ----------------------------------------------------------------------


def save_or_load(rank: int, folder: str, name: str, first: bool) -> Held:
    """Two steps and a checkpoint, or a fresh model that goes on from it, to step 8."""
    n = dist.get_world_size()

    def after(step: int, model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
        if step == 2:
            (dcp_files.save if first else dcp_files.load)(folder, model, sparse, optimizer)

    lay = functools.partial(LAYOUTS[name].lay, n=n)
    steps = dict(first=1, last=2) if first else dict(first=3)
    return train(Run(steps=8), lay, layouts.places(LAYOUTS[name], n), after, **steps)


@pytest.mark.parametrize(
    ("saved", "m", "loaded", "n"), [("ddp", 2, "ddp", 2), ("fsdp", 2, "fsdp", 3), ("fsdp-tp", 4, "ddp", 2)]
)
def test_a_fresh_process_loads_what_dcp_saved(
    launcher: Launcher, tmp_path: Path, saved: str, m: int, loaded: str, n: int
) -> None:
    folder = str(tmp_path / "checkpoint")
    launcher.run(m, save_or_load, folder, saved, True)
    got = together(launcher.run(n, save_or_load, folder, loaded, False))
    assert_equal(got, since(alone(Run(steps=8)), 2))
