"""``RigLScheduler``: side by side with the original where it is installed, and by hand from its description."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.compat_originals import accuracy, batches, convnet, original_rigl, single_thread
from torch import Tensor, nn

from dstee.compat.rigl_torch import RigLScheduler

__all__ = ["single_thread"]  # a fixture that every test here uses

SETTINGS: dict[str, Any] = {"dense_allocation": 0.2, "T_end": 58, "delta": 4, "alpha": 0.3, "ignore_linear_layers": False}


def train(cls: Any, steps: int = 64, model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> Any:
    """A training in the style of the original's README. Returns the masks after each update, the model, the scheduler."""
    model = convnet() if model is None else model
    make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True))
    optimizer = make(model.parameters())
    torch.manual_seed(7)
    pruner = cls(model, optimizer, **(SETTINGS | options))
    trajectory = []
    for X, y in batches(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        if pruner():
            optimizer.step()
        else:
            trajectory.append([mask.clone() for mask in pruner.backward_masks if mask is not None])
    return trajectory, model, pruner


def agreeing(a: list[list[Tensor]], b: list[list[Tensor]]) -> int:
    """Updates until the first difference."""
    same = [all(torch.equal(x, y) for x, y in zip(one, other, strict=True)) for one, other in zip(a, b, strict=True)]
    return same.index(False) if False in same else len(same)


# --- beside the original -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("exact", ["fixed", "legacy"])
def test_same_masks_and_weights_as_the_original(exact: str, window: int) -> None:
    theirs, their_model, original = train(original_rigl().RigLScheduler, grad_accumulation_n=window)
    ours, our_model, pruner = train(RigLScheduler, grad_accumulation_n=window, exact=exact)
    assert len(theirs) == 14 and agreeing(theirs, ours) == 14
    for p, q in zip(their_model.parameters(), our_model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert (pruner.step, pruner.rigl_steps, pruner.S, pruner.N) == (original.step, original.rigl_steps, original.S, original.N)
    assert str(pruner) == str(original)


def test_checkpoints_go_both_ways() -> None:
    original = original_rigl().RigLScheduler
    _, their_model, theirs = train(original, steps=20)
    _, our_model, ours = train(RigLScheduler, steps=20)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for cls, model, state in ((RigLScheduler, our_model, theirs.state_dict()), (original, their_model, ours.state_dict())):
        for p in model.parameters():
            p._has_rigl_backward_hook = False  # type: ignore[attr-defined]  # a fresh process would have a fresh model
        loaded = cls(model, torch.optim.SGD(model.parameters(), lr=0.1), state_dict=state)
        assert (loaded.step, loaded.rigl_steps, loaded.T_end, loaded.delta_T) == (20, 5, 58, 4)
        for mask, other in zip(loaded.backward_masks, ours.backward_masks, strict=True):
            assert (mask is None and other is None) or torch.equal(mask, other)


def test_quirk_norms_are_pruned() -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 10))

    theirs, _, original = train(original_rigl().RigLScheduler, model=model())
    legacy, _, _ = train(RigLScheduler, model=model(), exact="legacy")
    _, _, fixed = train(RigLScheduler, model=model())
    assert original.N == [1280, 20, 200] and original.S[1] > 0
    assert agreeing(theirs, legacy) == len(theirs) == 14
    assert fixed.N == [1280, 200]


def test_quirk_state_of_other_optimizers_is_not_cleared() -> None:
    def adam(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=0.01)

    theirs, _, original = train(original_rigl().RigLScheduler, optimizer=adam)
    legacy, _, _ = train(RigLScheduler, optimizer=adam, exact="legacy")
    _, _, fixed = train(RigLScheduler, optimizer=adam)
    assert agreeing(theirs, legacy) == 14

    def stale(pruner: Any) -> int:
        state = pruner.optimizer.state
        return sum(
            int(state[w]["exp_avg"][~m].count_nonzero())
            for w, m in zip(pruner.W, pruner.backward_masks, strict=True)
            if m is not None
        )

    assert stale(original) > 0 and stale(fixed) == 0


def test_quirk_t_end_is_required() -> None:
    with pytest.raises(TypeError):
        train(original_rigl().RigLScheduler, steps=2, T_end=None)
    with pytest.raises(ValueError, match="T_end must be a number of steps"):
        train(RigLScheduler, steps=2, T_end=None)


# --- by hand -------------------------------------------------------------------------------------------------------------


def one_layer(weights: list[float], mask: list[int], **options: Any) -> tuple[nn.Linear, torch.optim.SGD, RigLScheduler]:
    """A bias-free layer of one output with these weights and this mask."""
    layer = nn.Linear(len(weights), 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    settings = {"dense_allocation": 0.5, "T_end": 100, "delta": 2, "alpha": 1.0, "ignore_linear_layers": False}
    pruner = RigLScheduler(layer, optimizer, **(settings | options))
    assert pruner.backward_masks[0] is not None
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        pruner.backward_masks[0].copy_(torch.tensor([mask], dtype=torch.bool))
        layer.weight.mul_(torch.tensor([mask]))
    return layer, optimizer, pruner


def backward(layer: nn.Linear, gradient: list[float]) -> None:
    layer.weight.grad = None
    layer(torch.tensor([gradient])).sum().backward()


def test_an_update_by_hand() -> None:
    layer, optimizer, pruner = one_layer([0.5, -0.1, 0.3, 0.2, 9, 9, 9, 9], [1, 1, 1, 1, 0, 0, 0, 0])
    gradient = [1.0, 2.0, 3.0, -7.0, -5.0, 6.0, 0.5, 4.0]
    backward(layer, gradient)
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 2.0, 3.0, -7.0, 0, 0, 0, 0]]
    assert pruner() is True
    optimizer.step()
    optimizer.state[layer.weight]["momentum_buffer"].copy_(torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0]]))
    address = layer.weight.data_ptr()
    backward(layer, gradient)
    # step 2: share 1/2 * (1 + cos(2 pi / 100)) = 0.999, int(0.999 * 4) = 3 of 4: drop -0.1, 0.2, 0.3, grow |g| = 7, 6, 5
    assert math.isclose(0.5 * (1 + math.cos(2 * math.pi / 100)), 0.99901, abs_tol=1e-5)
    assert pruner() is False
    assert pruner.backward_masks[0].int().tolist() == [[1, 0, 0, 1, 1, 1, 0, 0]]  # type: ignore[union-attr]
    assert layer.weight.tolist() == [[0.5, 0, 0, pytest.approx(0.2), 0, 0, 0, 0]]  # dropped and regrown: keeps its value
    assert optimizer.state[layer.weight]["momentum_buffer"].tolist() == [[1, 0, 0, 4, 0, 0, 0, 0]]
    assert layer.weight.grad.tolist() == [[1.0, 0, 0, -7.0, 0, 0, 0, 0]]
    assert layer.weight.data_ptr() == address and (pruner.step, pruner.rigl_steps) == (2, 1)


def test_dst_ee_by_hand() -> None:
    """c ln(2) / eps = 6.9 for weights that never were active lifts index 6 (0.5) over index 3 (7, bonus 3.5: N = 1)."""
    layer, _, pruner = one_layer([0.5, -0.1, 0.3, 0.2, 9, 9, 9, 9], [1, 1, 1, 1, 0, 0, 0, 0], method="dst_ee", c=10.0)
    for _ in range(2):
        backward(layer, [1.0, 2.0, 3.0, 3.0, 5.0, 6.0, 0.5, 4.0])
        pruner()
    assert pruner.backward_masks[0].int().tolist() == [[1, 0, 0, 0, 1, 1, 0, 1]]  # type: ignore[union-attr]
    counters = pruner.state_dict()["dstee"]["counters"][0].tolist()
    assert counters == [[2, 1, 1, 1, 1, 1, 0, 1]]


def test_ties_and_zeros_have_an_order() -> None:
    """Two active zeros: the lower index drops; equal gradients: the lower index grows. Every weight's gradient is the same."""
    layer, _, pruner = one_layer([0.0, 0.0, 1, 1, 9, 9, 9, 9], [1, 1, 1, 1, 0, 0, 0, 0], alpha=0.5)
    for _ in range(2):
        backward(layer, [1.0] * 8)
        pruner()
    assert pruner.backward_masks[0].int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]  # type: ignore[union-attr]
    for _ in range(2):
        backward(layer, [0.0, 0, 0, 0, 0, 1, 1, 1])
        pruner()
    assert pruner.backward_masks[0].int().tolist() == [[0, 1, 1, 1, 0, 1, 0, 0]]  # type: ignore[union-attr]


def test_the_window_averages_backward_passes() -> None:
    layer, _, pruner = one_layer([1.0] * 8, [1, 1, 1, 1, 0, 0, 0, 0], delta=4, grad_accumulation_n=2)
    hook = pruner.backward_hook_objects[0]
    assert hook is not None
    for gradient, seen in (([9.0], None), ([9.0], None), ([2.0], 1.0), ([4.0], 3.0)):
        backward(layer, gradient * 8)
        assert seen == (None if hook.dense_grad is None else hook.dense_grad[0, 0].item())
        pruner()
    assert hook.dense_grad is None and pruner.rigl_steps == 1


def test_nan_gradients_outside_the_mask_are_dropped() -> None:
    for exact, poisoned in (("fixed", 0), ("legacy", 4)):
        layer, _, _ = one_layer([1.0] * 8, [1, 1, 1, 1, 0, 0, 0, 0], exact=exact)
        backward(layer, [1.0] * 4 + [math.nan, math.inf, -math.inf, math.nan])
        assert layer.weight.grad is not None and int(layer.weight.grad.isnan().sum()) == poisoned


def test_erk_holds_the_total_density() -> None:
    _, _, pruner = train(RigLScheduler, steps=14, sparsity_distribution="erk")
    nnz = sum(n if m is None else int(m.sum()) for n, m in zip(pruner.N, pruner.backward_masks, strict=True))
    assert nnz == round(0.2 * sum(pruner.N)) and pruner.rigl_steps == 3


def test_static_topology_never_updates() -> None:
    trajectory, _, pruner = train(RigLScheduler, steps=20, static_topo=True, T_end=None)
    assert trajectory == [] and pruner.step == 20


# --- the script of the README, and its surroundings ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["rigl", "dst_ee"])
def test_a_training_learns_and_keeps_its_density(method: str) -> None:
    trajectory, model, pruner = train(RigLScheduler, steps=240, T_end=180, method=method)
    assert accuracy(model) > 0.9
    for masks in trajectory:
        assert [int(m.sum()) for m in masks] == [n - int(s * n) for n, s in zip(pruner.N, pruner.S, strict=True) if s > 0]


def test_resuming_is_exact() -> None:
    straight, model, _ = train(RigLScheduler, steps=40, method="dst_ee")
    _, half_model, half = train(RigLScheduler, steps=20, method="dst_ee")
    saved = {"pruner": half.state_dict(), "model": half_model.state_dict(), "optimizer": half.optimizer.state_dict()}
    other = convnet(1)
    other.load_state_dict(saved["model"])
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True)
    optimizer.load_state_dict(saved["optimizer"])
    pruner = RigLScheduler(other, optimizer, state_dict=saved["pruner"], method="dst_ee")
    for i, (X, y) in enumerate(batches(40)):
        if i >= 20:
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(X), y).backward()
            if pruner():
                optimizer.step()
    for mask, last in zip([m for m in pruner.backward_masks if m is not None], straight[-1], strict=True):
        assert torch.equal(mask, last)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_step_takes_closures_and_schedulers(recwarn: pytest.WarningsRecorder) -> None:
    layer = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    RigLScheduler(layer, optimizer, 0.5, 10, ignore_linear_layers=False)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 8)).square().sum()
        loss.backward()
        return loss

    assert isinstance(optimizer.step(closure), Tensor)
    schedule.step()
    assert int((layer.weight == 0).sum()) == 32 and not recwarn.list


def test_channels_last_and_half_precision() -> None:
    model = convnet().to(memory_format=torch.channels_last).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = RigLScheduler(model, optimizer, **(SETTINGS | {"delta": 2, "method": "dst_ee"}))
    before = [int(m.sum()) for m in pruner.backward_masks if m is not None]
    for X, y in batches(7):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X.bfloat16()).float(), y).backward()
        if pruner():
            optimizer.step()
    assert pruner.rigl_steps == 3 and [int(m.sum()) for m in pruner.backward_masks if m is not None] == before
    for w, m in zip(pruner.W, pruner.backward_masks, strict=True):
        assert m is None or not w[~m].any()


# --- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_allocation": 0}, r"Dense allocation must be on the interval \(0, 1\]"),
        ({"sparsity_distribution": "normal"}, "sparsity_distribution must be 'uniform' or 'erk'"),
        ({"sparsity_distribution": "erk", "exact": "legacy"}, "sparsity_distribution must be 'uniform'"),
        ({"method": "set"}, "method must be 'rigl' or 'dst_ee'"),
        ({"exact": "almost"}, "exact must be"),
        ({"grad_accumulation_n": 4}, r"grad_accumulation_n must be in 1\.\.delta - 1 = 1\.\.3"),
        ({"alpha": 2}, "alpha must be in"),
    ],
)
def test_wrong_arguments_change_nothing(options: dict[str, Any], message: str) -> None:
    model = convnet()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        train(RigLScheduler, model=model, **options)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_a_model_takes_one_scheduler() -> None:
    model = convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RigLScheduler(model, optimizer, **SETTINGS)
    with pytest.raises(Exception, match="already has been registered"):
        RigLScheduler(model, optimizer, **SETTINGS)


def test_update_without_backward_raises() -> None:
    layer, _, pruner = one_layer([1.0] * 8, [1, 1, 1, 1, 0, 0, 0, 0])
    pruner()
    with pytest.raises(RuntimeError, match=r"no dense gradients for layers \[0\]"):
        pruner()
    assert pruner.step == 1
    backward(layer, [1.0] * 8)
    assert pruner() is False


def test_a_state_of_another_model_is_refused() -> None:
    _, _, pruner = one_layer([1.0] * 8, [1, 1, 1, 1, 0, 0, 0, 0])
    _, _, other = one_layer([1.0] * 6, [1, 1, 1, 0, 0, 0])
    with pytest.raises(ValueError, match=r"weights of sizes \[8\], this model has \[6\]"):
        other.load_state_dict(pruner.state_dict())
    _, _, counted = one_layer([1.0] * 8, [1, 1, 1, 1, 0, 0, 0, 0], method="dst_ee")
    with pytest.raises(ValueError, match="saved by method='dst_ee'"):
        pruner.load_state_dict(counted.state_dict())
