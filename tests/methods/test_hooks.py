"""Hooks of a method under other optimizers, closures, scalers and faults, and states that are another method's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, differing, mlp, set_gradients, snapshot
from torch import Tensor, nn

import dstee
from dstee import interpreter
from dstee.methods import Action, KeepGlobal, Method, Step, Swap, Update, register
from dstee.schedule import UpdateSchedule

Trained = tuple[nn.Sequential, dstee.SparseModel, torch.optim.Optimizer]
KINDS = ("fused", "SGD", "Adam")


@register
@dataclass(frozen=True)
class Pulling(Method):
    """Adds ``pull`` times the weights to the gradients, averages these and counts its steps; may fail in a hook."""

    pull: float = 0.5
    fault: str = ""

    name, key = "pulling", "pulling"
    needs_gradients = needs_counter = moves_budgets = True
    keeps = ("mean",)

    def initial_numbers(self) -> dict[str, float]:
        return {"steps": 0.0}

    def before_step(self, c: Step) -> None:
        for g, w, mean in zip(c.grads, c.weights, c.state("mean"), strict=True):
            g.add_(w, alpha=self.pull)
            mean.copy_(g)
        self.fail("before_step")

    def after_step(self, c: Step) -> None:
        c.numbers["steps"] = c.numbers["steps"] + 1
        for w in c.weights:
            w.mul_(0.5)
        self.fail("after_step")

    def plan(self, u: Update) -> Sequence[Action]:
        self.fail("plan")
        return [KeepGlobal(self.fewer), Swap(drop=3, grow_by=self.ranked)]

    def total(self, u: Update) -> int:
        return u.total - 1

    def fewer(self, u: Update) -> int:
        self.fail("total of KeepGlobal")
        return u.total - 1

    def ranked(self, u: Update) -> list[Tensor]:
        self.fail("grow_by of Swap")
        return u.state("mean")

    def fail(self, where: str) -> None:
        if self.fault == where:
            raise ZeroDivisionError(where)


def make(kind: str, method: Method | None = None, schedule: UpdateSchedule = EVERY_STEP) -> Trained:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=method or Pulling(), schedule=schedule)
    if kind == "fused":
        return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    if kind == "SGD":
        return model, sparse, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, sparse, torch.optim.Adam(model.parameters(), lr=0.01)


def same(a: Trained, b: Trained) -> list[str]:
    """What differs between two trainings, numbers and kept tensors included."""
    rows = []
    for _, sparse, optimizer in (a, b):
        kept = {f"{key} {name}": x for name, layer in sparse.layers.items() for key, x in layer.state.items()}
        steps = torch.tensor(sparse.state_dict(full=True)["numbers"]["steps"])
        rows.append(snapshot(sparse, optimizer) | kept | {"steps": steps})
    return differing(*rows)


def train(trained: Trained, steps: range) -> Trained:
    model, sparse, optimizer = trained
    for t in steps:
        set_gradients(model, t)
        assert sparse.step(optimizer)
        assert_invariant(sparse, optimizer)
    return trained


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_change_gradients_before_the_step_and_weights_after_it(kind: str) -> None:
    """As a step on gradients that were changed by hand, halved afterwards by hand."""
    never = UpdateSchedule(every=100)
    model, sparse, optimizer = make(kind, schedule=never)
    plain, masked, stepper = make(kind, dstee.Static(), never)
    for t in range(3):
        set_gradients(model, t)
        set_gradients(plain, t)
        with torch.no_grad():
            for name in masked.layers:
                p = plain.get_parameter(name)
                assert p.grad is not None
                p.grad.add_(p, alpha=0.5)
        sparse.step(optimizer)
        masked.step(stepper)
        with torch.no_grad():
            for name in masked.layers:
                plain.get_parameter(name).mul_(0.5)
    for name, p in model.named_parameters():
        assert torch.equal(p, plain.get_parameter(name)), name
    assert sparse.state_dict(full=True)["numbers"] == {"steps": 3.0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_makes_the_gradients_that_before_step_sees(kind: str) -> None:
    usual = train(make(kind), range(3))
    model, sparse, optimizer = trained = make(kind)
    for t in range(3):

        def closure(t: int = t) -> Tensor:
            set_gradients(model, t)
            return torch.ones(())

        assert sparse.step(optimizer, closure=closure)
    assert same(trained, usual) == []


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_gradients_are_unscaled_first_and_skipped_steps_keep_nothing(kind: str) -> None:
    usual = train(make(kind), range(2))
    model, sparse, optimizer = trained = make(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for t, overflow in ((0, False), (7, True), (1, False)):
        set_gradients(model, t)
        scaler.scale(torch.ones(()))
        for p in model.parameters():
            assert p.grad is not None
            p.grad.mul_(float("inf") if overflow else scaler.get_scale())
        assert sparse.step(optimizer, scaler=scaler) is not overflow
        scaler.update()
    assert sparse.t == 2 and same(trained, usual) == []


def test_an_optimizer_that_unscales_by_itself_cannot_have_its_gradients_changed() -> None:
    model, sparse, _ = make("Adam")
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    set_gradients(model, 0)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"pulling adds to the gradients, but Adam gets them scaled .* fused=False"):
        sparse.step(optimizer, scaler=scaler)
    assert sparse.t == 0


@pytest.mark.parametrize("kind", KINDS)
def test_update_after_somebody_elses_step(kind: str) -> None:
    """SparseSGD runs the hook in its own step; with others it would come too late, which is said."""
    model, sparse, optimizer = trained = make(kind)
    set_gradients(model, 0)
    optimizer.step()
    if kind == "fused":
        assert sparse.update()
        assert same(trained, train(make(kind), range(1))) == []
    else:
        with pytest.raises(RuntimeError, match=r"pulling adds to the gradients before the step: call sparse.step\(optimizer\)"):
            sparse.update(optimizer)
        assert sparse.t == 0


FAULTS = ("before_step", "after_step", "plan", "total of KeepGlobal", "grow_by of Swap")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_a_hook_leaves_a_state_that_loads_and_trains(kind: str, fault: str) -> None:
    model, sparse, optimizer = trained = train(make(kind), range(2))
    total = sparse.nnz
    sparse.method = Pulling(fault=fault)
    set_gradients(model, 2)
    with pytest.raises(ZeroDivisionError, match=fault):
        sparse.step(optimizer)
    done = fault == "grow_by of Swap"  # the action before it has changed masks
    assert (sparse.t, sparse.round, sparse.nnz) == (2 + done, 2 + done, total - done)
    assert sparse.state_dict(full=True)["numbers"] == {"steps": 2.0 + done}
    state = sparse.state_dict(full=True)
    other = make(kind)[1]
    other.load_state_dict(state, strict=False)
    assert other.state_dict(full=True)["digest"] == state["digest"]
    sparse.method = Pulling()
    train(trained, range(3, 5))
    assert sparse.round == sparse.t == 4 + done


def resaved(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A state of pulling, with something else in it."""
    state = train(make("fused"), range(1))[1].state_dict(full=True)
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.update(numbers={"t": 1.0}), r"numbers are \{'t': 1\.0\}, pulling keeps \['steps'\]: .* another method's"),
        (lambda s: s.pop("numbers"), r"numbers are \{\}, pulling keeps \['steps'\]"),
        (lambda s: s.update(numbers={"steps": 2.0}), "digest does not match: the numbers in the state were damaged"),
        (
            lambda s: s.update(method=dstee.SNFS().to_dict(), numbers={}),
            r"kept tensor 'mean' is none of SNFS's, \['momentum'\]: it is another method's",
        ),
        (
            lambda s: s["layers"]["3.weight"]["kept"]["mean"].add_(1),
            r"3\.weight: kept tensor 'mean' is damaged: its digest does not match",
        ),
        (lambda s: s["layers"]["3.weight"].pop("kept"), "kept and kept_digests are no dicts with the same keys"),
        (lambda s: s["method"].update(pul=1.0), r"pulling has no setting 'pul' \(did you mean 'pull'\?\)"),
        (lambda s: s["method"].update(method="puling"), r"unknown method 'puling' \(did you mean 'pulling'\?\)"),
    ],
)
def test_states_of_another_method_or_damaged_are_refused(change: Callable[[dict[str, Any]], None], text: str) -> None:
    sparse = make("fused")[1]
    before = sparse.state_dict(full=True)["digest"]
    with pytest.raises(ValueError, match=text):
        sparse.load_state_dict(resaved(change), strict=False)
    assert sparse.state_dict(full=True)["digest"] == before


def test_layers_on_several_devices_are_named() -> None:
    def layer(device: str) -> Any:
        return SimpleNamespace(param=SimpleNamespace(device=torch.device(device)))

    update: Any = SimpleNamespace(method=Pulling())
    interpreter.refuse_devices([layer("cuda:0"), layer("cuda:0")], update)
    with pytest.raises(ValueError, match="pulling updates all layers together, but they lie on cpu, cuda:1: move the model"):
        interpreter.refuse_devices([layer("cuda:1"), layer("cpu")], update)
