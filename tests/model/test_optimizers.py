"""Every kind of optimizer around a SparseModel: its state, those inside it, several at once, and what people do with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, differing, mlp, set_gradients, snapshot
from torch import Tensor, nn

import dstee
from dstee import _optimizer_state
from dstee.testing import assert_same_bits

LR = 0.01
FACTORIES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=LR),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=LR),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=LR, initial_accumulator_value=0.25),
    "Adam": lambda p: torch.optim.Adam(p, lr=LR, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=LR),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=LR),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=LR),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=LR),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=LR),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=LR, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=LR),
    "SGD": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9),
}
# Muon takes matrices alone, SparseAdam sparse gradients, LBFGS keeps flat histories; the rest of torch.optim is above.
OTHERS = {"LBFGS", "Muon", "Optimizer", "SparseAdam"}
FRESH = {"sum": 0.25, "step_size": LR}


def test_the_table_is_whole() -> None:
    classes = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)}
    assert classes - OTHERS == set(FACTORIES)


def made(kind: str, **options: Any) -> tuple[nn.Sequential, dstee.SparseModel, torch.optim.Optimizer]:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP, **options)
    return model, sparse, FACTORIES[kind](model.parameters())


@pytest.mark.parametrize("reset_regrown", [False, True])
@pytest.mark.parametrize("kind", FACTORIES)
def test_state_of_inactive_weights_is_fresh(kind: str, reset_regrown: bool) -> None:
    model, sparse, optimizer = made(kind, method=dstee.DSTEE(reset_regrown=reset_regrown))
    for t in range(4):
        set_gradients(model, t)
        assert sparse.step(optimizer)
        for name, layer in sparse.layers.items():
            off = ~sparse.mask(name)
            assert not layer.param.detach()[off].any()
            for key, value in optimizer.state[layer.param].items():
                if isinstance(value, Tensor) and value.shape == layer.shape:
                    assert bool((value[off] == FRESH.get(key, 0.0)).all()), (name, key)


# --- state that cannot be reset ------------------------------------------------------------------------------------------


class Coded(torch.optim.Optimizer):
    """Keeps its momentum as integers, as 8-bit optimizers do: code 0 is not the number 0."""

    def __init__(self, params: Any, wrap: Callable[[Tensor], Tensor]) -> None:
        super().__init__(params, {"lr": LR})
        self.wrap = wrap

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("codes", self.wrap(p))
                    p.sub_(p.grad, alpha=group["lr"])


class Subclass(Tensor):
    @staticmethod
    def __new__(cls, inner: Tensor) -> Subclass:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(str(func))


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda p: torch.zeros_like(p, dtype=torch.uint8), "torch.uint8"),
        (lambda p: torch.zeros(p.numel(), dtype=torch.int8), "torch.int8"),
        (lambda p: Subclass(torch.zeros_like(p)), "Subclass"),
    ],
)
def test_codes_are_refused_before_anything_has_moved(wrap: Callable[[Tensor], Tensor], kind: str) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7)
    optimizer = Coded(model.parameters(), wrap)
    set_gradients(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    message = f"Coded keeps codes of 0.weight as {kind}, which cannot be reset for single weights"
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            sparse.step(optimizer)
        assert_same_bits([p.detach() for p in model.parameters()], before)
        assert sparse.t == 0 and not optimizer.state
    optimizer.step()
    with pytest.raises(TypeError, match=message):
        sparse.update(optimizer)
    with pytest.raises(TypeError, match=message):
        sparse.step(optimizer)
    assert sparse.t == 0


# --- optimizers inside optimizers, and beside each other -----------------------------------------------------------------


class Outer(torch.optim.Optimizer):
    """Keeps the optimizer that does the work, as SAM does, under any name, alone or in a list."""

    def __init__(self, params: Any, **inner: Any) -> None:
        super().__init__(params, {"lr": LR})
        vars(self).update(inner)
        self.inner = [one for value in inner.values() for one in (value if isinstance(value, list) else [value])]

    def step(self, closure: Any = None) -> None:
        for one in self.inner:
            one.step()


@pytest.mark.parametrize("name", ["base_optimizer", "optim", "optimizers"])
def test_state_inside_another_optimizer_is_found(name: str) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP)
    inner = torch.optim.AdamW(model.parameters(), lr=LR)
    outer = Outer(model.parameters(), **{name: [inner] if name == "optimizers" else inner})
    for t in range(3):
        set_gradients(model, t)
        assert sparse.step(outer)
    assert_invariant(sparse, inner)


@pytest.mark.parametrize("first", ["SparseSGD", "SGD"])
@pytest.mark.parametrize("method", [dstee.DSTEE(), dstee.RigL(), dstee.SET()])
def test_two_optimizers_together(first: str, method: dstee.methods.Method) -> None:
    """Each holds a part of the weights; the result is that of each part by itself."""
    results = []
    for together in (True, False):
        model = mlp()
        sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP, method=method)
        parts = [list(model[:2].parameters()), list(model[2:].parameters())]
        sgd = dstee.SparseSGD(parts[0], sparse, lr=0.1) if first == "SparseSGD" else torch.optim.SGD(parts[0], lr=0.1)
        if together:
            adam = torch.optim.AdamW(parts[1], lr=LR)
            for t in range(3):
                set_gradients(model, t)
                assert sparse.step(sgd, adam)
        else:  # two models, of which one part each is looked at
            adam = torch.optim.AdamW(parts[1], lr=LR)
            outer = Outer(model.parameters(), parts=[torch.optim.SGD(parts[0], lr=0.1), adam])
            for t in range(3):
                set_gradients(model, t)
                assert sparse.step(outer)
        assert_invariant(sparse, sgd)
        assert_invariant(sparse, adam)
        assert (sparse.t, sparse.round) == (3, 3)
        results.append({name: mask.clone() for name, mask in sparse.masks().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_several_must_hold_all_and_take_no_closure() -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7)
    one, other = torch.optim.SGD(model[0].parameters()), torch.optim.SGD(model[1].parameters())
    set_gradients(model, 0)
    with pytest.raises(ValueError, match=r"does not hold these sparse weights of the model: 3.weight\."):
        sparse.step(one, other)
    with pytest.raises(ValueError, match="a closure belongs to one optimizer"):
        sparse.step(one, other, closure=lambda: torch.zeros(()))
    with pytest.raises(TypeError, match=r"needs the optimizer that holds the sparse weights"):
        sparse.step()


# --- what people do ------------------------------------------------------------------------------------------------------


def sgd(**options: Any) -> tuple[nn.Sequential, dstee.SparseModel, dstee.SparseSGD]:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=dstee.UpdateSchedule(every=2), **options)
    return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)


def test_a_step_and_then_another_with_the_same_gradients() -> None:
    model, sparse, optimizer = sgd()
    set_gradients(model, 0)
    optimizer.step()
    before = snapshot(sparse, optimizer)
    with pytest.raises(RuntimeError, match=r"these gradients were stepped already, by optimizer.step\(\): call sparse.update"):
        sparse.step(optimizer)
    assert not differing(before, snapshot(sparse, optimizer))
    sparse.update()
    assert sparse.t == 1
    set_gradients(model, 1)
    optimizer.step()
    set_gradients(model, 2)  # new ones: the step before was somebody's own
    sparse.step(optimizer)


@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
def test_a_second_update_after_one_step_does_nothing(kind: str) -> None:
    model, sparse, optimizer = sgd()
    other = optimizer if kind == "SparseSGD" else torch.optim.AdamW(model.parameters())
    for t in range(4):
        set_gradients(model, t)
        other.step()
        assert sparse.update(other) is (t % 2 == 1)
        before = snapshot(sparse, other)
        assert not sparse.update(other)
        assert not differing(before, snapshot(sparse, other)) and sparse.t == t + 1


@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
def test_an_update_by_gradients_of_zero(kind: str) -> None:
    model, sparse, optimizer = sgd()
    other = optimizer if kind == "SparseSGD" else torch.optim.AdamW(model.parameters())
    set_gradients(model, 0)
    sparse.step(other)
    set_gradients(model, 1)
    other.step()
    other.zero_grad(set_to_none=False)
    with pytest.raises(RuntimeError, match=r"all gradients of the sparse weights are 0.*before zero_grad"):
        sparse.update(other)
    assert sparse.round == 0


def test_steps_that_nobody_counts() -> None:
    model, sparse, optimizer = sgd()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(45):
            set_gradients(model, t)
            optimizer.step()
    assert [str(w.message)[:42] for w in caught] == ["20 steps of the optimizer were not counted"]
    for t in range(45):
        set_gradients(model, t)
        sparse.step(optimizer)


def test_other_methods_and_schedules_must_fit() -> None:
    _, sparse, _ = sgd(method=dstee.RigL(order="after"))
    with pytest.raises(ValueError, match=r"DST-EE needs counters, which 0.weight, 3.weight do not have.*track_exploration"):
        sparse.method = dstee.DSTEE()
    with pytest.raises(TypeError, match="method must be a Method, got str"):
        sparse.method = "rigl"
    with pytest.raises(TypeError, match="schedule must be an UpdateSchedule, got int"):
        sparse.schedule = 100
    assert isinstance(sparse.method, dstee.RigL)
    sparse.method = dstee.SET()


def test_layers_without_a_gradient_may_be_left_out() -> None:
    model, sparse, optimizer = sgd()
    set_gradients(model, 0)
    sparse.step(optimizer)
    before = {name: mask.clone() for name, mask in sparse.masks().items()}
    set_gradients(model, 1)
    model[3].weight.grad = None
    with pytest.raises(RuntimeError, match=r"no gradient: 3.weight.*sparse.allow_missing_gradients = True"):
        sparse.step(optimizer)
    sparse.allow_missing_gradients = True
    assert sparse.step(optimizer)
    assert torch.equal(sparse.mask("3.weight"), before["3.weight"]) and not sparse.last_grown("3.weight").any()
    assert not torch.equal(sparse.mask("0.weight"), before["0.weight"])
    adam = torch.optim.AdamW(model.parameters())
    for t in (2, 3):
        set_gradients(model, t)
        model[0].weight.grad = None
        sparse.step(adam)
    assert_invariant(sparse, adam)


def test_whoever_stepped_last_is_asked() -> None:
    model, sparse, first = sgd()
    second = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    set_gradients(model, 0)
    first.step()
    sparse.update()
    assert sparse.t == 1
    copy.copy(first)
    set_gradients(model, 1)
    second.step()
    assert sparse.update() and (sparse.t, sparse.round) == (2, 1)


# --- groups --------------------------------------------------------------------------------------------------------------

LATER: dict[str, dict[str, Any]] = {
    "nesterov without momentum": {"nesterov": True, "momentum": 0},
    "nesterov and dampening": {"nesterov": True, "dampening": 0.5},
    "lr of integers": {"lr": torch.tensor(1)},
    "negative lr": {"lr": -1e-9},
}


@pytest.mark.parametrize("later", LATER)
def test_values_that_torch_takes_in_a_group(later: str) -> None:
    models = [mlp(), mlp()]
    sparse = dstee.sparsify(models[0], {"0.weight": 0.0, "3.weight": 0.0})
    ours = dstee.SparseSGD(models[0].parameters(), sparse, lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9)
    for t in range(4):
        if t == 2:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0].update(LATER[later])
        for model in models:
            set_gradients(model, t)
        sparse.step(ours)
        theirs.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def embedding_with_decay(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["weight_decay"] = 0.1
    model[1].weight.grad = torch.ones(9).to_sparse()


def rule_of_the_second_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[1]["lr"] = float("nan")


def momentum_of_another_shape(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state[model[3].weight]["momentum_buffer"] = torch.ones(4, 7)


@pytest.mark.parametrize("fault", [embedding_with_decay, rule_of_the_second_group, momentum_of_another_shape])
def test_a_step_that_raises_has_moved_no_sparse_weight(fault: Callable[..., None]) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.7)
    groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[3].parameters()]}]
    optimizer = dstee.SparseSGD(groups, sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    sparse.step(optimizer)
    set_gradients(model, 1)
    fault(model, optimizer)
    before = [layer.param.detach().clone() for layer in sparse.layers.values()]
    with pytest.raises((RuntimeError, ValueError)):
        sparse.step(optimizer)
    assert_same_bits([layer.param.detach() for layer in sparse.layers.values()], before)
    assert sparse.t == 1


@pytest.mark.parametrize("kind", ["SparseSGD", "SGD"])
def test_gradients_with_the_negative_bit_mean_what_they_say(kind: str) -> None:
    results = []
    for lazy in (True, False):
        model = mlp()
        sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP)
        optimizer = (
            dstee.SparseSGD(model.parameters(), sparse, lr=0.1) if kind == "SparseSGD" else FACTORIES[kind](model.parameters())
        )
        for t in range(3):
            set_gradients(model, t)
            for p in model.parameters():
                negative = torch.complex(torch.zeros_like(p.grad), p.grad).conj().imag  # a view, and minus the gradient
                assert negative.is_neg()
                p.grad = negative if lazy else negative.clone().resolve_neg().contiguous()
            sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_only_the_first_step_is_kept_to_be_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer without state, as SGD without momentum, would otherwise have its parameters copied at each step."""
    kept: list[torch.optim.Optimizer] = []
    first_step = _optimizer_state.FirstStep
    monkeypatch.setattr(_optimizer_state, "FirstStep", lambda one, layers: kept.append(one) or first_step(one, layers))
    model = mlp()
    sparse = dstee.sparsify(model, 0.7)
    for optimizer in (torch.optim.SGD(model.parameters()), torch.optim.AdamW(model.parameters())):
        for t in range(3):
            set_gradients(model, t)
            sparse.step(optimizer)
    assert [type(one).__name__ for one in kept] == ["SGD", "AdamW"]
    copy.deepcopy((model, sparse))
