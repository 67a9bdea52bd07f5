"""What a step of SparseSGD remembers of the one before is never at the price of a stale look."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, convnet, differing, set_gradients, snapshot
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import dstee
from dstee import _step_plan, _tensor_layouts, weight_watch
from dstee._tensor_layouts import layouts
from dstee.backends import native
from dstee.weight_watch import WeightWatch


def replace(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """Another parameter takes the place of one, in the model and in the optimizer."""
    new = nn.Parameter(model[0].weight.detach() * 2)
    params = optimizer.param_groups[0]["params"]
    i = next(i for i, p in enumerate(params) if p is model[0].weight)
    params[i] = new
    optimizer.state[new] = optimizer.state.pop(model[0].weight)
    model[0].weight = new


def replace_module(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    conv = nn.Conv2d(3, 8, 3)
    conv.weight, conv.bias = model[0].weight, model[0].bias
    model[0] = conv


def other_data(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    model[0].weight.data = model[0].weight.data * 2
    model[0].bias.data = model[0].bias.data * 2


def other_order(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """The same memory, read as another layout: only the strides tell."""
    weight = model[3].weight  # [4, 8, 1, 1]
    weight.data = weight.data.clone(memory_format=torch.channels_last)
    model[5].weight.data = model[5].weight.data.t().contiguous().t()


def written(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    with torch.no_grad():
        model[0].weight.copy_(torch.where(sparse.mask("0.weight"), model[0].weight * 3, 0))


def other_momenta(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in (model[0].weight, model[0].bias):
        optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"] * 2


def forgotten_state(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.state.clear()


def momenta_of_half(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for p in (model[0].weight,):
        optimizer.state[p]["momentum_buffer"].data = optimizer.state[p]["momentum_buffer"].data.half()


def other_rule(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.param_groups[0].update(lr=0.01, momentum=0.5, weight_decay=0.1, nesterov=True, maximize=True)


def one_more_group(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    moved = optimizer.param_groups[0]["params"].pop(0)
    optimizer.add_param_group({"params": [moved], "lr": 0.5})


def other_masks(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    other = dstee.sparsify(convnet(), 0.5, seed=7)
    sparse.load_state_dict(other.state_dict())
    sparse.apply_masks()


def layer_removed(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    sparse.remove("3.weight")


def without_gradient(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    model[0].weight.grad = model[1].bias.grad = None


def of_bfloat16(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    model.bfloat16()


def order_and_back(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """Masks have followed a weight into another order, which then lies again where it lay after the last step."""
    weight = model[0].weight
    before = weight.data
    weight.data = before.contiguous(memory_format=torch.channels_last)
    sparse.masks()
    weight.data = before


def with_gaps(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """Momenta and gradients of which every other number in memory is another's."""
    for p in (model[1].weight, model[1].bias):
        buffer = optimizer.state[p]["momentum_buffer"]
        buffer.data = buffer.data.repeat_interleave(2)[::2]
        p.grad = p.grad.repeat_interleave(2)[::2]


def dense_of_double(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for p in (model[1].weight, model[5].bias):
        p.grad = None
        p.data = p.data.double()
        p.grad = torch.ones_like(p)
        optimizer.state[p]["momentum_buffer"].data = optimizer.state[p]["momentum_buffer"].data.double()


def negated_gradients(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for p in model.parameters():
        p.grad = torch._neg_view(p.grad)


def turned_gradients(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for p in (model[0].weight, model[5].weight):
        p.grad = p.grad.transpose(0, 1).contiguous().transpose(0, 1)


def replaced_entries(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for p in (model[0].weight, model[0].bias, model[3].bias):
        optimizer.state[p] = {"momentum_buffer": optimizer.state[p]["momentum_buffer"] * -1}


def swapped_entries(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """The same objects, each at another's place."""
    a, b = model[1].weight, model[1].bias
    optimizer.state[a], optimizer.state[b] = optimizer.state[b], optimizer.state[a]


def without_momentum(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.param_groups[0].update(momentum=0, dampening=0)


def momentum_off_in_one_of_two_groups(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    one_more_group(model, sparse, optimizer)
    optimizer.param_groups[0].update(momentum=0)


def negated_momenta(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    buffer = optimizer.state[model[0].weight]["momentum_buffer"]
    buffer.data = torch._neg_view(buffer.data)


def shared_entries(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """What torch's own state may hold beside the parameters' entries."""
    optimizer.state["global_step"] = 3


def dtype_and_back(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    """As mixed precision by hand does; masks are looked at in between."""
    before = [p.data for p in model.parameters()]
    for p in model.parameters():
        p.grad, p.data, p.grad = None, p.data.bfloat16(), p.grad.bfloat16()
    sparse.masks()
    for p, data in zip(model.parameters(), before, strict=True):
        p.data = data


def torchs_own_way(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.param_groups[0].update(foreach=True, lr=torch.tensor(0.05))


def other_mask_bits(model: nn.Sequential, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for layer in sparse.layers.values():
        layer.mask_bits = layer.mask_bits.clone()


EVENTS = [
    replace, replace_module, other_data, other_order, order_and_back, written, other_momenta, forgotten_state, momenta_of_half,
    other_rule, one_more_group, other_masks, layer_removed, without_gradient, of_bfloat16, with_gaps, dense_of_double,
    negated_gradients, turned_gradients, replaced_entries, swapped_entries, without_momentum, torchs_own_way,
    momentum_off_in_one_of_two_groups, negated_momenta, shared_entries, dtype_and_back, other_mask_bits,
]  # fmt: skip


def stepped(steps: int) -> tuple[nn.Sequential, dstee.SparseModel, dstee.SparseSGD]:
    model = convnet()
    sparse = dstee.sparsify(model, 0.5, track_exploration=True)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    for t in range(steps):
        set_gradients(model, t)
        sparse.step(optimizer)
    return model, sparse, optimizer


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_nothing_is_remembered_of_what_has_changed(
    event: Callable[..., None], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step after it is that of a model which remembers nothing of the steps before."""
    if not compiled:
        for module in (weight_watch, _step_plan):
            monkeypatch.setattr(module, "layouts", lambda tensors, addresses=True: _tensor_layouts._layouts(tensors, addresses))
    results = []
    for forget in (False, True):
        model, sparse, optimizer = stepped(3)
        set_gradients(model, 3)
        event(model, sparse, optimizer)
        if event is of_bfloat16:
            set_gradients(model, 3)
        for t in (4, 5):
            if forget:
                sparse._watch, optimizer._last = WeightWatch(), None
            sparse.step(optimizer)
            set_gradients(model, t)
        assert 0 < sparse.layers["0.weight"].nnz < sparse.layers["0.weight"].numel  # else masks of any order would do
        assert_invariant(sparse, optimizer)
        results.append(snapshot(sparse, optimizer))
    assert not differing(*results)


def test_an_ordinary_step_finds_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen parameters, new gradients, other numbers, a mask update in between: none of it is a reason to."""
    model = convnet()
    model[3].bias.requires_grad_(False)
    sparse = dstee.sparsify(model, 0.5, schedule=dstee.UpdateSchedule(every=4))
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    find, looked = _step_plan.StepPlan.find, []
    monkeypatch.setattr(_step_plan.StepPlan, "find", lambda *args, **keys: looked.append(sparse.t) or find(*args, **keys))
    for _ in range(9):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(2, 3, 4, 4)).square().sum().backward()
        sparse.step(optimizer)
        optimizer.param_groups[0]["lr"] *= 0.9
    assert sparse.round == 2 and looked == [0, 1]


def test_no_gradient_is_kept() -> None:
    model, sparse, optimizer = stepped(0)
    for t in range(4):
        set_gradients(model, t)
        sparse.step(optimizer)
        kept = [weakref.ref(p.grad) for p in model.parameters()]
        optimizer.zero_grad(set_to_none=True)
        assert not any(reference() is not None for reference in kept)


def test_no_momentum_is_kept_that_has_gone() -> None:
    _, _, optimizer = stepped(4)
    kept = [weakref.ref(entry["momentum_buffer"]) for entry in optimizer.state.values()]
    for entry in optimizer.state.values():  # as offloading does
        entry["momentum_buffer"] = entry["momentum_buffer"].clone()
    assert len(kept) > 4 and not any(reference() is not None for reference in kept)


class Replacing(torch.optim.SGD):
    """Gives its parameters new memory, as some optimizers do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_a_step_of_an_optimizer_that_replaces_memory_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convnet()
    sparse = dstee.sparsify(model, 0.5, schedule=dstee.UpdateSchedule(every=2))
    optimizer = Replacing(model.parameters(), lr=0.1)
    looked = []
    find = weight_watch.find_outside
    monkeypatch.setattr(weight_watch, "find_outside", lambda layers, **keys: looked.extend(layers) or find(layers, **keys))
    for t in range(5):
        set_gradients(model, t)
        sparse.step(optimizer)
        assert not sparse.update(optimizer)
        if t == 0:
            looked.clear()  # before the first step nothing was known
    assert (sparse.t, sparse.round) == (5, 2)
    assert len(looked) == 2 * len(sparse.layers)  # at the updates


def test_looking_at_the_model_steps_no_gradient() -> None:
    model = convnet()
    sparse = dstee.sparsify(model, 0.5)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1)
    set_gradients(model, 0)
    optimizer.step()
    set_gradients(model, 1)
    sparse.density()
    sparse.step(optimizer)
    with pytest.raises(RuntimeError, match="stepped already"):
        optimizer.step()
        sparse.step(optimizer)


def test_masks_put_on_after_a_step_do_not_undo_that_there_was_one() -> None:
    model = convnet()
    sparse = dstee.sparsify(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for t in range(3):
        set_gradients(model, t)
        optimizer.step()
        sparse.apply_masks()
        sparse.update(optimizer)
    assert sparse.t == 3


def zoo() -> list[torch.Tensor]:
    """Tensors some of which lie alike, others differ in one thing."""
    memory = torch.randn(64)
    with torch.inference_mode():
        inference = torch.randn(3)
    return [
        memory, memory.detach(), memory[1:], memory[:63], memory.view(8, 8), memory.view(8, 8).t(), memory.view(4, 16),
        memory.view(8, 8)[:, :1], memory.view(8, 8)[:, :1].t(), memory[:0], memory[:0].view(0, 3), memory[0], memory[::2],
        memory.view(torch.int32), memory.view(torch.uint8), memory.view(torch.bfloat16), memory.view(torch.float16),
        memory[:1].expand(5), torch.ones(3, dtype=torch.bool), inference, torch.randn(3, dtype=torch.float64),
        torch.randn(1, 1, 1, 1), torch.nn.Parameter(torch.randn(5, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("addresses", [True, False])
def test_layouts_are_equal_where_all_that_they_tell_is(addresses: bool) -> None:
    found = layouts(tensors := zoo(), addresses)
    slow = _tensor_layouts._layouts(tensors, addresses)
    assert found is not None and slow is not None
    for i, a in enumerate(tensors):
        for j, b in enumerate(tensors):
            told = [(t.data_ptr() if addresses else 0, t.dtype, t.shape, t.stride()) for t in (a, b)]
            assert (found[i] == found[j]) is (slow[i] == slow[j]) is (told[0] == told[1]), (i, j)


@pytest.mark.skipif(bool(native.load()[1]), reason=native.load()[1])
def test_the_compiled_module_tells_of_layouts() -> None:
    assert all(type(one) is bytes for one in layouts(zoo()) or [None])
    assert not layouts([]) and layouts([]) is not None


def other_kinds() -> list[object]:
    with FakeTensorMode():
        fake = torch.randn(3)
    return [None, torch.randn(3).to_sparse(), fake, TwoTensor(torch.randn(3), torch.randn(3)), 1, "x"]


@pytest.mark.parametrize("one", other_kinds(), ids=lambda one: type(one).__name__)
def test_layouts_of_other_kinds_are_not_told(one: object) -> None:
    tensors: list[Any] = [torch.randn(2), one]
    assert layouts(tensors) is layouts(tensors, addresses=False) is None
