"""Masks and states of other libraries' checkpoints into a SparseModel and back: equal bits, and training that goes on."""

from __future__ import annotations

import importlib.util
from collections import defaultdict

import pytest
import torch
from support.compat_originals import original_rigl
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier

import dstee
from dstee import compat
from dstee.compat import checkpoints, libraries
from dstee.compat.torch_ao import DSTEESparsifier

NAMES = ("0.weight", "2.weight", "4.weight")
CONFIG = [{"tensor_fqn": name} for name in NAMES]
SCHEDULE = dstee.UpdateSchedule(every=3, stop=90, drop=dstee.CosineDrop(0.3))


def random_masks(seed: int = 0, density: float = 0.4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(mlp().get_parameter(name).shape, generator=generator) < density for name in NAMES}


def assert_masks(sparse: dstee.SparseModel, masks: dict[str, Tensor]) -> None:
    assert sparse.layers.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(sparse.mask(name), mask != 0), name
        assert not sparse.layers[name].param.detach()[mask == 0].any() and sparse.layers[name].nnz == int(mask.sum())


def steps(sparse: dstee.SparseModel, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for t, batch in enumerate(batches(last)):
        if t >= first:
            optimizer.zero_grad()
            loss(sparse.model, batch).backward()
            sparse.step(optimizer)


# --- dicts of masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.float16, torch.int64])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_mask_dicts_in_and_out(dtype, prefix, tmp_path):
    masks = random_masks()
    torch.save({prefix + name: mask.to(dtype) for name, mask in masks.items()}, tmp_path / "masks.pt")
    sparse = checkpoints.load(mlp(), checkpoints.read(tmp_path / "masks.pt"), schedule=SCHEDULE, seed=7)
    assert_masks(sparse, masks)
    assert (sparse.t, sparse.round, sparse.seed, sparse.method) == (0, 0, 7, dstee.DSTEE())
    back = checkpoints.to_masks(sparse, dtype)
    assert all(torch.equal(back[n], masks[n].to(dtype)) and back[n].dtype is dtype for n in NAMES)
    steps(sparse, torch.optim.SGD(sparse.model.parameters(), lr=0.1), 0, 7)
    assert sparse.round == 2


def test_masks_into_an_existing_sparse_model():
    model = mlp()
    sparse = dstee.sparsify(model, 0.7, schedule=SCHEDULE)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    steps(sparse, optimizer, 0, 4)
    masks = random_masks()
    checkpoints.load_masks(sparse, masks)
    assert_masks(sparse, masks)
    assert (sparse.t, sparse.round) == (4, 1) and torch.equal(sparse.counter("0.weight"), masks["0.weight"].int())
    steps(sparse, optimizer, 4, 5)
    for name, layer in sparse.layers.items():
        assert not optimizer.state[layer.param]["momentum_buffer"][~masks[name]].any(), name
    steps(sparse, optimizer, 5, 12)
    assert sparse.round == 4
    with pytest.raises(ValueError, match=r"0\.weight: sparse here"):
        checkpoints.load_masks(sparse, {n: m for n, m in masks.items() if n != "0.weight"})
    with pytest.raises(ValueError, match=r"0\.bias: a mask in the checkpoint, dense here"):
        checkpoints.load_masks(sparse, {**masks, "0.bias": torch.ones(32)})


def test_unknown_checkpoints_are_refused():
    model = mlp()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    for state, text in [
        ({}, "unknown checkpoint"),
        ({"0.weight": 3}, "unknown checkpoint"),
        ([torch.ones(2)], "unknown checkpoint"),
        ({"9.weight": torch.ones(2)}, r"'9\.weight': no parameter"),
        ({"0.weight": torch.ones(2)}, "the mask has shape"),
        ({"0.weight": torch.full((32, 61), 2.0)}, "other values than 0 and 1"),
        ({"0.parametrizations.weight.original": torch.ones(2)}, "parametrizations without masks"),
        ({"backward_masks": [None]}, r"the checkpoint has 1 layers, the model 3: 0\.weight, 2\.weight, 4\.weight"),
        ({"backward_masks": [None, torch.ones(24, 32), None]}, "no schedule that can go on"),
        ({"state": {"0.weight": {}}, "groups": []}, r"0\.weight: the mask is a NoneType"),
    ]:
        with pytest.raises(ValueError, match=text):
            checkpoints.load(model, state)
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoints.weights_from(random_masks())
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


OTHER = """
from dstee.compat.libraries import CheckpointFormat

class Format(CheckpointFormat):
    kind = "other"

    def recognizes(self, state):
        return "other" in state

    def masks(self, state, model):
        return state["other"]

ENTRY = Format()
"""


def test_a_new_folder_is_a_new_library(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").touch()
    (tmp_path / "other" / "checkpoint.py").write_text(OTHER)
    assert [found.kind for found in libraries.checkpoint_formats()] == ["rigl-torch", "parametrized", "torch.ao"]
    assert len(libraries.patches()) == 2
    masks = random_masks()
    with pytest.raises(ValueError, match="unknown checkpoint"):
        checkpoints.kind({"other": masks})
    monkeypatch.setattr(compat, "__path__", [*compat.__path__, str(tmp_path)])
    libraries.checkpoint_formats.cache_clear()
    try:
        assert checkpoints.kind({"other": masks}) == "other"
        assert_masks(checkpoints.load(mlp(), {"other": masks}), masks)
    finally:
        libraries.checkpoint_formats.cache_clear()


# --- torch.ao ------------------------------------------------------------------------------------------------------------


def test_torch_sparsifier_in_and_out(tmp_path):
    model, sparsifier = mlp(), WeightNormSparsifier(0.8, (1, 1), 1)
    sparsifier.prepare(model, CONFIG)
    sparsifier.step()
    assert type(sparsifier.state_dict()["state"]) is defaultdict  # which weights_only alone would refuse
    torch.save(sparsifier.state_dict(), tmp_path / "state.pt")
    masks = {name: model[int(name[0])].parametrizations.weight[0].mask.clone() for name in NAMES}
    sparse = checkpoints.load(mlp(), checkpoints.read(tmp_path / "state.pt"), method=dstee.SET(), schedule=SCHEDULE)
    assert_masks(sparse, masks)
    other_model, other = mlp(), WeightNormSparsifier(0.8, (1, 1), 1)
    other.prepare(other_model, CONFIG)
    other.load_state_dict(checkpoints.to_torch_ao(sparse))
    assert all(torch.equal(other_model[int(n[0])].parametrizations.weight[0].mask, masks[n]) for n in NAMES)
    assert other.groups[0]["sparsity_level"] == 1 - int(masks["0.weight"].sum()) / 1952


@pytest.mark.parametrize("method", [dstee.DSTEE(c=1e-2), dstee.SET(), dstee.RigL(order="after")])
def test_training_continues_in_the_other_library(method, tmp_path):
    """SparseModel for 10 steps, DSTEESparsifier for 10, SparseModel again: the masks of 30 steps of SparseModel."""
    levels = dict.fromkeys(NAMES, 0.75)
    whole = dstee.sparsify(mlp(), levels, method=method, schedule=SCHEDULE, seed=3)
    steps(whole, torch.optim.SGD(whole.model.parameters(), lr=0.1), 0, 30)

    first = dstee.sparsify(mlp(), levels, method=method, schedule=SCHEDULE, seed=3)
    steps(first, torch.optim.SGD(first.model.parameters(), lr=0.1), 0, 10)
    torch.save(checkpoints.to_torch_ao(first), tmp_path / "a")
    torch.save(first.model.state_dict(), tmp_path / "w")

    model = mlp(seed=8)
    model.load_state_dict(torch.load(tmp_path / "w", weights_only=True))
    sparsifier = DSTEESparsifier(0.1, seed=1)
    sparsifier.prepare(
        model, [{**entry, "mask": torch.ones_like(model.get_parameter(entry["tensor_fqn"]))} for entry in CONFIG]
    )
    sparsifier.load_state_dict(torch.load(tmp_path / "a", weights_only=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for t, batch in enumerate(batches(20)):
        if t >= 10:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            sparsifier.step()
    torch.save(sparsifier.state_dict(), tmp_path / "b")
    sparsifier.squash_mask()

    last = checkpoints.load(model, checkpoints.read(tmp_path / "b"))
    assert (last.t, last.round, last.method, last.schedule, last.seed) == (20, 6, method, SCHEDULE, 3)
    steps(last, torch.optim.SGD(model.parameters(), lr=0.1), 20, 30)
    for name in NAMES:
        assert torch.equal(last.mask(name), whole.mask(name))
        assert torch.equal(model.get_parameter(name), whole.model.get_parameter(name))
        if method.needs_counter:
            assert torch.equal(last.counter(name), whole.counter(name))


def test_damaged_sparsifier_states():
    sparse = dstee.sparsify(mlp(), 0.5, schedule=SCHEDULE)
    for change, text in [
        (lambda s: s["state"]["0.weight"].update(counts=torch.ones(3, dtype=torch.int16)), "must be int16"),
        (lambda s: s["state"]["0.weight"]["counts"].fill_(5), r"lie in 5\.\.5"),
        (lambda s: s["state"]["0.weight"].update(round=2), "different numbers of updates"),
        (lambda s: s.update(t=-4), "t must be an int >= 0"),
        (lambda s: s["method"].update(method="magic"), "unknown method"),
    ]:
        state = checkpoints.to_torch_ao(sparse)
        change(state)
        with pytest.raises(ValueError, match=text):
            checkpoints.load(mlp(), state)


# --- sparsimony and rigl-torch -------------------------------------------------------------------------------------------


def test_parametrized_model_state_by_hand():
    state = {
        "a.b.parametrizations.weight.original": torch.tensor([[1.0, 2.0]]),
        "a.b.parametrizations.weight.0.mask": torch.tensor([[0.0, 1.0]]),
        "a.b.parametrizations.weight.0.dense_grad": torch.zeros(1, 2),
        "a.b.bias": torch.tensor([5.0]),
    }
    model = nn.Sequential()
    model.add_module("a", nn.Sequential())
    model.a.add_module("b", nn.Linear(2, 1))
    sparse = checkpoints.load(model, state)
    assert model.a.b.weight.tolist() == [[0.0, 2.0]] and model.a.b.bias.tolist() == [5.0]
    assert sparse.mask("a.b.weight").tolist() == [[False, True]]
    back = checkpoints.to_parametrized(sparse, dense_grad=True)
    assert back.keys() == state.keys() and back["a.b.parametrizations.weight.original"].tolist() == [[0.0, 2.0]]
    with pytest.raises(ValueError, match=r"bias: missing"):
        checkpoints.load(model, {key: value for key, value in state.items() if "bias" not in key})


@pytest.mark.skipif(importlib.util.find_spec("sparsimony") is None, reason="sparsimony is not installed")
def test_sparsimony_in_and_out(tmp_path):
    from test_compat_sparsimony import prepared, train

    model, optimizer, sparsifier = prepared()
    train(model, optimizer, sparsifier, 12)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    sparse = checkpoints.load(mlp(5), checkpoints.read(tmp_path / "model.pt"), schedule=SCHEDULE)
    x = next(batches(1))[0]
    for i, name in zip((0, 2, 4), NAMES, strict=True):
        assert torch.equal(sparse.mask(name), model[i].parametrizations.weight[0].mask.bool())
        assert torch.equal(sparse.model[i].weight, model[i].weight)
    assert torch.equal(sparse.model(x), model(x))
    other = prepared(seed=9)[0]
    other.load_state_dict(checkpoints.to_parametrized(sparse, dense_grad=True))
    assert torch.equal(other(x), model(x))


def test_rigl_layers_in_the_original_order():
    """In order: everything with a weight, norms too, but BatchNorm2d; nothing inside a module that has one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.LayerNorm(2))
    found = [(name, linear) for name, _, linear in checkpoints.rigl_layers(model)]
    assert found == [("0.weight", False), ("2.1.weight", True), ("3.weight", False)]
    assert [name for name, _, _ in checkpoints.rigl_layers(nn.Linear(2, 2))] == ["weight"]


@pytest.fixture
def rigl_torch():
    return original_rigl().RigLScheduler


def test_rigl_torch_in_and_out(rigl_torch, tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = rigl_torch(model, optimizer, dense_allocation=0.3, T_end=90, delta=3, alpha=0.3, ignore_linear_layers=False)
    for batch in batches(10):
        optimizer.zero_grad()
        loss(model, batch).backward()
        if scheduler():
            optimizer.step()
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    mine = mlp(1)
    mine.load_state_dict(model.state_dict())
    sparse = checkpoints.load(mine, checkpoints.read(tmp_path / "state.pt"))
    assert (sparse.t, sparse.round, sparse.method, sparse.schedule) == (10, 3, dstee.RigL(), SCHEDULE)
    assert_masks(sparse, dict(zip(NAMES[1:], scheduler.backward_masks[1:], strict=True)))  # its first layer stays dense
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), model.parameters(), strict=True))
    steps(sparse, torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9), 10, 20)
    assert (sparse.t, sparse.round) == (20, 6)

    other = mlp(2)
    other.load_state_dict(mine.state_dict())
    back = checkpoints.to_rigl_torch(sparse)
    again = rigl_torch(other, torch.optim.SGD(other.parameters(), lr=0.1), state_dict=back)
    assert (again.step, again.rigl_steps, again.delta_T, again.T_end) == (20, 6, 3, 90)
    assert (
        back.keys() == scheduler.state_dict().keys()
        and back["hyperparams"].keys() == scheduler.state_dict()["hyperparams"].keys()
    )
    for name, mask in zip(NAMES[1:], again.backward_masks[1:], strict=True):
        assert torch.equal(mask, sparse.mask(name))
    loss(other, next(batches(1))).backward()
    again.optimizer.step()
    assert again.backward_masks[0] is None and not other[2].weight.detach()[~sparse.mask("2.weight")].any()
    with pytest.raises(ValueError, match="floor 0 and a stop only"):
        checkpoints.to_rigl_torch(dstee.sparsify(mlp(), 0.5))
