"""What a method keeps and is told: numbers, tensors, learning rates, data; through faults, copies, states and scalers."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, differing, mlp, set_gradients, snapshot
from torch import nn

import dstee
from dstee.methods import Action, KeepGlobal, Method, RigL, Step, Swap, Update, register
from dstee.sparse_layer import LaterCounts

Trained = tuple[nn.Sequential, dstee.SparseModel, torch.optim.Optimizer]


@register
@dataclass(frozen=True)
class Remembering(Method):
    """Plans one swap, which goes with the step, and remembers what it saw."""

    name, key = "remembering", "remembering"
    needs_gradients = True
    keeps = ("mean",)
    seen: ClassVar[list[tuple[str, list[float]]]] = []

    def initial_numbers(self) -> dict[str, float]:
        return {"plans": 0.0}

    def before_step(self, c: Step) -> None:
        self.seen.append(("before", list(c.lr)))
        for mean, grad in zip(c.state("mean"), c.grads, strict=True):
            mean.mul_(0.5).add_(grad)

    def plan(self, u: Update) -> Sequence[Action]:
        self.seen.append(("plan", list(u.lr)))
        u.numbers["plans"] = u.numbers["plans"] + 1
        return [Swap()]


@register
@dataclass(frozen=True)
class Shrinking(Method):
    """Two weights fewer each time; ``says`` whether it tells that, ``fault`` where it fails."""

    says: bool = True
    fault: str = ""

    name, key = "shrinking", "shrinking"
    needs_gradients = needs_counter = moves_budgets = True

    def total(self, u: Update) -> int:
        return u.total - 2 if self.says else u.total

    def plan(self, u: Update) -> Sequence[Action]:
        def second(u: Update) -> Any:
            if self.fault == "second":
                raise ZeroDivisionError
            return u.nnz // 3

        def first(u: Update) -> int:
            if self.fault == "first":
                raise ZeroDivisionError
            return u.total - 2

        return [KeepGlobal(first), Swap(drop=second)]


@register
@dataclass(frozen=True)
class Silent(Shrinking):
    """Moves budgets and does not say so at all."""

    name, key = "silent", "silent"
    moves_budgets = False


def make(method: Method, kind: str = "fused", steps: int = 0) -> Trained:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=method, schedule=EVERY_STEP, track_exploration=True)
    optimizer: torch.optim.Optimizer
    if kind == "fused":
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.5, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    train((model, sparse, optimizer), range(steps))
    return model, sparse, optimizer


def train(trained: Trained, steps: range) -> None:
    model, sparse, optimizer = trained
    for t in steps:
        set_gradients(model, t)
        sparse.step(optimizer)


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_numbers_set_in_the_plan_of_a_swap_count(kind: str) -> None:
    _, sparse, _ = make(Remembering(), kind, 3)
    assert sparse.state_dict(full=True)["numbers"] == {"plans": 3.0}


@pytest.mark.parametrize(
    "left",
    [{}, {"plans": 1.0}, {"plans": torch.tensor(1.0)}, {"plans": torch.ones(1).double()}, {"more": torch.ones(()).double()}],
)
def test_numbers_of_another_kind_are_refused_before_they_count(left: dict[str, Any]) -> None:
    class Careless(Remembering):
        def after_step(self, c: Step) -> None:
            c.numbers.clear()
            c.numbers.update(left)

    trained = make(Careless())
    with pytest.raises(ValueError, match=r"left the numbers .* expected \['plans'\]"):
        train(trained, range(1))
    sparse = trained[1]
    assert (sparse.t, sparse.round) == (0, 0) and sparse.state_dict(full=True)["numbers"] == {"plans": 0.0}


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_numbers_cannot_be_lost_in_before_step(kind: str) -> None:
    class Careless(Remembering):
        def before_step(self, c: Step) -> None:
            c.numbers["plans"] = c.numbers["plans"] + 1

    with pytest.raises(TypeError, match="does not support item assignment"):
        make(Careless(), kind, 1)


@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_learning_rates_are_told_to_every_hook_by_the_layers_that_it_sees(kind: str) -> None:
    told: list[tuple[int, list[float]]] = []

    class Curious(Remembering):
        def plan(self, u: Update) -> Sequence[Action]:
            def drop(u: Update) -> Any:
                told.append((len(u.layers), u.lr))
                return u.k

            return [Swap(drop=drop)]

    trained = make(Curious(), kind)
    model, sparse, optimizer = trained
    sparse.allow_missing_gradients = True
    Remembering.seen.clear()
    set_gradients(model, 0)
    model[0].weight.grad = None
    optimizer.param_groups[0]["lr"] = 0.25
    sparse.step(optimizer)
    assert Remembering.seen == [("before", [0.25])] and told == [(1, [0.25])]


def test_a_loaded_state_is_not_written_to() -> None:
    trained = make(Remembering(), steps=2)
    sparse = trained[1]
    state = sparse.state_dict(full=True)
    kept = copy.deepcopy(state)
    sparse.load_state_dict(state)
    train(trained, range(2, 4))
    for name, layer in state["layers"].items():
        assert torch.equal(layer["kept"]["mean"], kept["layers"][name]["kept"]["mean"])


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_in_before_step_and_overflows_do_not_reach_it(fused: bool) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=Remembering(), schedule=EVERY_STEP, track_exploration=True)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.5, momentum=0.9, fused=fused)
    plain = make(Remembering())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for t, overflow in enumerate([False, True, False]):
        set_gradients(model, t)
        scaler.scale(torch.ones(()))  # as a backward of the scaled loss leaves gradients
        for p in model.parameters():
            assert p.grad is not None
            p.grad.mul_(float("inf") if overflow else scaler.get_scale())
        sparse.step(optimizer, scaler=scaler)
        scaler.update()
        if not overflow:
            train(plain, range(t, t + 1))
    assert sparse.t == 2
    assert differing(snapshot(sparse, optimizer), snapshot(plain[1], plain[2])) == []
    assert all(torch.equal(a.state["mean"], b.state["mean"]) for a, b in zip(*map(layers_of, (sparse, plain[1])), strict=True))


def layers_of(sparse: dstee.SparseModel) -> list[Any]:
    return list(sparse.layers.values())


@pytest.mark.parametrize("move", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_data_stays_behind_in_copies(move: Callable[..., Any]) -> None:
    model, sparse, _ = make(Remembering())
    sparse.batches = (batch for batch in [(torch.ones(1, 12), torch.ones(1, 5))])
    sparse.loss_fn = lambda output, target: output.sum()
    _, other = move((model, sparse))
    assert other.batches is None and sparse.batches is not None


def test_hooks_do_not_stay_on_an_optimizer_whose_state_is_refused() -> None:
    model, sparse, optimizer = make(Remembering(), "torch")
    weight = model[0].weight
    optimizer.state[weight]["codes"] = torch.zeros(weight.numel(), dtype=torch.uint8)
    set_gradients(model, 0)
    with pytest.raises(TypeError, match=r"codes of 0\.weight"):
        sparse.step(optimizer)
    Remembering.seen.clear()
    optimizer.step()
    assert Remembering.seen == []


@pytest.mark.parametrize("kind", ["fused", "torch"])
@pytest.mark.parametrize("method", [Shrinking(fault="second"), Shrinking(says=False), Silent()])
def test_faults_after_the_first_action_leave_a_round_that_counts(method: Method, kind: str) -> None:
    model, sparse, optimizer = make(Shrinking(), kind, 1)
    before = {name: sparse.counter(name) for name in sparse.layers}
    sparse.method = method
    set_gradients(model, 1)
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        sparse.step(optimizer)
    assert (sparse.t, sparse.round) == (2, 2)
    for name, layer in sparse.layers.items():
        assert layer.nnz == int(sparse.mask(name).sum())
        assert torch.equal(sparse.counter(name), before[name] + sparse.mask(name).int())
    state = sparse.state_dict(full=True)
    dstee.sparsify(mlp(), 0.5, track_exploration=True).load_state_dict(state, strict=False)
    sparse.method = Shrinking()
    train((model, sparse, optimizer), range(2, 4))
    assert_invariant(sparse, optimizer)
    assert sparse.round == 4


def test_a_fault_before_the_first_action_leaves_the_step_to_update() -> None:
    model, sparse, optimizer = make(Shrinking(fault="first"))
    other = make(Shrinking())
    set_gradients(model, 0)
    with pytest.raises(ZeroDivisionError):
        sparse.step(optimizer)
    assert (sparse.t, sparse.round) == (0, 0)
    sparse.method = Shrinking()
    with pytest.raises(RuntimeError, match=r"stepped already, by optimizer.step\(\): call sparse.update\(\)"):
        sparse.step(optimizer)
    assert sparse.update() and (sparse.t, sparse.round) == (1, 1)
    train(other, range(1))
    assert differing(snapshot(sparse, optimizer), snapshot(other[1], other[2])) == []


def test_a_state_of_a_method_that_took_over_after_budgets_moved_loads() -> None:
    _, sparse, _ = make(Shrinking(), steps=3)
    sparse.method = RigL()
    state = sparse.state_dict(full=True)
    other = dstee.sparsify(mlp(), 0.5, method=RigL(), track_exploration=True)
    with pytest.raises(ValueError, match="strict=False takes over the saved number"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    assert other.state_dict(full=True)["digest"] == state["digest"]
    assert all(torch.equal(other.last_grown(name), sparse.last_grown(name)) for name in sparse.layers)


def test_layers_that_a_state_does_not_have_keep_their_budget() -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=Shrinking(), schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.5)
    other = dstee.sparsify(mlp(), 0.5, method=Shrinking(), schedule=EVERY_STEP)
    other.remove("3.weight")
    state = other.state_dict(full=True)
    train((model, sparse, optimizer), range(3))
    budget = dict(sparse.budget)
    sparse.load_state_dict(state, strict=False)
    assert sparse.layers["3.weight"].nnz != budget["3.weight"] and sparse.budget == budget


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(12)] * 9)


@pytest.mark.parametrize(
    "kept",
    [
        torch.ones(9, 12, requires_grad=True), torch._neg_view(torch.ones(9, 12)), torch.ones(9, 12).double(), None,
        torch.ones(12, 9).t(), torch.ones(1, 1).expand(9, 12), torch.ones(9, 12, device="meta"), torch.ones(9, 12).to_sparse(),
        nested(), [1.0], torch.ones(12, 9),
    ],
)  # fmt: skip
def test_kept_tensors_of_odd_kinds_are_refused_as_a_state(kept: Any) -> None:
    _, sparse, _ = make(Remembering(), steps=1)
    state = sparse.state_dict(full=True)
    state["layers"]["0.weight"]["kept"]["mean"] = kept
    with pytest.raises(ValueError, match="cannot load the sparse state"):
        sparse.load_state_dict(state)


@pytest.mark.parametrize("budget", [None, True, -1, 109, 3.0, "3"])
def test_budgets_of_a_state_are_checked(budget: Any) -> None:
    _, sparse, _ = make(Shrinking(), steps=1)
    state = sparse.state_dict(full=True)
    state["layers"]["0.weight"]["budget"] = budget
    if budget is None:
        del state["layers"]["0.weight"]["budget"]
    with pytest.raises(ValueError, match=r"0\.weight: budget must be in 0\.\.108, got"):
        sparse.load_state_dict(state)


def test_tensors_that_a_method_does_not_name_are_refused() -> None:
    class Careless(Remembering):
        def before_step(self, c: Step) -> None:
            c.state("other")

    with pytest.raises(ValueError, match=r"keeps other of 0\.weight, but keeps = \('mean',\)"):
        make(Careless(), steps=1)


def test_moved_budgets_are_read_back_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    _, sparse, _ = make(Shrinking(), steps=1)
    read, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (read.append(1), tolist(t))[1])
    later = LaterCounts(torch.tensor([3, 4]))
    for i, layer in enumerate(layers_of(sparse)):
        layer.nnz = later, i
    other = copy.deepcopy(layers_of(sparse)[1])
    assert read == [] and [layer.nnz for layer in layers_of(sparse) * 2] == [3, 4, 3, 4] and read == [1]
    assert other.nnz == 4


def test_counters_and_bonus_over_two_actions() -> None:
    """Growth after a global pruning, ranked by gradient and bonus, worked out from counters and masks alone."""
    expected: dict[str, torch.Tensor] = {}

    @register
    @dataclass(frozen=True)
    class Exploring(Shrinking):
        key = "exploring"

        def plan(self, u: Update) -> Sequence[Action]:
            return [
                KeepGlobal(lambda u: u.total - 2),
                Swap(drop=5, grow=self._grow, bonus=torch.arange(u.round + 2.0).neg() + 9),
            ]

        def _grow(self, u: Update) -> int:
            for name, w, g, active in zip(u.names, u.weights, u.grads, u.masks(), strict=True):
                order = torch.where(active, w.abs(), torch.inf).view(-1).argsort(stable=True)
                active.view(-1)[order[:5]] = False
                score = torch.where(active, -1, g.abs() + (9 - counted[name])).view(-1)
                active.view(-1)[score.argsort(descending=True, stable=True)[:5]] = True
                expected[name] = active
            return 5

    model, sparse, optimizer = make(Exploring())
    counted = {name: mask.int() for name, mask in sparse.masks().items()}
    for t in range(6):
        train((model, sparse, optimizer), range(t, t + 1))
        for name, mask in sparse.masks().items():
            assert torch.equal(mask, expected[name])
            counted[name] += mask.int()
            assert torch.equal(sparse.counter(name), counted[name])
