"""DSTEESparsifier: its state goes to a file and back, and what is wrong is said before anything changes."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from test_compat_torch_ao import CONFIG, NAMES, OFTEN, masks_of, originals, sgd, train, weight_norm
from torch import nn

import dstee
from dstee.compat.torch_ao import DSTEESparsifier


@pytest.mark.parametrize("name", ["dst-ee", "set", "magnitude"])
def test_resumes_bit_for_bit_from_a_file(name):
    def fresh():
        model = mlp()
        optimizer = sgd(model)
        sparsifier = DSTEESparsifier(0.8, name, OFTEN, optimizer=optimizer)
        sparsifier.prepare(model, CONFIG)
        return model, optimizer, sparsifier

    model, optimizer, sparsifier = fresh()
    train(model, optimizer, sparsifier, 8)
    file = io.BytesIO()
    torch.save([x.state_dict() for x in (model, optimizer, sparsifier)], file)
    file.seek(0)
    train(model, optimizer, sparsifier, 10, start=8)
    other = fresh()
    for part, state in zip(other, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*other, 10, start=8)
    for n in NAMES:
        assert torch.equal(masks_of(model)[n], masks_of(other[0])[n])
        assert torch.equal(originals(model)[n], originals(other[0])[n])


def test_takes_the_masks_of_torchs_own_sparsifier():
    model, theirs = mlp(), weight_norm(1)
    theirs.prepare(model, CONFIG)
    theirs.step()
    expected = {n: m.clone() for n, m in masks_of(model).items()}
    state = theirs.state_dict()
    mine = mlp()
    sparsifier = DSTEESparsifier(0.5)
    sparsifier.prepare(mine, CONFIG)
    sparsifier.load_state_dict(state)
    assert all(torch.equal(masks_of(mine)[n], expected[n]) for n in NAMES) and "mask" in state["state"]["0.weight"]
    assert sparsifier.groups[0]["sparsity_level"] == 0.9


def test_wrong_states_name_everything_and_change_nothing():
    model = mlp()
    sparsifier = DSTEESparsifier(0.5)
    with pytest.raises(RuntimeError, match="prepare"):
        sparsifier.load_state_dict({"state": {}, "groups": []})
    sparsifier.prepare(model, CONFIG)
    good, before = sparsifier.state_dict(), copy.deepcopy(masks_of(model))
    bad = copy.deepcopy(good)
    bad["state"]["0.weight"]["mask"] = torch.ones(3)
    bad["state"]["2.weight"]["mask"][0, 0] = 0.5
    bad["state"]["other"] = bad["state"].pop("4.weight")
    bad["t"] = -1
    with pytest.raises(RuntimeError) as error:
        sparsifier.load_state_dict(bad)
    assert all(text in str(error.value) for text in ("0.weight: ", "2.weight: ", "4.weight: ", "other: ", "t must be"))
    for key, value in (("counts", None), ("counts", torch.full((1952,), 7, dtype=torch.int16)), ("round", -1)):
        bad = copy.deepcopy(good)
        bad["state"]["0.weight"][key] = value
        with pytest.raises(RuntimeError, match=key):
            sparsifier.load_state_dict(bad)
    with pytest.raises(RuntimeError, match="state_dict"):
        sparsifier.load_state_dict({"no": 1})
    assert all(torch.equal(before[n], m) for n, m in masks_of(model).items())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sparsity_level": 1.5}, ValueError, r"in \[0, 1\], got 1.5"),
        ({"sparsity_level": "0.5"}, TypeError, "must be a number"),
        ({"method": "magic"}, ValueError, "unknown method 'magic'"),
        ({"method": 3}, TypeError, "method must be"),
        ({"method": dstee.RigL()}, ValueError, "if not sparsifier.step"),
        ({"schedule": 100}, TypeError, "UpdateSchedule"),
        ({"init": "zeros"}, ValueError, "init must be"),
        ({"seed": 0.5}, TypeError, "seed must be an int"),
        ({"optimizer": object()}, TypeError, r"torch\.optim\.Optimizer"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        DSTEESparsifier(**arguments)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ([{"tensor_fqn": "9.weight"}], ValueError, "no such parameter"),
        ([{"tensor_fqn": "0.weight", "sparse_block_shape": (1, 4)}], ValueError, "sparse_block_shape is not supported"),
        ([{"tensor_fqn": "0.weight", "sparsity": 0.4}], ValueError, "sparsity_level"),
        ([{"tensor_fqn": "0.weight", "sparsity_level": -1}], ValueError, r"0\.weight must be in"),
        ([{"tensor_fqn": "0.weight", "mask": torch.ones(2)}], ValueError, "mask of 0.weight"),
        ([{"tensor_fqn": "0.weight", "mask": torch.full((32, 61), 0.5)}], ValueError, "other values"),
        ([{}], AssertionError, "tensor_fqn is a required argument"),
        (["0.weight"], AssertionError, "config elements should be dicts"),
    ],
)
def test_wrong_configs_leave_the_model_alone(config, error, text):
    model = mlp()
    with pytest.raises(error, match=text):
        DSTEESparsifier().prepare(model, config)
    assert type(model[0]) is nn.Linear


def test_calls_in_the_wrong_order():
    model, sparsifier = mlp(), DSTEESparsifier(0.5, schedule=dstee.UpdateSchedule(every=1))
    with pytest.raises(RuntimeError, match="prepare"):
        sparsifier.step()
    sparsifier.prepare(model, CONFIG)
    with pytest.raises(RuntimeError, match="prepared already"):
        sparsifier.prepare(model, CONFIG)
    with pytest.raises(RuntimeError, match=r"no gradient came by these weights.*0\.weight, 2\.weight, 4\.weight"):
        sparsifier.step()
    assert sparsifier.t == 0
    sparsifier.enable_mask_update = False
    assert sparsifier.step() is False and sparsifier.t == 0
    with pytest.raises(ValueError, match="no layer of this sparsifier"):
        sparsifier.update_mask(nn.Linear(1, 1), "weight")
    sparsifier.enable_mask_update = True
    loss(model, next(batches(1))).backward()
    sparsifier.groups[1]["sparsity_level"] = 1.01
    with pytest.raises(ValueError, match=r"2\.weight must be in"):
        sparsifier.step()
