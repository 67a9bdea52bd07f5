"""Format 2, SparseModel.state_dict(): what it holds, torch.distributed.checkpoint, and layers that are not in both."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.small_models import EVERY_STEP, convnet, differing, mlp, set_gradients, snapshot
from support.sparse_states import digest, through_a_file, trained, with_head

import dstee
from dstee.encoding import flip_counts

METHODS = [dstee.DSTEE(c=0.01), dstee.RigL(), dstee.SNFS(), dstee.DSR()]


# --- what it holds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_say_what_the_model_does(steps: int, channels_last: bool) -> None:
    model = convnet()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    _, sparse, _ = trained(model, steps=steps)
    state = sparse.state_dict()
    head = json.loads(state["head"])
    assert list(state) == ["head", "layers"] and list(state["layers"]) == list(sparse.layers)
    assert (head["t"], head["round"], head["seed"]) == (steps, steps, sparse.seed)
    for name, tensors in state["layers"].items():
        mask, grown = sparse.mask(name), sparse.last_grown(name)
        assert list(tensors) == ["mask", "counts"]
        assert all(t.shape == mask.shape and t.is_contiguous() for t in tensors.values())
        assert torch.equal(tensors["mask"] & 1 != 0, mask) and torch.equal((tensors["mask"] == 1), grown)
        assert int((tensors["mask"] > 1).sum()) == int(mask.sum()) and int(tensors["mask"].max()) == 3
        assert torch.equal(flip_counts(tensors["counts"].int(), mask, steps), sparse.counter(name))
        assert head["layers"][name]["shape"] == list(mask.shape) and head["layers"][name]["nnz"] == int(mask.sum())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_keys_are_the_same_before_and_after_training(method: dstee.methods.Method) -> None:
    def keys(node):
        return {key: keys(value) if isinstance(value, dict) else type(value) for key, value in node.items()}

    _, fresh, _ = trained(steps=0, method=method)
    _, sparse, _ = trained(steps=3, method=method)
    assert keys(fresh.state_dict()) == keys(sparse.state_dict())


def test_a_saved_state_is_a_copy() -> None:
    model, sparse, optimizer = trained(method=dstee.SNFS())
    state = sparse.state_dict()
    before = copy.deepcopy(state)
    set_gradients(model, 9)
    sparse.step(optimizer)
    dstee.sparsify(mlp(), 0.6).load_state_dict(state, strict=False)
    assert state["head"] == before["head"]
    for name, tensors in state["layers"].items():
        assert torch.equal(tensors["mask"], before["layers"][name]["mask"])
        assert torch.equal(tensors["kept"]["momentum"], before["layers"][name]["kept"]["momentum"])


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_both_formats_restore_the_same(method: dstee.methods.Method, steps: int) -> None:
    _, sparse, _ = trained(convnet(), steps=steps, method=method)
    for full in (False, True):
        state = through_a_file(sparse.state_dict(full=full))
        other = dstee.sparsify(convnet(3), 0.6, seed=9, method=method)
        other.load_state_dict(state)
        assert digest(other) == digest(sparse)
        assert other.state_dict()["head"] == sparse.state_dict()["head"]


def test_another_memory_order_loads() -> None:
    model, sparse, optimizer = trained(convnet())
    model.to(memory_format=torch.channels_last)
    set_gradients(model, 3)
    sparse.step(optimizer)
    other = dstee.sparsify(convnet(), 0.6, seed=1)
    other.load_state_dict(sparse.state_dict())
    assert digest(other) == digest(sparse) and all(torch.equal(other.mask(n), sparse.mask(n)) for n in sparse.layers)
    sparse.load_state_dict(other.state_dict())
    assert digest(other) == digest(sparse)


def test_names_with_wrapper_parts_load() -> None:
    _, sparse, _ = trained()
    state = sparse.state_dict()
    state["layers"] = {f"_orig_mod.{name}": tensors for name, tensors in state["layers"].items()}
    with_head(state, lambda head: head.update(layers={f"_orig_mod.{n}": layer for n, layer in head["layers"].items()}))
    other = dstee.sparsify(mlp(), 0.6, seed=1)
    other.load_state_dict(state)
    assert digest(other) == digest(sparse)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -0.0, 1e-310])
def test_numbers_of_a_method_may_be_anything(value: float) -> None:
    method = next(m for m in METHODS if m.initial_numbers())
    _, sparse, _ = trained(method=method)
    for number in sparse._numbers.values():
        number.fill_(value)
    other = dstee.sparsify(mlp(), 0.6, method=method)
    other.load_state_dict(sparse.state_dict(), strict=False)
    assert [repr(float(x)) for x in other._numbers.values()] == [repr(value)] * len(method.initial_numbers())


# --- torch.distributed.checkpoint ----------------------------------------------------------------------------------------


alone = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@alone
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_distributed_checkpoints_load_into_a_fresh_model(method: dstee.methods.Method, steps: int, tmp_path: Path) -> None:
    model, sparse, optimizer = trained(steps=steps, method=method)
    dcp.save({"model": model.state_dict(), "sparse": sparse}, checkpoint_id=tmp_path, no_dist=True)
    fresh = mlp(5)
    other = dstee.sparsify(fresh, 0.6, seed=5, method=method, schedule=EVERY_STEP)
    weights = fresh.state_dict()
    dcp.load({"model": weights, "sparse": other}, checkpoint_id=tmp_path, no_dist=True)
    assert digest(other) == digest(sparse)
    stepper = dstee.SparseSGD(fresh.parameters(), other, lr=0.1, momentum=0.9)
    stepper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(steps, steps + 2):
        for m, s, o in ((model, sparse, optimizer), (fresh, other, stepper)):
            set_gradients(m, t)
            s.step(o)
        assert not differing(snapshot(sparse, optimizer), snapshot(other, stepper))


@alone
def test_a_fresh_model_that_lacks_what_the_checkpoint_has_is_told(tmp_path: Path) -> None:
    _, sparse, _ = trained(method=dstee.SNFS(), track_exploration=True)
    dcp.save({"sparse": sparse}, checkpoint_id=tmp_path, no_dist=True)
    other = dstee.sparsify(mlp(), 0.6, method=dstee.SET())
    before = digest(other)
    with pytest.raises(ValueError) as caught:
        dcp.load({"sparse": other}, checkpoint_id=tmp_path, no_dist=True)
    assert "0.weight: counts is missing, but has a fingerprint" in str(caught.value)
    assert "make the model sparse with counters (track_exploration=True)" in str(caught.value)
    assert "3.weight: kept.momentum is missing, but has a fingerprint" in str(caught.value)
    assert digest(other) == before


@alone
def test_a_part_of_a_checkpoint_loads_where_that_is_meant(tmp_path: Path) -> None:
    _, sparse, _ = trained()
    dcp.save({"sparse": sparse}, checkpoint_id=tmp_path, no_dist=True)
    other = dstee.sparsify(mlp(2), {"3.weight": 0.5}, exclude="0", track_exploration=True)
    state = {"sparse": other.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(ValueError, match=r"'0.weight': in the state, no sparse layer"):
        other.load_state_dict(state["sparse"])
    other.load_state_dict(state["sparse"], strict=False)
    assert torch.equal(other.mask("3.weight"), sparse.mask("3.weight")) and other.round == 3


# --- strict or not -------------------------------------------------------------------------------------------------------


def test_what_a_state_lacks_keeps_its_mask_if_told_so() -> None:
    _, sparse, _ = trained()
    target = dstee.sparsify(mlp(3), 0.6, seed=3)
    state, masks = sparse.state_dict(), target.masks()
    with_head(state, lambda head: head["layers"].pop("0.weight"))
    with pytest.raises(
        ValueError, match=r"0.weight: in the model, not in the state\n.*'0.weight': tensors that the head does not"
    ):
        target.load_state_dict(state)
    target.load_state_dict(state, strict=False)
    assert torch.equal(target.mask("0.weight"), masks["0.weight"])
    assert torch.equal(target.mask("3.weight"), sparse.mask("3.weight"))


def test_budgets_must_fit_unless_told_otherwise() -> None:
    _, sparse, _ = trained()
    state = dstee.sparsify(mlp(), 0.8).state_dict()
    with pytest.raises(ValueError, match=r"0.weight: \d+ active weights, the model has \d+ \(strict=False"):
        sparse.load_state_dict(state)
    sparse.load_state_dict(state, strict=False)
    assert sparse.nnz == round(0.2 * 153)


def test_all_differences_come_in_one_error() -> None:
    _, sparse, _ = trained()
    _, other, _ = trained(convnet(), method=dstee.RigL(order="after"))
    state = with_head(other.state_dict(), lambda head: head.update(t=1, method={"method": "rigl", "c": 1.0}))
    state["layers"]["extra"] = {}
    with pytest.raises(ValueError) as caught:
        sparse.load_state_dict(state)
    for part in (
        "cannot load the sparse state, nothing was changed",
        "0.weight: shape [8, 3, 3, 3], the model has [9, 12]",
        "3.weight: shape [4, 8, 1, 1], the model has [5, 9]",
        "'5.weight': in the state, no sparse layer of the model",
        "'extra': tensors that the head does not tell of",
        "method: the method rigl has no setting",
        "round is 3, more than the 1 steps taken",
    ):
        assert part in str(caught.value)
