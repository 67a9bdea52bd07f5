"""Whoever else has a say in a step: GradScaler, other optimizers, wrappers, hidden steps, closures of a trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, differing, mlp, set_gradients, snapshot
from torch import Tensor, nn

import dstee
from dstee import ops

EVERY_TWO = dstee.UpdateSchedule(every=2, drop=dstee.ConstantDrop(0.4))
OPTIMIZERS = {
    "SparseSGD": lambda p, sparse: dstee.SparseSGD(p, sparse, lr=0.1, momentum=0.9),
    "SparseSGD fused": lambda p, sparse: dstee.SparseSGD(p, sparse, lr=0.1, momentum=0.9, fused=True),
    "SGD": lambda p, sparse: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD fused": lambda p, sparse: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p, sparse: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p, sparse: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "AdamW fused": lambda p, sparse: torch.optim.AdamW(p, lr=0.1, fused=True),
    "RMSprop": lambda p, sparse: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda p, sparse: torch.optim.Adagrad(p, lr=0.1),
    "Rprop": lambda p, sparse: torch.optim.Rprop(p, lr=0.01),
}
FRESH = {"step_size": 0.01}  # Rprop's own start; the state of the others starts at 0


def setup(optimizer: str = "SparseSGD", **kwargs):
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, **{"schedule": EVERY_TWO, "method": dstee.DSTEE(c=0.01), **kwargs})
    return model, sparse, OPTIMIZERS[optimizer](model.parameters(), sparse)


# --- GradScaler ----------------------------------------------------------------------------------------------------------


def backward(model: nn.Module, scaler: torch.amp.GradScaler | None, t: int, overflow: bool = False) -> None:
    """Scaled gradients of a small loss; powers of two scale without rounding."""
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(t))
    loss = model(x).square().mean() * (float("inf") if overflow else 1.0)
    model.zero_grad()
    (loss if scaler is None else scaler.scale(loss)).backward()


@pytest.mark.parametrize("order", ["after", "replace"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler_equals_plain_steps_and_overflow_changes_nothing(kind, order, unscale):
    """Steps 1, 2 (overflow), 3, ...: the overflow leaves no trace, the others leave that of steps without a scaler."""
    method = dstee.DSTEE(c=0.01, order=order)
    model, sparse, optimizer = setup(kind, method=method)
    plain, plain_sparse, plain_optimizer = setup(kind, method=method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
    for t, overflow in enumerate((False, True, False, True, True, False, False, False)):
        backward(model, scaler, t, overflow)
        if unscale:
            scaler.unscale_(optimizer)
        before = snapshot(sparse, optimizer)
        changed = sparse.step(optimizer, scaler=scaler)
        scaler.update()
        if overflow:
            assert not changed and not differing(before, snapshot(sparse, optimizer))
        else:
            backward(plain, None, t)
            assert plain_sparse.step(plain_optimizer) == changed == (sparse.t % 2 == 0)
            assert not differing(snapshot(sparse, optimizer), snapshot(plain_sparse, plain_optimizer))
    assert sparse.t == 5 and sparse.round == 2 and scaler.get_scale() < 2.0**8


@pytest.mark.parametrize("kind", ["SparseSGD", "SparseSGD fused"])
def test_update_after_scaler_step(kind):
    """Somebody else calls scaler.step: update() knows whether it did anything, and scores unscaled gradients."""
    model, sparse, optimizer = setup(kind)
    plain, plain_sparse, plain_optimizer = setup(kind)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for t, overflow in enumerate((False, True, False, False, True, False)):
        backward(model, scaler, t, overflow)
        scaler.step(optimizer)
        changed = sparse.update()
        scaler.update()
        if overflow:
            assert not changed
            continue
        backward(plain, None, t)
        assert plain_sparse.step(plain_optimizer) == changed
        assert not differing(snapshot(sparse, optimizer), snapshot(plain_sparse, plain_optimizer))
    assert sparse.t == 4 and sparse.round == 2


def test_scaler_with_closure_and_disabled_scaler():
    model, sparse, optimizer = setup()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported if GradScaler is enabled"):
        sparse.step(optimizer, closure=lambda: None, scaler=torch.amp.GradScaler("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    backward(model, scaler, 0)
    sparse.step(optimizer, scaler=scaler)
    scaler.update()
    assert sparse.t == 1


def test_autocast_trains():
    model, sparse, optimizer = setup(schedule=EVERY_STEP)
    for t in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.randn(6, 12, generator=torch.Generator().manual_seed(t))
            loss = model(x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert sparse.step(optimizer)
    assert_invariant(sparse, optimizer)


# --- other optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if "Sparse" not in kind])
@pytest.mark.parametrize("reset", [False, True])
def test_other_optimizers_step_then_mask_then_update(kind, reset):
    """By hand: torch's step, mask weights and state, drop_grow_ on the weights, fresh state for what it dropped."""
    method = dstee.DSTEE(c=0.01, reset_regrown=reset)
    model, sparse, optimizer = setup(kind, method=method)
    twin = copy.deepcopy(model)
    expected = OPTIMIZERS[kind](twin.parameters(), None)
    masks = sparse.masks()
    counts = {name: torch.zeros(mask.numel(), dtype=torch.int16) for name, mask in masks.items()}
    for t in range(1, 6):
        set_gradients(model, t)
        set_gradients(twin, t)
        assert sparse.step(optimizer) == (t % 2 == 0)
        expected.step()
        for name, mask in masks.items():
            p = twin.get_parameter(name)
            state = [(k, v) for k, v in expected.state[p].items() if isinstance(v, Tensor) and v.shape == p.shape]
            with torch.no_grad():
                for key, tensor in (("weight", p), *state):
                    tensor.masked_fill_(~mask, FRESH.get(key, 0))
                if t % 2 == 0:
                    old = p.detach().clone()
                    bits, q = ops.pack_mask(mask), t // 2 - 1
                    k = sparse.schedule.swap_count(int(mask.sum()), t)
                    bonus = dstee.bonus_table(0.01, 1.0, t, q)
                    ops.drop_grow_([p], [p.grad], None, [bits], [counts[name]], [k], bonus=bonus, round=q, reset_regrown=reset)
                    masks[name] = ops.unpack_mask(bits, p.shape)
                    gone = ~masks[name] | ((old != 0) & (p == 0))
                    for key, tensor in state:
                        tensor.masked_fill_(gone, FRESH.get(key, 0))
        for name, p in model.named_parameters():
            q = twin.get_parameter(name)
            assert torch.equal(p, q), name
            if name in masks:
                assert torch.equal(sparse.mask(name), masks[name])
            for key, value in optimizer.state[p].items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected.state[q][key])), (name, key)
        assert_invariant(sparse, None if kind == "Rprop" else optimizer)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_update_masks_after_a_step_of_another_optimizer(kind):
    results = []
    for mine in (True, False):
        model, sparse, optimizer = setup(kind)
        for t in range(1, 5):
            set_gradients(model, t)
            if mine:
                sparse.step(optimizer)
            else:
                optimizer.step()
                assert sparse.update(optimizer) == (t % 2 == 0)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)
    with pytest.raises(RuntimeError, match=r"pass the optimizer"):
        sparse.update()


def test_lbfgs_and_its_many_closures():
    model, sparse, _ = setup(schedule=EVERY_STEP)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = torch.randn(8, 12), torch.randn(8, 5)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for t in range(1, 3):
        assert sparse.step(optimizer, closure=closure)
        assert sparse.t == sparse.round == t
        assert_invariant(sparse)
    assert len(calls) > 2


# --- steps that nobody meant ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SparseSGD", "SparseSGD fused", "AdamW"])
def test_a_hidden_step_with_zero_gradients_and_lr_0(kind):
    """What distributed checkpoints do to make an optimizer create its state."""
    model, sparse, optimizer = setup(kind, schedule=EVERY_STEP)
    for first in (True, False):
        if not first:
            set_gradients(model, 0)
            sparse.step(optimizer)
        kept = [p.grad for p in model.parameters()]
        before = snapshot(sparse, optimizer)
        lrs = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        for p, grad in zip(model.parameters(), kept, strict=True):
            p.grad = grad
        changed = differing(before, snapshot(sparse, optimizer))
        assert all("momentum" in key or "exp_avg" in key or "step" in key for key in changed)
        if "SGD" in kind and not first:  # momentum decays as torch's does, and nothing else
            for name in sparse.layers:
                m, old = optimizer.state[sparse.layers[name].param]["momentum_buffer"], before[f"momentum_buffer {name}"]
                assert torch.equal(m, old * 0.9)
    assert_invariant(sparse, optimizer)


def test_materialised_state_does_not_change_the_training_of_plain_sgd():
    """Without momentum and weight decay a hidden step leaves no trace at all."""
    results = []
    for hidden in (False, True):
        model = mlp()
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_TWO)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
        for t in range(5):
            if hidden:
                for p in model.parameters():
                    p.grad = torch.zeros_like(p)
                optimizer.param_groups[0]["lr"] = 0.0
                optimizer.step()
                optimizer.param_groups[0]["lr"] = 0.1
            set_gradients(model, t)
            sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_torchs_distributed_checkpoints():
    """get_optimizer_state_dict makes the hidden step by itself; its state resumes with the same bits."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    def build(seed: int):
        model = mlp(seed)
        sparse = dstee.sparsify(model, 0.6, seed=seed, schedule=EVERY_STEP)
        return model, sparse, dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9, weight_decay=0.1)

    model, sparse, optimizer = build(0)
    before = snapshot(sparse, optimizer)
    get_state_dict(model, optimizer)
    assert all(key.startswith("momentum_buffer") for key in differing(before, snapshot(sparse, optimizer)))
    for t in range(3):
        set_gradients(model, t)
        sparse.step(optimizer)
    model.zero_grad()
    weights, momenta = copy.deepcopy(get_state_dict(model, optimizer))
    model2, sparse2, optimizer2 = build(1)
    set_state_dict(model2, optimizer2, model_state_dict=weights, optim_state_dict=momenta)
    sparse2.load_state_dict(sparse.state_dict())
    for m, s, o in ((model, sparse, optimizer), (model2, sparse2, optimizer2)):
        set_gradients(m, 7)
        assert s.step(o)
    assert not differing(snapshot(sparse, optimizer), snapshot(sparse2, optimizer2))


# --- wrappers ------------------------------------------------------------------------------------------------------------


class GradientState:
    sync_gradients = True


class Wrapper(torch.optim.Optimizer):
    """Does as accelerate's AcceleratedOptimizer does: an Optimizer that delegates, and skips while gradients accumulate."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self.optimizer, self.scaler, self.gradient_state = optimizer, scaler, GradientState()

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    def step(self, closure=None):
        if not self.gradient_state.sync_gradients:
            return
        if self.scaler is None:
            self.optimizer.step(closure)
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
@pytest.mark.parametrize("order", ["after", "replace"])
def test_steps_through_a_wrapper_that_accumulates(kind, order):
    model, sparse, optimizer = setup(kind, method=dstee.DSTEE(order=order))
    wrapper = Wrapper(Wrapper(optimizer))
    wrapper.optimizer.load_state_dict = optimizer.load_state_dict
    wrapper.optimizer.load_state_dict(optimizer.state_dict())  # accelerator.prepare() does this, checkpoint or not
    plain, plain_sparse, plain_optimizer = setup(kind, method=dstee.DSTEE(order=order))
    for t in range(4):
        set_gradients(model, t)
        wrapper.gradient_state.sync_gradients = False
        before = snapshot(sparse, optimizer)
        assert not sparse.step(wrapper) and not differing(before, snapshot(sparse, optimizer))
        wrapper.gradient_state.sync_gradients = True
        set_gradients(plain, t)
        assert sparse.step(wrapper) == plain_sparse.step(plain_optimizer)
    assert not differing(snapshot(sparse, optimizer), snapshot(plain_sparse, plain_optimizer))
    assert sparse.round == 2


@pytest.mark.parametrize("kind", ["SparseSGD", "AdamW"])
def test_a_wrapper_with_its_own_scaler(kind):
    model, sparse, optimizer = setup(kind)
    plain, plain_sparse, plain_optimizer = setup(kind)
    wrapper = Wrapper(optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**8))
    for t, overflow in enumerate((False, True, False, True, False)):
        backward(model, wrapper.scaler, t, overflow)
        changed = sparse.step(wrapper)
        if overflow:
            assert not changed
            continue
        backward(plain, None, t)
        assert plain_sparse.step(plain_optimizer) == changed
        assert not differing(snapshot(sparse, optimizer), snapshot(plain_sparse, plain_optimizer))
    _, replacing, other = setup(kind, method=dstee.DSTEE.paper(), schedule=EVERY_STEP)
    with pytest.raises(RuntimeError, match=r"order='replace' cannot unscale.*use order='after'"):
        replacing.step(Wrapper(other, wrapper.scaler))


def test_a_trainer_that_runs_everything_inside_the_closure():
    """Lightning: forward and backward happen in optimizer.step(closure), and update() comes after it."""
    results = []
    for trainer in (True, False):
        model, sparse, optimizer = setup()
        for t in range(5):

            def closure(model=model, t=t):
                backward(model, None, t)

            if trainer:
                optimizer.step(closure=closure)
                sparse.update()
            else:
                sparse.step(optimizer, closure=closure)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)
    with pytest.raises(ZeroDivisionError):
        sparse.step(optimizer, closure=lambda: 1 // 0)
    assert sparse._pending is None and sparse.t == 5


def test_resuming_where_a_host_makes_the_steps() -> None:
    """Nobody asks before the first step after a load, and the optimizer writes outside the masks."""
    results = []
    for interrupted in (False, True):
        model, sparse, optimizer = stepped_by_a_host()
        for t in range(6):
            if interrupted and t == 3:
                saved = copy.deepcopy((sparse.state_dict(), model.state_dict(), optimizer.state_dict()))
                model, sparse, optimizer = stepped_by_a_host()
                for loaded, state in zip((sparse, model, optimizer), saved, strict=True):
                    loaded.load_state_dict(state)
            set_gradients(model, t)
            optimizer.step()
            sparse.update(optimizer)
        assert sparse.t == 6 and sparse.round == 3
        results.append([*model.parameters(), *sparse.masks().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def stepped_by_a_host() -> tuple[nn.Module, dstee.SparseModel, torch.optim.Optimizer]:
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, schedule=dstee.UpdateSchedule(2))
    return model, sparse, torch.optim.AdamW(model.parameters(), lr=0.01)
