"""``SparseSGD(packed_momentum=True)``: other memory, the same training to the bit, the same checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from support.dcp_files import load, save
from support.small_models import EVERY_STEP, convnet, differing, mlp, set_gradients
from torch import Tensor, nn

import dstee
from dstee import _packed_momentum, backends
from dstee._packed_momentum import PackedMomentum
from dstee.mask_update import MaskUpdate
from dstee.methods import DSR, MEST, SNFS, DeepR, GraNet, Method

SCHEDULE = dstee.UpdateSchedule(every=7, stop=110, drop=dstee.CosineDrop(0.4, 0.05))


def make(
    packed: bool, method: Method | None = None, sparsity: float = 0.7, schedule: dstee.UpdateSchedule = SCHEDULE, **rule: Any
) -> tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD]:
    model = convnet()
    sparse = dstee.sparsify(model, sparsity, method=method, schedule=schedule, seed=3, track_exploration=True)
    given = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3, **rule}
    return model, sparse, dstee.SparseSGD(model.parameters(), sparse, packed_momentum=packed, **given)


def train(made: tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD], steps: range) -> int:
    updates = 0
    for t in steps:
        set_gradients(made[0], t)
        updates += made[1].step(made[2])
    return updates


def everything(made: tuple[nn.Module, dstee.SparseModel, dstee.SparseSGD]) -> dict[str, Tensor]:
    model, sparse, optimizer = made
    found = {f"weight {name}": p.detach().clone() for name, p in model.named_parameters()}
    names = [name for name, _ in model.named_parameters()]
    for i, state in optimizer.state_dict()["state"].items():
        found |= {f"{key} {names[i]}": value.clone() for key, value in state.items()}
    for name in sparse.layers:
        found |= {f"mask {name}": sparse.mask(name), f"counter {name}": sparse.counter(name)}
    return found | {"t": torch.tensor(sparse.t), "round": torch.tensor(sparse.round)}


def is_packed(sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> bool:
    kept = [optimizer.state[layer.param]["momentum_buffer"] for layer in sparse.layers.values()]
    return all(isinstance(m, PackedMomentum) and m.values.shape == (m.values.numel(),) for m in kept) and all(
        m.values.numel() == layer.nnz for m, layer in zip(kept, sparse.layers.values(), strict=True)
    )


METHODS = [
    dstee.DSTEE(), dstee.DSTEE(c=1e-3), dstee.RigL(), dstee.RigL(order="replace"), dstee.RigL(regrow=True, reset_regrown=True),
    dstee.SET(), dstee.Static(), SNFS(), DSR(threshold=0.02), DeepR(), MEST(), MEST(soft=True), GraNet(),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_trains_to_the_same_bits(method: Method) -> None:
    both = [make(packed, method) for packed in (False, True)]
    for _, sparse, optimizer in both[1:]:
        assert optimizer.packed_momentum and "packed_momentum" not in optimizer.defaults, sparse
    updates = []
    for made in both:
        updates.append(train(made, range(120)))
        if made[2].packed_momentum:
            assert is_packed(*made[1:])
    assert updates[0] == updates[1] and (updates[0] >= 15 or isinstance(method, dstee.Static))
    assert not differing(*map(everything, both))


@pytest.mark.parametrize(
    "rule",
    [
        {"momentum": 0.0},
        {"nesterov": True},
        {"dampening": 0.3, "maximize": True},
        {"lr": torch.tensor(0.05)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rule_and_dtype(rule: dict[str, Any], dtype: torch.dtype) -> None:
    both = []
    for packed in (False, True):
        made = make(packed, dstee.RigL(), schedule=dstee.UpdateSchedule(every=3), **rule)
        made[0].to(dtype, memory_format=torch.channels_last)
        train(made, range(10))
        both.append(everything(made))
    assert not differing(*both)


def test_resumes_to_the_bit_from_either_form() -> None:
    straight = make(True, dstee.RigL())
    train(straight, range(50))
    expected = everything(straight)
    for saved_packed, packed in ((True, True), (True, False), (False, True)):
        first = make(saved_packed, dstee.RigL())
        train(first, range(24))
        file = io.BytesIO()
        torch.save([x.state_dict() for x in first], file)
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            file.seek(0)
            states = torch.load(file, weights_only=True)
            again = make(packed, dstee.RigL())
            train(again, range(5))  # something else was trained before
            for i in order:
                again[i].load_state_dict(states[i])
            train(again, range(24, 50))
            assert not differing(everything(again), expected), (saved_packed, packed, order)


def test_checkpoints_are_torchs() -> None:
    made = make(True)
    train(made, range(3))
    _, sparse, optimizer = made
    state = optimizer.state_dict()
    dense = make(False)
    train(dense, range(3))
    other = dense[2].state_dict()
    assert state["param_groups"] == other["param_groups"] and state["state"].keys() == other["state"].keys()
    for i, entries in state["state"].items():
        assert entries.keys() == other["state"][i].keys() == {"momentum_buffer"}
        m, n = entries["momentum_buffer"], other["state"][i]["momentum_buffer"]
        assert torch.equal(m, n) and m.stride() == n.stride() and m.dtype == n.dtype
    assert is_packed(sparse, optimizer), "to look at the state does not change it"
    torch.optim.SGD(convnet().parameters(), momentum=0.9).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_distributed_checkpoints(tmp_path: Any) -> None:
    made = make(True, dstee.RigL())
    train(made, range(10))
    save(str(tmp_path), *made)
    train(made, range(10, 20))
    for packed in (True, False):
        again = make(packed, dstee.RigL())
        load(str(tmp_path), *again)
        train(again, range(10, 20))
        assert not differing(everything(again), everything(made))


def test_copies_and_pickles_go_on() -> None:
    made = make(True, dstee.RigL(order="after"), schedule=EVERY_STEP)
    train(made, range(3))
    copies = [copy.deepcopy(made), pickle.loads(pickle.dumps(made))]
    train(made, range(3, 6))
    for twin in copies:
        assert twin[2].packed_momentum and twin[2].sparse is twin[1] and is_packed(*twin[1:])
        train(twin, range(3, 6))
        assert not differing(everything(made), everything(twin))


def load_masks(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    sparse.load_state_dict(dstee.sparsify(convnet(), 0.7, seed=9, track_exploration=True).state_dict())
    sparse.apply_masks()


def remove_layer(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    sparse.remove("0.weight")


def other_order(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    model.to(memory_format=torch.channels_last)


def other_dtype(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    model.bfloat16()


def momentum_off(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    optimizer.param_groups[0]["momentum"] = 0.0
    train((model, sparse, optimizer), range(40, 45))
    optimizer.param_groups[0]["momentum"] = 0.5


def steps_of_its_own(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for t in range(40, 50):
        set_gradients(model, t)
        optimizer.step()
        sparse.update()


def without_gradients(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    sparse.allow_missing_gradients = True
    for t in range(40, 50):
        set_gradients(model, t)
        model[0].weight.grad = None
        sparse.step(optimizer)


def looked_at(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    for layer in sparse.layers.values():
        momentum = optimizer.momentum_buffer(layer)
        assert momentum is not None and momentum.shape == layer.shape and not momentum[layer.inactive()].any()


def other_density(model: Any, sparse: dstee.SparseModel, optimizer: dstee.SparseSGD) -> None:
    sparse.method = dstee.methods.DSR(threshold=0.03)


EVENTS = [
    load_masks, remove_layer, other_order, other_dtype, momentum_off, steps_of_its_own, without_gradients, looked_at,
    other_density,
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_what_happens_between_steps(event: Any) -> None:
    both = []
    for packed in (False, True):
        made = make(packed, dstee.RigL(order="after"))
        train(made, range(10))
        event(*made)
        train(made, range(10, 30))
        both.append(made)
        assert not packed or is_packed(*made[1:])
    assert not differing(*map(everything, both))


def interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


def interrupt_after_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = MaskUpdate.apply
    monkeypatch.setattr(MaskUpdate, "apply", lambda *args: interrupted(apply(*args)))


def interrupt_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dstee.SparseModel, "end_step", interrupted)


@pytest.mark.parametrize("interrupt", [interrupt_after_the_kernel, interrupt_after_the_step])
def test_an_interrupted_update_keeps_momenta_and_masks_together(interrupt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks have changed, then an exception: training goes on as with dense momenta."""
    both = []
    for packed in (False, True):
        made = make(packed, dstee.RigL(order="after"), schedule=EVERY_STEP)
        train(made, range(3))
        masks = made[1].masks()
        with monkeypatch.context() as patch:
            interrupt(patch)
            with pytest.raises(KeyboardInterrupt):
                train(made, range(3, 4))
        changed = [name for name, mask in masks.items() if not torch.equal(mask, made[1].mask(name))]
        assert changed, "no mask had changed, so this test would prove nothing"
        train(made, range(4, 7))
        assert not packed or is_packed(*made[1:])
        both.append(everything(made))
    assert not differing(*both)


def test_masks_written_behind_its_back_are_refused() -> None:
    model, sparse, optimizer = made = make(True)
    train(made, range(2))
    layer = sparse.layers["0.weight"]
    layer.mask_bits[0] ^= 255
    before = [p.detach().clone() for p in model.parameters()]
    set_gradients(model, 2)
    with pytest.raises(RuntimeError, match="a mask was written in place while its momenta were packed"):
        sparse.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_refusals_name_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5)
    lacking = dataclasses.replace(
        backends.BACKENDS["reference"],
        why_not_option=lambda op, device, option: f"the kernel of {op} for {device} has no {option}",
    )
    monkeypatch.setattr(_packed_momentum.backends, "resolve", lambda *args: lacking)
    layer = sparse.layers["0.weight"]
    monkeypatch.setattr(layer, "mask_bits", layer.mask_bits.to("meta"))
    with pytest.raises(RuntimeError, match=r"cannot step 0.weight: the kernel of masked_sgd_ for meta has no packed_momenta"):
        dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9, packed_momentum=True)


def test_refuses_weights_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sparse, optimizer = made = make(True)
    monkeypatch.setattr(sparse.layers["3.weight"], "sharding", object())
    with pytest.raises(ValueError, match=r"packed_momentum=True is for whole weights, but 3.weight is cut among ranks"):
        dstee.SparseSGD(model.parameters(), sparse, packed_momentum=True)
    with monkeypatch.context() as patch:
        patch.setattr(sparse, "begin_step", lambda one: ({id(layer.param): layer for layer in sparse.layers.values()}, None))
        with pytest.raises(ValueError, match=r"but 3.weight is cut among ranks"):
            train(made, range(1))
    assert not optimizer.state


def test_less_memory() -> None:
    bytes_of = []
    for packed in (False, True):
        made = make(packed, sparsity=0.9)
        train(made, range(10))
        kept = [made[2].state[layer.param]["momentum_buffer"] for layer in made[1].layers.values()]
        tensors = [m.values if isinstance(m, PackedMomentum) else m for m in kept]
        bytes_of.append(sum(t.untyped_storage().nbytes() for t in tensors))
    inactive = sum(layer.numel - layer.nnz for layer in made[1].layers.values())
    assert bytes_of[0] - bytes_of[1] == 4 * inactive
