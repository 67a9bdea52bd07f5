"""SparseSGD against torch's optimizer contract: what torch.optim.SGD does, on the active weights alone."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, convnet, differing, mlp, set_gradients, snapshot
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import dstee

RULES = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "maximize": True},
    {"weight_decay": torch.tensor(0.01)},
]


def make(sparsity: float = 0.6, **kwargs) -> tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD]:
    model = mlp()
    sparse = dstee.sparsify(model, sparsity)
    return model, sparse, dstee.SparseSGD(model.parameters(), sparse, **{"lr": 0.1, "momentum": 0.9, **kwargs})


def ulps(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> float:
    """Largest distance in units of the last place of ``scale``."""
    unit = torch.nextafter(scale.abs(), torch.tensor(float("inf"))) - scale.abs()
    return float(((a.double() - b.double()).abs() / unit.double()).max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("foreach", [False, True])
def test_all_masks_true_is_torch_sgd_to_one_ulp_a_step(rule, foreach):
    """Each step starts from equal states and is small beside its weight: there torch's fused multiply-adds cost one rounding.

    (Where a weight is tiny beside the terms of its step, several roundings show in its last places.)
    """
    ours, theirs = convnet(), convnet()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.copysign(p.abs() + 0.5, p))
    sparse = dstee.sparsify(ours, 0.0)
    optimizer = dstee.SparseSGD(ours.parameters(), sparse, lr=0.001, **rule)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.001, foreach=foreach, **rule)
    for t in range(4):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.data.copy_(b.data)
            if t and rule.get("momentum"):
                optimizer.state[a]["momentum_buffer"].copy_(expected.state[b]["momentum_buffer"])
        before = [p.detach().clone() for p in theirs.parameters()]
        set_gradients(ours, t)
        set_gradients(theirs, t)
        optimizer.step()
        expected.step()
        for a, b, old in zip(ours.parameters(), theirs.parameters(), before, strict=True):
            assert ulps(a.detach(), b.detach(), torch.minimum(old.abs(), b.detach().abs())) <= 1
            if rule.get("momentum"):
                m, n = optimizer.state[a]["momentum_buffer"], expected.state[b]["momentum_buffer"]
                assert ulps(m, n, n.abs() + b.grad.abs()) <= 2  # three roundings to fuse or not
                assert m.dtype == n.dtype and m.stride() == n.stride()


@pytest.mark.parametrize("rule", RULES)
def test_sparse_weights_follow_torch_sgd_with_masked_gradients(rule):
    ours, theirs = mlp(), mlp()
    sparse = dstee.sparsify(ours, 0.6)
    theirs.load_state_dict(ours.state_dict())
    optimizer = dstee.SparseSGD(ours.parameters(), sparse, lr=0.05, **rule)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.05, **rule)
    for t in range(4):
        set_gradients(ours, t)
        set_gradients(theirs, t)
        for name, p in theirs.named_parameters():
            if name in sparse.layers:
                p.grad *= sparse.mask(name)
        optimizer.step()
        expected.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)
        if name not in sparse.layers:
            assert torch.equal(a, b), name  # torch's own code did these
    assert_invariant(sparse, optimizer)
    assert sparse.t == 0 and sparse.round == 0


def test_errors_have_torchs_own_texts():
    model = mlp()
    sparse = dstee.sparsify(model, 0.5)

    def refusal(make):
        with pytest.raises(Exception) as caught:
            make()
        return type(caught.value), str(caught.value)

    params = list(model.parameters())
    for given, kwargs in [
        (params, {"lr": -1.0}),
        (params, {"momentum": -0.5}),
        (params, {"weight_decay": -0.5}),
        (params, {"nesterov": True}),
        (params, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        (params, {"lr": torch.ones(2)}),
        (params, {"fused": True, "foreach": True}),
        ([], {}),
        (params[0], {}),
        ([{"params": params[:1]}, {"params": params[:1]}], {}),
        ([params[0] * 2], {}),
        ([1.0], {}),
        ([{"params": set(params)}], {}),
    ]:
        theirs = refusal(lambda given=given, kwargs=kwargs: torch.optim.SGD(given, **kwargs))
        ours = refusal(lambda given=given, kwargs=kwargs: dstee.SparseSGD(given, sparse, **kwargs))
        assert ours == theirs


def test_own_refusals():
    model = mlp()
    sparse = dstee.sparsify(model, 0.5)
    with pytest.raises(TypeError, match=r"sparse must be the SparseModel that dstee.sparsify returned, got float"):
        dstee.SparseSGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="does not support differentiable=True"):
        dstee.SparseSGD(model.parameters(), sparse, differentiable=True)
    optimizer = dstee.SparseSGD(model[0].parameters(), sparse)
    with pytest.raises(ValueError, match="does not support differentiable=True"):
        optimizer.add_param_group({"params": model[3].parameters(), "differentiable": True})
    assert len(optimizer.param_groups) == 1


def test_state_is_lazy_and_without_masks():
    model, _, optimizer = make()
    assert not optimizer.state
    optimizer.step()  # no gradients: nothing to do
    assert not optimizer.state
    set_gradients(model, 0)
    model[3].weight.grad = None
    optimizer.step()
    assert set(optimizer.state[model[0].weight]) == {"momentum_buffer"} and model[3].weight not in optimizer.state
    _, _, plain = make(momentum=0)
    plain.step()
    assert not plain.state
    assert "sparse" not in repr(optimizer) and repr(optimizer).startswith("SparseSGD (\nParameter Group 0\n")


def test_closure_runs_once_with_gradients_enabled():
    model, sparse, optimizer = make()
    x = torch.randn(4, 12)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        calls.append(1)
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure).detach()
    with torch.no_grad():
        assert not sparse.step(optimizer, closure=closure)
    assert len(calls) == 2 and model(x).square().mean() < first


def test_hooks_fire_once_a_step_whoever_steps():
    model, sparse, optimizer = make()
    sparse.schedule = EVERY_STEP
    fired = []
    optimizer.register_step_pre_hook(lambda *args: fired.append("before"))
    optimizer.register_step_post_hook(lambda *args: fired.append("after"))
    everywhere = register_optimizer_step_post_hook(lambda *args: fired.append("global"))
    try:
        set_gradients(model, 0)
        optimizer.step()
        set_gradients(model, 1)
        assert sparse.step(optimizer)
    finally:
        everywhere.remove()
    assert fired == ["before", "after", "global"] * 2
    assert len(optimizer._optimizer_step_post_hooks) == 1  # step leaves none of its own


def test_schedulers_and_tensor_lr():
    lrs = []
    for lr in (0.5, torch.tensor(0.5)):
        model, sparse, optimizer = make(lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for t in range(4):
            set_gradients(model, t)
            sparse.step(optimizer)  # through the scheduler's patched step: a warning would be an error here
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.125 and isinstance(optimizer.param_groups[0]["lr"], type(lr))
        lrs.append(snapshot(sparse, optimizer))
    assert not differing(*lrs)


def test_groups_have_their_own_rules():
    """Two groups in one optimizer move as one group each in two optimizers; updates included."""
    results = []
    rules = [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.1}]
    for split in (True, False):
        model = mlp()
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
        halves = [list(model[0].parameters()), [*model[1].parameters(), *model[3].parameters()]]
        if split:
            optimizer = dstee.SparseSGD([{"params": h, **r} for h, r in zip(halves, rules, strict=True)], sparse)
        else:
            optimizer = dstee.SparseSGD(halves[0], sparse, **rules[0])
            optimizer.add_param_group({"params": halves[1], **rules[1]})
        for t in range(3):
            set_gradients(model, t)
            assert sparse.step(optimizer)
        assert model[3].weight not in optimizer.state
        assert_invariant(sparse, optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)
    alone = {name: nn.Parameter(p.detach().clone()) for name, p in mlp()[3].named_parameters()}
    expected = torch.optim.SGD(alone.values(), **rules[1])
    for t in range(3):
        twin = mlp()
        set_gradients(twin, t)
        alone["bias"].grad = twin[3].bias.grad
        expected.step()
    assert torch.equal(alone["bias"], model[3].bias)


def test_momentum_switched_on_later_starts_as_torchs_does():
    model, theirs = mlp(), mlp()
    sparse = dstee.sparsify(model, 0.0)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.0)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.0)
    for t, momentum in enumerate((0.0, 0.9, 0.9, 0.0, 0.9)):
        for o, m in ((optimizer, model), (expected, theirs)):
            o.param_groups[0]["momentum"] = momentum
            set_gradients(m, t)
            if t == 1:
                m[0].weight.grad = None  # so that buffers start at different steps
            o.step()
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_gradients_in_another_layout_are_read_right():
    results = []
    for odd in (False, True):
        model = convnet().to(memory_format=torch.channels_last)
        sparse = dstee.sparsify(model, 0.5, schedule=EVERY_STEP)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
        for t in range(3):
            set_gradients(model, t)
            if odd:
                model[0].weight.grad = model[0].weight.grad.contiguous()
                model[5].weight.grad = model[5].weight.grad.t().contiguous().t()
                model[3].weight.grad = model[3].weight.grad.to_sparse()
            else:
                model[0].weight.grad = model[0].weight.grad.to(memory_format=torch.channels_last)
            sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_copies_and_pickles_step_as_the_original():
    model, sparse, optimizer = make()
    set_gradients(model, 0)
    optimizer.step()
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for twin in copies:
        assert type(twin) is dstee.SparseSGD and twin.sparse is not sparse
        set_gradients(twin.sparse.model, 1)
        assert not twin.sparse.step(twin)
    set_gradients(model, 1)
    assert not sparse.step(optimizer)
    for twin in copies:
        assert not differing(snapshot(sparse, optimizer), snapshot(twin.sparse, twin))


def test_checkpoints_are_torchs_and_load_in_any_order():
    """Weights, momenta and masks come from three files; whichever is read first, training goes on with the same bits."""
    model, sparse, optimizer = make()
    sparse.schedule = EVERY_STEP
    for t in range(3):
        set_gradients(model, t)
        sparse.step(optimizer)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "sparse": sparse.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    set_gradients(model, 3)
    sparse.step(optimizer)
    for order in (("model", "sparse", "optimizer"), ("optimizer", "sparse", "model"), ("sparse", "model", "optimizer")):
        saved.seek(0)
        state = torch.load(saved, weights_only=True)
        assert set(state["optimizer"]["state"][0]) == {"momentum_buffer"}
        torch.optim.SGD(mlp().parameters()).load_state_dict(state["optimizer"])  # torch's own reads it
        model2 = mlp(seed=1)
        sparse2 = dstee.sparsify(model2, 0.6, seed=1)
        optimizer2 = dstee.SparseSGD(model2.parameters(), sparse2)
        parts = {"model": model2, "sparse": sparse2, "optimizer": optimizer2}
        for part in order:
            parts[part].load_state_dict(state_dict=state[part])  # by keyword, as torch's distributed checkpoints do
        set_gradients(model2, 3)
        assert sparse2.step(optimizer2)
        assert not differing(snapshot(sparse, optimizer), snapshot(sparse2, optimizer2))


def test_dense_momenta_are_masked_before_they_are_used():
    model, sparse, optimizer = make()
    dense = torch.optim.SGD(mlp().parameters(), momentum=0.9)
    set_gradients(model, 0)
    for p, q in zip(dense.param_groups[0]["params"], model.parameters(), strict=True):
        p.grad = q.grad.clone()
    dense.step()
    optimizer.load_state_dict(dense.state_dict())
    optimizer.step()
    assert_invariant(sparse, optimizer)


def test_state_for_other_parameters_is_refused_with_a_list():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6)
    optimizer = dstee.SparseSGD(model.named_parameters(), sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    optimizer.step()
    before = snapshot(sparse, optimizer)
    twin = mlp()
    set_gradients(twin, 0)
    turned = list(twin.named_parameters())[::-1]
    other = torch.optim.SGD(turned, lr=0.5, momentum=0.9)
    other.step()
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(other.state_dict())
    text = str(caught.value)
    assert "group 0, parameter 0 (0.weight): saved for 3.bias" in text
    assert "parameter 0 (0.weight): saved momentum is [5], expected [9, 12]" in text and "parameter 5 (3.bias)" in text
    assert not differing(before, snapshot(sparse, optimizer)) and optimizer.param_groups[0]["lr"] == 0.1
    few = torch.optim.SGD(list(twin.named_parameters())[:2])
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(few.state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    optimizer.register_load_state_dict_pre_hook(lambda opt, state: {**optimizer.state_dict()})
    optimizer.load_state_dict(other.state_dict())  # a hook of the user may repair it first
    assert not differing(before, snapshot(sparse, optimizer))


def test_state_keeps_the_parameters_dtype():
    model = mlp().bfloat16()
    sparse = dstee.sparsify(model, 0.5)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    optimizer.step()
    before = snapshot(sparse, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    assert not differing(before, snapshot(sparse, optimizer))
    assert optimizer.state[model[0].weight]["momentum_buffer"].dtype == torch.bfloat16


@pytest.mark.parametrize("regrow", [False, True])
def test_two_that_mask_their_steps_update_each_layer_once(regrow: bool) -> None:
    masks = []
    for apart in (True, False):
        model = mlp()
        sparse = dstee.sparsify(model, 0.7, schedule=EVERY_STEP, method=dstee.RigL(order="after", regrow=regrow))
        parts = [list(model[:2].parameters()), list(model[2:].parameters())]
        groups = parts if apart else [parts[0] + parts[1]]
        optimizers = [dstee.SparseSGD(group, sparse, lr=0.1, momentum=0.9) for group in groups]
        for t in range(3):
            set_gradients(model, t)
            assert sparse.step(*optimizers)
        masks.append(sparse.masks())
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())
