"""A step is all or nothing: an exception anywhere in it leaves masks, counters, t and round that belong together."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, mlp, set_gradients
from torch import Tensor, nn

import dstee
from dstee.methods import Action, KeepGlobal, Method, Step, Swap, Update, register

EVERY_STEP = dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.4))
RUNS = 1000
CHUNK = 50


def make(kind: str, method: dstee.methods.Method) -> tuple[nn.Sequential, dstee.SparseModel, torch.optim.Optimizer]:
    """Two groups, so that one step makes several calls; two steps old."""
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, method=method, schedule=EVERY_STEP, track_exploration=True)
    groups: list[dict[str, Any]] = [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 0.05}]
    sgd = kind == "SparseSGD"
    optimizer = dstee.SparseSGD(groups, sparse, lr=0.1, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=0.01)
    for t in range(2):
        set_gradients(model, t)
        sparse.step(optimizer)
    return model, sparse, optimizer


class Interrupt(KeyboardInterrupt):
    pass


def instructions(call: Callable[[], Any], stop_at: int | None = None) -> int:
    """Runs ``call`` and counts the bytecode instructions of dstee in it; raises Interrupt in front of number ``stop_at``."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        if "dstee" not in frame.f_globals.get("__name__", ""):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == stop_at:
                sys.settrace(None)
                raise Interrupt
        return trace

    before, grad = sys.gettrace(), torch.is_grad_enabled()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(grad)  # an exception on the way out of a `with` may have left it off
    return seen


def counters_and_masks(sparse: dstee.SparseModel) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (sparse.counter(name).clone(), sparse.mask(name).clone()) for name in sparse.layers}


def check_what_is_left(sparse: dstee.SparseModel, before: dict[str, tuple[Tensor, Tensor]]) -> None:
    state = sparse.state_dict(full=True)
    assert (sparse.t, sparse.round) in ((2, 2), (3, 3)), (sparse.t, sparse.round)
    assert state.get("numbers", {"steps": sparse.t}) == {"steps": sparse.t}
    for name, (counter, mask) in before.items():
        now = sparse.mask(name)
        assert int(now.sum()) == sparse.layers[name].nnz
        if sparse.round == 2:
            assert torch.equal(now, mask) and torch.equal(sparse.counter(name), counter), "nothing happened"
        else:
            assert torch.equal(sparse.counter(name), counter + now.int()), "the round counts for every layer"
    dstee.sparsify(mlp(), 0.7, track_exploration=True).load_state_dict(state)


@register
@dataclass(frozen=True)
class Moving(Method):
    """An update in two actions, of which the first moves budgets, and hooks on both sides of the step."""

    name, key = "moving", "moving-under-interrupts"
    needs_counter = needs_gradients = moves_budgets = True
    keeps = ("mean",)

    def initial_numbers(self) -> dict[str, float]:
        return {"steps": 0.0}

    def before_step(self, c: Step) -> None:
        for mean, grad in zip(c.state("mean"), c.grads, strict=True):
            mean.mul_(0.9).add_(grad)

    def after_step(self, c: Step) -> None:
        c.numbers["steps"] = c.numbers["steps"] + 1

    def total(self, u: Update) -> int:
        return u.total - 2

    def plan(self, u: Update) -> Sequence[Action]:
        return [KeepGlobal(self.total), Swap(drop=lambda u: u.nnz // 3, grow_by=lambda u: u.state("mean"))]


METHODS = [
    dstee.DSTEE(c=1e-2),
    dstee.DSTEE(c=1e-2, reset_regrown=True),
    dstee.SET(),
    dstee.RigL(),  # in place of the step
    Moving(),
]


@pytest.mark.parametrize("start", range(0, RUNS, CHUNK))
@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
def test_interrupts_anywhere_tear_no_step(kind: str, start: int) -> None:
    warnings.simplefilter("error")
    method = METHODS[start // CHUNK % len(METHODS)]
    model, sparse, optimizer = make(kind, method)
    set_gradients(model, 2)
    total = instructions(lambda: sparse.step(optimizer))
    for seed in range(start, start + CHUNK):
        model, sparse, optimizer = make(kind, method)
        before = counters_and_masks(sparse)
        set_gradients(model, 2)
        with pytest.raises(Interrupt):
            instructions(lambda: sparse.step(optimizer), random.Random(seed).randrange(total) + 1)  # noqa: B023
        check_what_is_left(sparse, before)
        for t in (3, 4):
            set_gradients(model, t)
            assert sparse.step(optimizer)
        assert_invariant(sparse, optimizer)


def raising_hook(model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
    def hook(*args: object) -> None:
        raise ZeroDivisionError

    optimizer.register_step_post_hook(hook)


def bad_learning_rate(model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["lr"] = torch.ones(2)


def bad_momentum(model: nn.Module, sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state[model[3].weight]
    state["momentum_buffer"] = torch.ones(7)


@pytest.mark.parametrize("fault", [raising_hook, bad_learning_rate, bad_momentum])
def test_faults_in_a_step_leave_what_belongs_together(fault: Callable[..., None]) -> None:
    model, sparse, optimizer = make("SparseSGD", dstee.DSTEE(c=1e-2))
    before = counters_and_masks(sparse)
    fault(model, sparse, optimizer)
    set_gradients(model, 2)
    with pytest.raises((ZeroDivisionError, RuntimeError, ValueError, TypeError)):
        sparse.step(optimizer)
    check_what_is_left(sparse, before)
    assert_invariant(sparse)


def test_a_load_is_all_or_nothing_too() -> None:
    _, other, _ = make("SparseSGD", dstee.DSTEE(c=1e-2))
    state = other.state_dict(full=True)
    fresh = dstee.sparsify(mlp(), 0.7, track_exploration=True)
    total = instructions(lambda: fresh.load_state_dict(state))
    for seed in range(100):
        sparse = dstee.sparsify(mlp(), 0.7, track_exploration=True, seed=5)
        before = sparse.state_dict(full=True)["digest"]
        with pytest.raises(Interrupt):
            instructions(lambda: sparse.load_state_dict(state), random.Random(seed).randrange(total) + 1)  # noqa: B023
        assert sparse.state_dict(full=True)["digest"] in (before, state["digest"])
