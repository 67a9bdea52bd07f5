"""DSTEESparsifier beside torch's own sparsifiers, schedulers and the SparseModel that it must agree with."""

from __future__ import annotations

import pytest
import torch
from support.digits_batches import batches, loss, mlp, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.ao.pruning import CubicSL, FakeSparsity, LambdaSL, WeightNormSparsifier

import dstee
from dstee.compat.torch_ao import DSTEESparsifier

NAMES = ("0.weight", "2.weight", "4.weight")
CONFIG = [{"tensor_fqn": name} for name in NAMES]
OFTEN = dstee.UpdateSchedule(every=3, drop=dstee.ConstantDrop(0.3))


def masks_of(model: nn.Sequential) -> dict[str, Tensor]:
    return {name: model[int(name[0])].parametrizations.weight[0].mask.bool() for name in NAMES}


def originals(model: nn.Sequential) -> dict[str, Tensor]:
    return {name: model[int(name[0])].parametrizations.weight.original.detach() for name in NAMES}


def train(model, optimizer, sparsifier, steps: int, after=lambda: None, start: int = 0):
    for t, batch in enumerate(batches(start + steps)):
        if t >= start:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            sparsifier.step()
            after()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


# --- side by side with the original --------------------------------------------------------------------------------------


def weight_norm(norm: int) -> WeightNormSparsifier:
    return WeightNormSparsifier(sparsity_level=0.9, sparse_block_shape=(1, 1), zeros_per_block=1, norm=norm)


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_prunes_as_weight_norm_sparsifier_does(norm):
    """torch's script with one line changed: the same masks and weights at each of 20 updates of a cubic schedule."""
    histories = []
    for make in (lambda: weight_norm(norm), lambda: DSTEESparsifier(0.9, "magnitude")):
        model = mlp()
        sparsifier = make()
        sparsifier.prepare(model, config=CONFIG)
        scheduler = CubicSL(sparsifier, init_sl=0.1, delta_t=1, total_t=15)
        history: list[dict[str, Tensor]] = []

        def note(scheduler=scheduler, model=model, history=history):
            scheduler.step()
            weights = {f"{i}": model[i].weight.detach().clone() for i in (0, 2, 4)}
            history.append({**{k: v.clone() for k, v in masks_of(model).items()}, **weights})

        train(model, sgd(model), sparsifier, 20, note)
        sparsifier.squash_mask()
        history.append({name: p.detach().clone() for name, p in model.named_parameters()})
        histories.append(history)
    for t, (theirs, ours) in enumerate(zip(*histories, strict=True)):
        assert theirs.keys() == ours.keys()
        assert [key for key in theirs if not torch.equal(theirs[key], ours[key])] == [], t
    assert int(histories[1][-2]["0.weight"].sum()) == 61 * 32 - round(0.9 * 61 * 32)


def test_quirk_weights_that_come_back_start_at_zero_and_are_chosen_by_index():
    """When the level falls, torch revives undefined ones of the tied zeros, with the values they had when pruned."""
    results = []
    for make in (lambda: weight_norm(1), lambda: DSTEESparsifier(0.9, "magnitude")):
        model, sparsifier = mlp(), make()
        sparsifier.prepare(model, CONFIG)
        sparsifier.step()
        before = masks_of(model)["0.weight"].clone()
        for group in sparsifier.groups:
            group["sparsity_level"] = 0.5
        sparsifier.step()
        after = masks_of(model)["0.weight"]
        assert int(after.sum()) == 61 * 32 - round(0.5 * 61 * 32) and not (before & ~after).any()
        results.append((model[0].weight.detach()[after & ~before], before, after))
    assert results[0][0].ne(0).all() and results[1][0].eq(0).all()
    _, before, after = results[1]
    revived, candidates = (after & ~before).view(-1).nonzero().view(-1), (~before).view(-1).nonzero().view(-1)
    assert torch.equal(revived, candidates[: len(revived)])


def test_quirk_squares_of_tiny_weights_tie_in_the_original():
    """norm=2 ranks w*w, which is 0 for both weights; |w| tells them apart."""
    w = torch.tensor([[2e-30, 1e-30, 1.0, 3e-30]])
    for make, kept in ((lambda: weight_norm(1), [1, 0, 1, 1]), (lambda: DSTEESparsifier(0.25, "magnitude"), [1, 0, 1, 1])):
        model = nn.Sequential(nn.Linear(4, 1))
        model[0].weight.data.copy_(w)
        sparsifier = make()
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight", "sparsity_level": 0.25}])
        sparsifier.step()
        assert model[0].parametrizations.weight[0].mask.int().tolist() == [kept]
    assert torch.equal(w * w, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))


def test_quirk_original_model_state_lacks_the_masks():
    """FakeSparsity leaves its mask out of the model's state and misses it when loading; masks are in the sparsifier's."""
    for make, loads in ((lambda: weight_norm(1), False), (lambda: DSTEESparsifier(0.9, "magnitude"), True)):
        model, sparsifier = mlp(), make()
        sparsifier.prepare(model, CONFIG)
        assert not any("mask" in key for key in model.state_dict())
        if loads:
            model.load_state_dict(model.state_dict())
        else:
            with pytest.raises(RuntimeError, match=r"Missing key.*mask"):
                model.load_state_dict(model.state_dict())


# --- the same dynamic sparse training as SparseModel's -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dst-ee", "rigl", "set"])
@pytest.mark.parametrize("reset", [False, True])
def test_trains_as_sparse_model_does(name, reset):
    """Masks, counters, weights and momenta, bit for bit, over 13 updates."""
    method = {"dst-ee": dstee.DSTEE(c=1e-2, reset_regrown=reset), "rigl": dstee.RigL(order="after", reset_regrown=reset),
              "set": dstee.SET(reset_regrown=reset)}[name]  # fmt: skip
    model, twin = mlp(), mlp()
    optimizer, expected = sgd(model), sgd(twin)
    sparsifier = DSTEESparsifier(0.75, method, OFTEN, seed=3, optimizer=optimizer)
    sparsifier.prepare(model, CONFIG)
    sparse = dstee.sparsify(twin, dict.fromkeys(NAMES, 0.75), seed=3, method=method, schedule=OFTEN)
    assert {n: int(m.sum()) for n, m in masks_of(model).items()} == {n: x.nnz for n, x in sparse.layers.items()}
    for t, batch in enumerate(batches(41), 1):
        for m, o in ((model, optimizer), (twin, expected)):
            o.zero_grad()
            loss(m, batch).backward()
        optimizer.step()
        assert sparsifier.step() == (t % 3 == 0) == sparse.step(expected)
        for fqn, mask in masks_of(model).items():
            assert torch.equal(mask, sparse.mask(fqn)), (t, fqn)
            p, q = model[int(fqn[0])].parametrizations.weight.original, twin.get_parameter(fqn)
            assert torch.equal(p, q), (t, fqn)
            assert torch.equal(optimizer.state[p]["momentum_buffer"], expected.state[q]["momentum_buffer"]), (t, fqn)
            if name == "dst-ee":
                assert torch.equal(sparsifier.state[fqn]["counts"], sparse.layers[fqn].counts)
    assert sparse.round == 13 == sparsifier.state["0.weight"]["round"]


def test_default_layers_are_the_linear_ones_and_convolutions_are_named():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 6), nn.LayerNorm(6))
    sparsifier = DSTEESparsifier(0.5)
    sparsifier.prepare(model)
    assert [g["tensor_fqn"] for g in sparsifier.groups] == ["2.weight"]
    sparsifier.squash_mask()
    model = model.to(memory_format=torch.channels_last)
    sparsifier = DSTEESparsifier(0.5, schedule=dstee.UpdateSchedule(every=1))
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "sparsity_level": 0.75}])
    optimizer = torch.optim.AdamW(model.parameters())
    for t in range(4):
        model(torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(t))).square().sum().backward()
        optimizer.step()
        assert sparsifier.step()
        assert [int(p.mask.sum()) for m in (0, 2) for p in model[m].parametrizations.weight] == [18, 24]
        assert not (model[0].parametrizations.weight.original * ~model[0].parametrizations.weight[0].mask.bool()).any()


def test_gradients_of_all_backwards_since_the_last_step_count():
    """Two micro-batches are one batch, and a step without an update records nothing."""
    results = []
    for parts in (1, 2):
        model = mlp()
        sparsifier = DSTEESparsifier(0.75, "rigl", dstee.UpdateSchedule(every=2))
        sparsifier.prepare(model, CONFIG)
        for x, y in batches(4):
            for i in range(parts):
                (loss(model, (x[i::parts], y[i::parts])) / parts).backward()
            recorded = model[0].parametrizations.weight[0].dense_grad
            assert (recorded is not None) == (sparsifier.t % 2 == 1)
            results.append(recorded)
            sparsifier.step()
    assert results[1].ne(0).all() and torch.allclose(results[1], results[5], atol=1e-6)


def test_grad_scaler():
    """Scaled gradients are unscaled (the bonus is on their scale), and an overflow changes nothing."""
    histories = []
    for scale in (1.0, 1024.0):
        model = mlp()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        sparsifier = DSTEESparsifier(0.75, dstee.DSTEE(c=1e-2), dstee.UpdateSchedule(every=1))
        sparsifier.prepare(model, CONFIG)
        optimizer = sgd(model)
        for t, batch in enumerate(batches(5)):
            for overflow in (True, False) if scale > 1 and t == 2 else (False,):
                optimizer.zero_grad()
                scaler.scale(loss(model, batch) * (float("inf") if overflow else 1)).backward()
                scaler.step(optimizer)
                assert sparsifier.step(scaler=scaler) == (not overflow)
                scaler.update(scale)
        histories.append((masks_of(model), originals(model), sparsifier.t))
    for name in NAMES:
        assert torch.equal(histories[0][0][name], histories[1][0][name])
        assert torch.equal(histories[0][1][name], histories[1][1][name])
    assert histories[0][2] == histories[1][2] == 5


# --- schedulers, squash, convert -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dst-ee", "rigl", "set", "magnitude"])
@pytest.mark.parametrize("kind", ["cubic", "lambda"])
def test_density_follows_the_schedulers_of_torch_exactly(name, kind):
    model = mlp()
    sparsifier = DSTEESparsifier(0.95, name, dstee.UpdateSchedule(every=2), init="dense")
    sparsifier.prepare(model, CONFIG)
    if kind == "cubic":
        scheduler = CubicSL(sparsifier, delta_t=2, total_t=8, initially_zero=True)
    else:  # up and down again
        scheduler = LambdaSL(sparsifier, lambda t: 1 - abs(t - 12) / 12)
    seen = set()

    def check():
        for group in sparsifier.groups:
            mask = masks_of(model)[group["tensor_fqn"]]
            if sparsifier.t % 2 == 0:
                n = mask.numel()
                assert int(mask.sum()) == n - min(round(group["sparsity_level"] * n), n - 1)
                seen.add(int(mask.sum()))
            assert not originals(model)[group["tensor_fqn"]][~mask].any() or sparsifier.t % 2
        scheduler.step()

    train(model, sgd(model), sparsifier, 24, check)
    assert len(seen) > 15 and model[0].parametrizations.weight[0].mask.dtype is torch.float32


def test_squash_keeps_the_masked_weights_and_what_is_asked_for():
    model = mlp()
    sparsifier = DSTEESparsifier(0.9, schedule=OFTEN)
    sparsifier.prepare(model, CONFIG)
    train(model, sgd(model), sparsifier, 7)
    expected, masks = [model[i].weight.detach().clone() for i in (0, 2, 4)], masks_of(model)
    sparsifier.squash_mask(params_to_keep=("sparsity_level",), params_to_keep_per_layer={"2": ("tensor_fqn",)})
    assert model[0].sparse_params == {"sparsity_level": 0.9}
    assert model[2].sparse_params == {"sparsity_level": 0.9, "tensor_fqn": "2.weight"}
    for i, w in zip((0, 2, 4), expected, strict=True):
        assert type(model[i]) is nn.Linear and torch.equal(model[i].weight, w) and isinstance(model[i].weight, nn.Parameter)
        assert not w[~masks[f"{i}.weight"]].any()
    with pytest.raises(RuntimeError, match="squash_mask"):
        sparsifier.step()
    sparsifier.prepare(model, CONFIG[:1])  # and again
    assert [g["tensor_fqn"] for g in sparsifier.groups] == ["0.weight"]


class Converted(nn.Module):
    @classmethod
    def from_dense(cls, module: nn.Linear) -> Converted:
        found = cls()
        found.weight = module.weight.detach().clone()
        return found


def test_convert_swaps_the_masked_layers():
    model = mlp()
    sparsifier = DSTEESparsifier(0.9)
    sparsifier.prepare(model, CONFIG[:2])
    converted = sparsifier.convert(model, mapping={nn.Linear: Converted})
    assert [type(m).__name__ for m in converted] == ["Converted", "Tanh", "Converted", "Tanh", "Linear"]
    assert torch.equal(converted[0].weight, model[0].weight)
    assert isinstance(model[0].parametrizations.weight[0], FakeSparsity)


def test_hand_worked_update():
    """Two of four weights active; one is swapped: the smaller goes, the largest |gradient| outside comes."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data.copy_(torch.tensor([[3.0, -1.0, 5.0, 7.0]]))
    mask = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    sparsifier = DSTEESparsifier(0.5, "rigl", dstee.UpdateSchedule(every=1, drop=dstee.ConstantDrop(0.5)))
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight", "mask": mask}])
    model(torch.tensor([[9.0, 2.0, -1.0, -3.0]])).sum().backward()
    p = model[0].parametrizations.weight
    assert p[0].dense_grad.tolist() == [[9.0, 2.0, -1.0, -3.0]] and p.original.grad.tolist() == [[9.0, 2.0, 0.0, 0.0]]
    assert sparsifier.step()
    assert p[0].mask.tolist() == [[1.0, 0.0, 0.0, 1.0]] and p.original.tolist() == [[3.0, 0.0, 0.0, 0.0]]
    assert sparsifier.state["0.weight"]["mask"] is p[0].mask and mask.tolist() == [[1.0, 1.0, 0.0, 0.0]]
