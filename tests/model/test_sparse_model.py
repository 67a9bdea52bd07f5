"""SparseModel.step and update: what a step does, bit for bit, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.small_models import EVERY_STEP, assert_invariant, convnet, differing, mlp, set_gradients, snapshot
from torch import nn

import dstee
from dstee import ops
from dstee.methods import growth_seeds

RULES = [
    {"momentum": 0.0},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "maximize": True},
    {"momentum": 0.5, "dampening": 0.3},
]


def flat_of(t):
    return t.as_strided((t.numel(),), (1,))


class ByHand:
    """The same training through the functional ops alone: masked_sgd_, then drop_grow_, a layer at a time."""

    def __init__(self, sparse: dstee.SparseModel, rule: dict):
        self.rule, self.sparse = rule, sparse
        self.weights = {name: layer.param.detach().clone() for name, layer in sparse.layers.items()}
        self.bits = {name: ops.pack_mask(sparse.mask(name)) for name in sparse.layers}
        self.counts = {name: ops.encode_counts(sparse.counter(name), sparse.mask(name), 0) for name in sparse.layers}
        self.momenta: dict[str, torch.Tensor] = {}
        self.round = 0

    def step(self, t: int, lr: float, order: str, seed: int = 0) -> None:
        due = self.sparse.schedule.is_due(t)
        for name, w in self.weights.items():
            g, bits = self.sparse.layers[name].param.grad, [self.bits[name]]
            if not (due and order == "replace"):
                first = name not in self.momenta
                if self.rule["momentum"]:
                    self.momenta.setdefault(name, torch.zeros_like(w))
                m = [self.momenta[name]] if self.rule["momentum"] else None
                ops.masked_sgd_([w], [g], m, bits, lr=lr, first_step=first, **self.rule)
            if due:
                method, nnz = self.sparse.method, int(ops.count_active(bits)[0])
                k = 0 if nnz == w.numel() else math.ceil(0.4 * nnz)
                m = [self.momenta[name]] if name in self.momenta else None
                bonus = scale = None
                if isinstance(method, dstee.DSTEE):
                    bonus = dstee.bonus_table(method.c_rel, method.eps, t, self.round, dtype=torch.float64)
                    scale = ops.growth_scale([g], bits, [k], self.round)
                ops.drop_grow_(
                    [w], [g], m, bits, [self.counts[name]], [k], bonus=bonus, bonus_scale=scale, round=self.round,
                    grow_seeds=growth_seeds(seed, [name], self.round) if isinstance(method, dstee.SET) else None,
                    reset_regrown=method.reset_regrown,
                )  # fmt: skip
        self.round += due

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        assert self.round == self.sparse.round
        for name, w in self.weights.items():
            layer = self.sparse.layers[name]
            assert torch.equal(layer.param, w), name
            assert torch.equal(
                self.sparse.mask(name), flat_of(ops.unpack_mask(self.bits[name], w.shape)).as_strided(w.shape, w.stride())
            )
            n = ops.decode_counts(self.counts[name], self.bits[name], self.round, (w.numel(),))
            assert torch.equal(flat_of(self.sparse.counter(name)), n)
            if name in self.momenta:
                assert torch.equal(optimizer.state[layer.param]["momentum_buffer"], self.momenta[name])


@pytest.mark.parametrize("order", ["after", "replace"])
@pytest.mark.parametrize("rule", RULES)
def test_fused_steps_equal_the_functional_ops(rule, order):
    schedule = dstee.UpdateSchedule(every=3, drop=dstee.ConstantDrop(0.4))
    for kind in (dstee.DSTEE, dstee.RigL, dstee.SET):
        model = convnet().to(memory_format=torch.channels_last)
        sparse = dstee.sparsify(
            model, 0.6, method=kind(order=order, reset_regrown=kind is dstee.RigL), schedule=schedule, track_exploration=True
        )
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, **rule)
        expected = ByHand(sparse, rule)
        for t in range(1, 9):
            set_gradients(model, t)
            for p in model.parameters():
                p.grad = torch.empty_like(p).copy_(p.grad)
            expected.step(t, 0.1, order)
            assert sparse.step(optimizer) == (t % 3 == 0)
            expected.check(optimizer)
        assert sparse.t == 8 and sparse.round == 2
        assert_invariant(sparse, optimizer)


def test_update_after_a_foreign_step_equals_the_fused_step():
    results = []
    for fused in (True, False):
        model = mlp()
        sparse = dstee.sparsify(model, 0.6, schedule=dstee.UpdateSchedule(every=2, drop=dstee.ConstantDrop(0.4)))
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
        for t in range(1, 8):
            set_gradients(model, t)
            if fused:
                changed = sparse.step(optimizer)
            else:
                optimizer.step()
                changed = sparse.update()
            assert changed == (t % 2 == 0)
            assert not sparse.update()  # nobody stepped in between
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_replace_moves_nothing_but_the_swapped_weights():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, method=dstee.DSTEE.paper(), schedule=dstee.UpdateSchedule(every=2))
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    stepped = []
    optimizer.register_step_post_hook(lambda *args: stepped.append(sparse.t))
    for t in range(1, 5):
        set_gradients(model, t)
        before = snapshot(sparse, optimizer)
        assert sparse.step(optimizer) == (t % 2 == 0)
        after = snapshot(sparse, optimizer)
        if t % 2 == 0:
            assert set(differing(before, after)) >= {
                "mask 0.weight",
                "weight 0.weight",
                "momentum_buffer 0.weight",
                "t",
                "round",
            }
            assert not any("bias" in key or "1." in key for key in differing(before, after))
            for name in sparse.layers:
                kept = before[f"mask {name}"] & after[f"mask {name}"]
                for key in (f"weight {name}", f"momentum_buffer {name}"):
                    assert torch.equal(after[key], before[key] * kept)
                assert int(sparse.last_grown(name).sum()) > 0
    assert stepped == [0, 2]
    with pytest.raises(RuntimeError, match=r"DST-EE with order='replace' .* call sparse.step\(optimizer\)"):
        sparse.update()


def test_static_never_changes_the_topology():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, method=dstee.Static(), schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    masks = sparse.masks()
    for t in range(1, 4):
        set_gradients(model, t)
        assert not sparse.step(optimizer)
    assert sparse.t == 3 and sparse.round == 0
    assert all(torch.equal(mask, masks[name]) for name, mask in sparse.masks().items())


def test_dense_and_frozen_layers_keep_their_masks():
    model = nn.Sequential(mlp(), nn.Linear(5, 7))
    sparsity = {"0.0.weight": 0.5, "0.3.weight": 0.0, "1.weight": 0.5}
    sparse = dstee.sparsify(model, sparsity, method=dstee.DSTEE(reset_regrown=True), schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    sparse.step(optimizer)
    model[1].weight.requires_grad_(False)
    masks = sparse.masks()
    for t in range(1, 4):
        set_gradients(model, t)
        if t < 3:
            model[1].weight.grad = None
        assert sparse.step(optimizer)
        assert not sparse.last_grown("0.3.weight").any() and not sparse.last_grown("1.weight").any()
    assert sparse.last_grown("0.0.weight").any()
    for name in ("0.3.weight", "1.weight"):
        assert torch.equal(sparse.mask(name), masks[name])
    assert torch.equal(sparse.counter("0.3.weight"), torch.full((5, 9), 5, dtype=torch.int32))
    assert int(sparse.counter("1.weight").max()) == 5  # active all along, frozen or not
    assert_invariant(sparse, optimizer)


def test_accumulated_gradients_give_the_update_of_the_one_big_batch():
    """Sums of multiples of 1/64 are exact in float32, so that the two must agree in every bit."""
    results = []
    x = torch.arange(16 * 12).view(16, 12).fmod(7) / 8 - 0.25
    for chunks in (1, 4):
        model = nn.Linear(12, 9, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.arange(108).view(9, 12).fmod(5) / 4 - 0.5)
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.5, momentum=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            for part in x.chunk(chunks):
                (model(part).sum() / 16).backward()
            assert sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


@pytest.mark.parametrize("sparse_sgd", [True, False])
@pytest.mark.parametrize("use_closure", [True, False])
@pytest.mark.parametrize("order", ["after", "replace"])
def test_missing_gradients_are_named_at_an_update_and_skipped_otherwise(sparse_sgd, use_closure, order):
    model = mlp()
    schedule = dstee.UpdateSchedule(every=2)
    sparse = dstee.sparsify(model, 0.6, method=dstee.DSTEE(order=order), schedule=schedule)
    make = dstee.SparseSGD if sparse_sgd else (lambda params, sparse, **kw: torch.optim.SGD(params, **kw))
    optimizer = make(model.parameters(), sparse, lr=0.1, momentum=0.9)

    def closure():
        set_gradients(model, 1)
        model[3].weight.grad = None
        return torch.ones(())

    def step():
        if use_closure:
            return sparse.step(optimizer, closure=closure)
        closure()
        return sparse.step(optimizer)

    frozen = model[3].weight.detach().clone()
    assert not step()
    assert torch.equal(model[3].weight, frozen)
    before = snapshot(sparse, optimizer)
    with pytest.raises(RuntimeError, match=r"no gradient: 3.weight\. Update after backward"):
        step()
    assert not differing(before, snapshot(sparse, optimizer)) and sparse.t == 1
    if order == "after" and not use_closure:
        closure()
        optimizer.step()
        with pytest.raises(RuntimeError, match=r"no gradient: 3.weight"):
            sparse.update(optimizer)
        assert sparse.t == 1
    model[3].weight.requires_grad_(False)
    assert step() and sparse.round == 1


def test_random_growth_needs_no_gradients():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, method=dstee.SET(), schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    model[3].weight.grad = None
    assert sparse.step(optimizer)
    assert sparse.last_grown("0.weight").any() and sparse.last_grown("3.weight").any()
    assert_invariant(sparse, optimizer)


def test_the_optimizer_must_hold_the_models_parameters():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6)
    set_gradients(model, 0)
    for optimizer in (dstee.SparseSGD(model[0].parameters(), sparse), torch.optim.SGD(mlp().parameters())):
        before = snapshot(sparse, optimizer)
        with pytest.raises(ValueError, match=r"does not hold these sparse weights of the model: .*3.weight.*after wrapping"):
            sparse.step(optimizer)
        assert not differing(before, snapshot(sparse, optimizer))
    replaced = dstee.SparseSGD(model.parameters(), sparse)
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())  # as wrappers do
    with pytest.raises(ValueError, match=r"does not hold these sparse weights of the model: 0.weight .*another parameter"):
        replaced.step()
    model[3].weight.requires_grad_(False)  # frozen layers need no optimizer
    dstee.SparseSGD(model[0].parameters(), sparse).step()
    other = dstee.sparsify(mlp(), 0.5)
    with pytest.raises(ValueError, match="belongs to another SparseModel"):
        other.step(replaced)
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got list"):
        sparse.step([])


def test_steps_do_not_nest():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6)
    optimizer = dstee.SparseSGD(model.parameters(), sparse)
    with pytest.raises(RuntimeError, match=r"update\(\) called inside step\(\)"):
        sparse.step(optimizer, closure=sparse.update)
    set_gradients(model, 0)
    assert not sparse.step(optimizer) and sparse.t == 1  # and the guard is gone


def test_update_must_know_the_optimizer():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6)
    with pytest.raises(RuntimeError, match=r"pass the optimizer"):
        sparse.update()
    optimizer = dstee.SparseSGD(model.parameters(), sparse)
    del optimizer
    with pytest.raises(RuntimeError, match=r"pass the optimizer"):
        sparse.update()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_moving_the_model_after_sparsify_is_as_good_as_before(dtype):
    results = []
    for late in (False, True):
        model = convnet()
        if not late:
            model.to(dtype=dtype, memory_format=torch.channels_last)
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.25, momentum=0.5)
        model.to(dtype=dtype, memory_format=torch.channels_last)
        for t in range(3):
            set_gradients(model, t)
            sparse.step(optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_moving_the_model_between_steps():
    results = []
    for last in (False, True):
        model = convnet()
        sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
        optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.25, momentum=0.5)
        for t in range(4):
            if t == 2 and last:
                model.to(memory_format=torch.channels_last)
            set_gradients(model, t)
            sparse.step(optimizer)
        for name, layer in sparse.layers.items():
            assert sparse.mask(name).stride() == layer.param.stride() == sparse.counter(name).stride()
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)  # the memory format changes no value
    model.bfloat16()
    set_gradients(model, 4)
    assert sparse.step(optimizer)
    assert optimizer.state[model[0].weight]["momentum_buffer"].dtype == torch.bfloat16
    assert_invariant(sparse, optimizer)
    before = snapshot(sparse, optimizer)
    model.double()
    set_gradients(model, 5)
    with pytest.raises(TypeError, match=r"0.weight has dtype torch.float64"):
        sparse.step(optimizer)
    model.bfloat16()
    assert not differing(before, snapshot(sparse, optimizer))


def test_masks_and_counters_keep_their_places_in_another_memory_format():
    model = convnet()
    sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    set_gradients(model, 0)
    sparse.step(optimizer)
    before = snapshot(sparse, optimizer)
    model.to(memory_format=torch.channels_last)
    assert sparse.mask("0.weight").stride() == (27, 1, 9, 3)
    assert not differing(before, snapshot(sparse, optimizer))


def test_a_weight_that_is_gone_or_reshaped_is_named():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6)
    model[0].weight = nn.Parameter(torch.zeros(9, 13))
    with pytest.raises(RuntimeError, match=r"0.weight has shape \[9, 13\], it was \[9, 12\]"):
        sparse.mask("0.weight")
    del model[3].weight
    with pytest.raises(RuntimeError, match=r"3.weight is no parameter of its module any more"):
        sparse.mask("3.weight")


def test_deepcopy_is_independent_and_trains_the_same():
    model = mlp()
    sparse = dstee.sparsify(model, 0.6, schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    set_gradients(model, 0)
    sparse.step(optimizer)
    model2, sparse2, optimizer2 = copy.deepcopy((model, sparse, optimizer))
    assert sparse2.model is model2 and optimizer2.sparse is sparse2
    before = snapshot(sparse, optimizer)
    set_gradients(model2, 1)
    optimizer2.step()
    assert sparse2.update()  # finds its own optimizer
    assert not differing(before, snapshot(sparse, optimizer))
    set_gradients(model, 1)
    assert sparse.step(optimizer)
    assert not differing(snapshot(sparse2, optimizer2), snapshot(sparse, optimizer))
