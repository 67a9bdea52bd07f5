"""SoftThreshold: both phases, the cut between them by hand, resuming to the bit, and what it refuses."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from support.small_models import assert_invariant, convnet, mlp
from torch import Tensor, nn

import dstee
from dstee import metrics
from dstee.methods.soft_threshold import LearnedThreshold


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 12, generator=generator), torch.randint(5, (16,), generator=generator)


def train(soft: dstee.SoftThreshold, optimizer: torch.optim.Optimizer, steps: range) -> list[bool]:
    changed = []
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(soft.model(x), y).backward()
        changed.append(soft.step(optimizer))
    return changed


def sgd(soft: dstee.SoftThreshold, decay: float = 0.3) -> torch.optim.SGD:
    return torch.optim.SGD(soft.parameter_groups(decay), lr=0.1, momentum=0.9, weight_decay=1e-3)


def make(sparsity: float | None = 0.6, init: float = -4.0, **arguments: Any) -> dstee.SoftThreshold:
    return dstee.SoftThreshold(mlp(), sparsity, init=init, **arguments)


def test_the_thresholds_learn_and_cut() -> None:
    soft = make()
    weight = soft.model[0].parametrizations.weight.original  # type: ignore[union-attr, index, operator]
    cut = weight.detach().sign() * torch.relu(weight.detach().abs() - torch.sigmoid(torch.tensor(-4.0)))
    assert torch.equal(soft.model[0].weight, cut)  # type: ignore[operator]
    assert soft.density() == sum(int(mask.sum()) for mask in soft.masks().values()) / soft.numel
    before = soft.nnz
    assert train(soft, sgd(soft), range(6)) == [False] * 6
    assert (soft.t, soft.round) == (6, 0) and soft.nnz < before
    assert all(s.item() > -4 for s in soft.thresholds().values())
    for name, mask in soft.masks().items():
        assert torch.equal(mask, soft.model.get_submodule(name.removesuffix(".weight")).weight != 0)
    table = str(soft.summary())
    assert f"{soft.nnz:,}" in table and "threshold" in table and "0.weight" in table


@pytest.mark.parametrize(("decay", "sparsity", "lowered"), [(0.0, 0.9, False), (1.0, 0.3, True)])
def test_freezing_meets_the_target_exactly(decay: float, sparsity: float, lowered: bool) -> None:
    soft = make(sparsity)
    train(soft, sgd(soft, decay), range(8))
    weights = {name: layer.weight for name, layer in soft._layers.items()}
    old = {name: w.detach().clone() for name, w in weights.items()}
    logits = {name: s.detach().clone() for name, s in soft.thresholds().items()}
    seen, masks = {n: m.weight.detach().clone() for n, m in modules(soft).items()}, soft.masks()
    sparse = soft.freeze()
    assert soft.shift is not None and (soft.shift < 0) is lowered
    total = round((1 - sparsity) * soft.numel)
    assert sparse.nnz == soft.nnz == total and soft.sparse is sparse and (soft.t, soft.round) == (8, 1)
    level = {name: torch.sigmoid(s + soft.shift) for name, s in logits.items()}
    beyond = {name: w.abs() > level[name] for name, w in old.items()}
    assert sum(int(b.sum()) for b in beyond.values()) == total, "distinct weights: the shift alone meets the target"
    for name, mask in sparse.masks().items():
        w = soft.model.get_parameter(name)
        assert w is weights[name], "the optimizer holds this object"
        assert torch.equal(mask, beyond[name])
        if lowered:
            assert torch.equal(w, (old[name].sign() * torch.relu(old[name].abs() - level[name])).where(mask, 0))
            assert not (masks[name] & ~mask).any()
        else:
            assert torch.equal(w, seen[name].where(mask, 0)) and not (mask & ~masks[name]).any()
    assert list(soft.model.state_dict()) == list(mlp().state_dict())


def modules(soft: dstee.SoftThreshold) -> dict[str, nn.Module]:
    return {name: soft.model.get_submodule(name.removesuffix(".weight")) for name in soft.masks()}


def test_without_a_target_freezing_changes_nothing_that_the_model_computes() -> None:
    soft = make(None)
    train(soft, sgd(soft), range(5))
    x, masks = batch(99)[0], soft.masks()
    before = soft.model(x).detach()
    sparse = soft.freeze(method=dstee.RigL(), schedule=dstee.UpdateSchedule(every=7))
    assert soft.shift == 0 and all(torch.equal(mask, masks[name]) for name, mask in sparse.masks().items())
    assert torch.equal(soft.model(x), before)
    assert (soft.method, soft.schedule.every) == (dstee.RigL(), 7)


def test_ties_are_cut_to_the_exact_number() -> None:
    soft = dstee.SoftThreshold(nn.Sequential(nn.Linear(8, 8, bias=False)), 0.5)
    with torch.no_grad():
        next(iter(soft._layers.values())).weight.fill_(0.25)
    assert soft.freeze().nnz == 32
    assert soft.masks()["0.weight"].flatten()[:32].all(), "the lower index first"


def test_it_steps_freezes_and_goes_on() -> None:
    soft = make(0.7, freeze_at=4, track_exploration=True)
    optimizer = sgd(soft)
    assert train(soft, optimizer, range(9)) == [False, False, False, True, False, False, False, False, False]
    assert soft.sparse is not None and (soft.t, soft.round, soft.seed) == (9, 1, 0)
    assert_invariant(soft.sparse, optimizer)
    assert metrics.exploration(soft.sparse).total == 1 and metrics.churn(soft.sparse) == 0
    soft.sparse.method = dstee.DSTEE()
    soft.sparse.schedule = dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.4))
    assert train(soft, optimizer, range(9, 11)) == [True, True] and soft.round == 3
    assert_invariant(soft.sparse, optimizer)


def test_the_mean_density_is_that_of_the_steps() -> None:
    soft = make(0.7, freeze_at=4)
    optimizer, densities = sgd(soft), []
    assert soft.mean_density() == soft.density()
    for step in range(7):
        densities.append(soft.density())
        train(soft, optimizer, range(step, step + 1))
    assert soft.mean_density() == pytest.approx(sum(densities) / 7, rel=1e-12) and densities[3] > densities[4]


def test_any_optimizer_over_the_parameters_takes_part() -> None:
    soft = make(0.5, freeze_at=3)
    optimizer = torch.optim.AdamW(soft.model.parameters(), lr=0.05)
    assert train(soft, optimizer, range(5)) == [False, False, True, False, False]
    assert soft.sparse is not None
    assert_invariant(soft.sparse, optimizer)


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_resuming_gives_the_same_bits(stop: int) -> None:
    """Before the step that freezes (5), right after it, and later."""

    def state(soft: dstee.SoftThreshold, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {"soft": soft.state_dict(), "model": soft.model.state_dict(), "optimizer": optimizer.state_dict()}

    soft = make(0.7, freeze_at=5, track_exploration=True)
    optimizer = sgd(soft)
    train(soft, optimizer, range(stop))
    file = io.BytesIO()
    torch.save(state(soft, optimizer), file)
    train(soft, optimizer, range(stop, 10))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = make(0.1, init=-2.0, track_exploration=True)
    resumed = sgd(again)
    again.load_state_dict(saved["soft"])
    again.model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert (again.t, again.round) == (stop, int(stop >= 5))
    train(again, resumed, range(stop, 10))
    assert_same(state(again, resumed), state(soft, optimizer))


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def test_a_frozen_one_takes_another_frozen_state() -> None:
    ours, other = make(0.7, freeze_at=2), make(0.4, init=-1.0, freeze_at=3)
    train(ours, sgd(ours), range(2))
    train(other, sgd(other), range(3))
    ours.load_state_dict(other.state_dict())
    ours.model.load_state_dict(other.model.state_dict())
    assert_same(ours.state_dict(), other.state_dict())
    assert_same(ours.masks(), other.masks())


def test_a_copy_goes_on_by_itself() -> None:
    soft = make(0.7)
    train(soft, sgd(soft), range(2))
    twin = copy.deepcopy(soft)
    twin.freeze()
    assert soft.sparse is None and twin.nnz != soft.nnz
    train(twin, torch.optim.SGD(twin.model.parameters(), lr=0.1), range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_and_low_precision(dtype: torch.dtype) -> None:
    model = convnet().to(dtype).to(memory_format=torch.channels_last)
    soft = dstee.SoftThreshold(model, 0.8, init=-3.0, exclude="5.weight")
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    model(x).float().square().mean().backward()
    optimizer = torch.optim.SGD(soft.parameter_groups(), lr=0.1)
    assert not soft.step(optimizer) and soft.nnz == sum(int(mask.sum()) for mask in soft.masks().values())
    assert list(soft.masks()) == ["0.weight", "3.weight"]
    assert soft.freeze().nnz == round(0.2 * soft.numel)
    assert_invariant(soft.sparse)  # type: ignore[arg-type]
    model(x)


def test_packed_projections() -> None:
    attention = nn.MultiheadAttention(8, 2)
    soft = dstee.SoftThreshold(attention, 0.5)
    x = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    attention(x, x, x)[0].sum().backward()
    assert all(s.grad is not None for s in soft.thresholds().values()) and len(soft.masks()) == 2
    assert soft.freeze().nnz == soft.numel // 2


def test_a_skipped_step_does_not_count() -> None:
    soft = make(0.5, freeze_at=1)
    optimizer, scaler = sgd(soft), torch.amp.GradScaler("cpu", init_scale=4.0)
    x, y = batch(0)
    scaler.scale(nn.functional.cross_entropy(soft.model(x), y) * float("inf")).backward()
    assert not soft.step(optimizer, scaler=scaler) and soft.t == 0
    scaler.update()
    optimizer.zero_grad()
    scaler.scale(nn.functional.cross_entropy(soft.model(x), y)).backward()
    assert soft.step(optimizer, scaler=scaler) and soft.t == 1


def test_what_cannot_be_thresholded() -> None:
    with pytest.raises(ValueError, match="nothing to make sparse"):
        dstee.SoftThreshold(nn.Sequential(nn.LayerNorm(4)))
    model = mlp()
    sparse = dstee.sparsify(model, 0.5)
    with pytest.raises(ValueError, match=r"0\.weight is sparse already"):
        dstee.SoftThreshold(model)
    sparse.remove(*sparse.layers)
    dstee.SoftThreshold(model)
    with pytest.raises(ValueError, match="has learned thresholds already"):
        dstee.SoftThreshold(model)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"0\.weight is tied"):
        dstee.SoftThreshold(tied)
    with pytest.raises(TypeError, match=r"dtype torch\.float64"):
        dstee.SoftThreshold(mlp().double())
    for arguments, text in (
        ({"sparsity": 1.0}, "sparsity"),
        ({"init": float("nan")}, "init must be a finite number"),
        ({"freeze_at": 0}, "freeze_at must be a number of steps"),
    ):
        model = mlp()
        with pytest.raises(ValueError, match=text):
            dstee.SoftThreshold(model, **arguments)
        assert not any(isinstance(module, LearnedThreshold) for module in model.modules()), "nothing has changed"
    with pytest.raises(TypeError, match="method must be a Method"):
        make(method="rigl")
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        make(seed="x")
    with pytest.raises(TypeError, match="sparsity must be a number or None"):
        make({"0.weight": 0.5})  # type: ignore[arg-type]


def test_what_cannot_be_done_in_a_phase() -> None:
    soft = make(0.5)
    model, plain = soft.model, [p for n, p in soft.model.named_parameters() if not n.endswith("logit")]
    model(batch(0)[0]).sum().backward()
    with pytest.raises(ValueError, match=r"does not hold the weight or the threshold of 0\.weight, 3\.weight: make it after"):
        soft.step(torch.optim.SGD(plain, lr=0.1))
    soft_state = soft.state_dict()
    soft.freeze()
    for act in (soft.freeze, soft.parameter_groups):
        with pytest.raises(RuntimeError, match=r"frozen already: the masks are in \.sparse"):
            act()  # type: ignore[operator]
    with pytest.raises(ValueError, match="the state is of the soft phase and this one is frozen"):
        soft.load_state_dict(soft_state)


def test_a_bad_state_changes_nothing() -> None:
    other = make(0.5, freeze_at=1)
    train(other, sgd(other), range(2))
    good = other.state_dict()
    soft = make(0.5)
    names, before = list(soft.model.state_dict()), soft.state_dict()
    bad: list[tuple[Any, str]] = [
        ([], "must be a dict made by SoftThreshold.state_dict"),
        ({**good, "format_version": 2}, "must be a dict made by SoftThreshold.state_dict"),
        ({**good, "more": 1}, "more is missing or unknown"),
        ({**good, "t": -1}, "t must be a step number"),
        ({**good, "sparsity": 1}, "sparsity must be in"),
        ({**good, "freeze_at": 0}, "freeze_at must be a step number"),
        ({**good, "shift": None}, "shift must be a number in the frozen phase"),
        ({**good, "used": [1]}, "used must be two numbers"),
        ({**good, "layers": {}}, "it is of layers"),
        ({**good, "sparse": {"layers": {}}}, "the masks are not those"),
        ({**good, "sparse": {**good["sparse"], "t": 5}}, "digest does not match"),
    ]
    for state, text in bad:
        with pytest.raises(ValueError, match=text):
            soft.load_state_dict(state)
        assert list(soft.model.state_dict()) == names and soft.state_dict() == before
    soft.load_state_dict(good)
    assert soft.nnz == other.nnz
