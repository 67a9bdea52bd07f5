"""``SNFSMasking``: numbers and masks by hand, trainings beside plain torch, totals, checkpoints, ``patch``, refusals."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import torch
from support.compat_originals import batches, mlp, single_thread
from support.plain_snfs import PlainSNFS, parts
from torch import Tensor, nn

from dstee.compat import patch, unpatch
from dstee.compat.sparselearning import CosineDecay, LinearDecay, SNFSLinearDecay, SNFSMasking
from dstee.compat.sparselearning.redistribution import spread

__all__ = ["single_thread"]  # a fixture that every test here uses


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


# --- numbers -------------------------------------------------------------------------------------------------------------

SPREADS = [  # budget, shares, room, parts
    (10, [1.0, 1.0, 2.0], [99, 99, 99], [3, 2, 5]),  # 2.5, 2.5, 5: the first of equal remainders
    (10, [9.0, 1.0], [5, 100], [4, 6]),  # 9 do not fit into 99 % of 5
    (20, [8.0, 1.0, 1.0], [6, 100, 100], [5, 8, 7]),  # 16, 2, 2; the 11 too many are spread evenly, not by shares
    (12, [0.0, 8.0, 2.0], [50, 4, 50], [4, 3, 5]),  # 0, 10, 2: a layer without a share takes part in that
    (10, [1.0, 1.0], [5, 5], [5, 5]),  # no layer has more room: the last percent
    (6, [0.0, 0.0, 0.0], [9, 9, 9], [2, 2, 2]),
    (0, [1.0, 2.0], [3, 3], [0, 0]),
]


@pytest.mark.parametrize(("budget", "shares", "room", "expected"), SPREADS)
def test_growth_is_spread_by_hand(budget: int, shares: list[float], room: list[int], expected: list[int]) -> None:
    assert spread(budget, torch.tensor(shares, dtype=torch.float64), torch.tensor(room)) == expected
    assert parts(budget, shares, room) == expected


def test_growth_is_spread_as_by_fractions() -> None:
    rng = random.Random(0)
    for _ in range(100):
        L = rng.randint(1, 6)
        room = [rng.randint(0, 60) for _ in range(L)]
        budget = rng.randint(0, sum(room))
        shares = [rng.choice([0.0, rng.random(), float(rng.randint(1, 9))]) for _ in range(L)]
        found = spread(budget, torch.tensor(shares, dtype=torch.float64), torch.tensor(room))
        assert sum(found) == budget and found == parts(budget, shares, room)


# --- one update by hand --------------------------------------------------------------------------------------------------


def two_layers(**options: Any) -> SNFSMasking:
    """Layers of 8 and 24 weights, the first four of each active; mean abs(momentum) 3 and 1, mean abs(weight) 2.5 and 0.15.

    Off the masks abs(momentum) falls with the index, from 20 in the first layer and from 40 in the second.
    """
    model = nn.Sequential(nn.Linear(8, 1, bias=False), nn.Linear(24, 1, bias=False))
    masking = SNFSMasking(sgd(model, lr=0.0), None, **({"prune_rate": 0.5, "seed": 3} | options))
    masking.add_module(model, 0.5)
    weights = ([1.0, -2.0, 3.0, -4.0], [0.1, -0.2, 0.3, 0.0])
    for name, p, w, m in zip(masking.masks, model.parameters(), weights, (3.0, 1.0), strict=True):
        masking.masks[name] = (torch.arange(p.numel()) < 4).view(1, -1).float()
        with torch.no_grad():
            p.copy_(torch.tensor([w + [0.0] * (p.numel() - 4)]))
        falling = [(-1.0) ** i * ((20.0 if m == 3 else 40.0) - i) for i in range(4, p.numel())]
        masking.optimizer.state[p]["momentum_buffer"] = torch.tensor([[m, -m, m, -m, *falling]])
    return masking


def active(masking: SNFSMasking) -> list[list[int]]:
    return [mask.flatten().nonzero().flatten().tolist() for mask in masking.masks.values()]


BY_HAND = [  # options, dropped, active afterwards
    # 2 + 2 go, 4 come: 3 to 1
    ({}, [2, 2], [[2, 3, 4, 5, 6], [1, 2, 4]]),
    # 2.5 to 0.15: 3.77 and 0.23
    ({"redistribution_mode": "magnitude"}, [2, 2], [[2, 3, 4, 5, 6, 7], [1, 2]]),
    # 4 to 3 weights that are not 0: 2.3 and 1.7
    ({"redistribution_mode": "nonzero"}, [2, 2], [[2, 3, 4, 5], [1, 2, 4, 5]]),
    # 8 to 24 weights
    ({"redistribution_mode": "none"}, [2, 2], [[2, 3, 4], [1, 2, 4, 5, 6]]),
    # the smallest of both: all of the second layer's; 3 to 1
    ({"prune_mode": "global_magnitude"}, [0, 4], [[0, 1, 2, 3, 4, 5, 6], [4]]),
    # 40 - 4, 35, 34 and 33 lie in the second layer
    ({"growth_mode": "global_momentum_growth"}, [2, 2], [[2, 3], [1, 2, 4, 5, 6, 7]]),
    # up to 0.25: 3 weights of the second layer; 2.25 and 0.75
    ({"prune_mode": "threshold", "threshold": 0.25}, [0, 3], [[0, 1, 2, 3, 4, 5], [2, 4]]),
    # closest to 0 on either side: 1 and -2; 0.1 after the zero
    ({"prune_mode": "SET"}, [2, 2], [[2, 3, 4, 5, 6], [1, 2, 4]]),
]


@pytest.mark.parametrize(("options", "dropped", "expected"), BY_HAND)
def test_an_update_by_hand(options: dict[str, Any], dropped: list[int], expected: list[list[int]]) -> None:
    threshold = options.get("threshold", 0.001)
    masking = two_layers(**{key: value for key, value in options.items() if key != "threshold"})
    masking.prune_threshold = threshold
    params = [p for p in masking.modules[0].parameters()]
    before = [p.detach().clone() for p in params]
    momenta = [masking.optimizer.state[p]["momentum_buffer"].clone() for p in params]
    masking.truncate_weights()
    assert active(masking) == expected and sum(map(len, expected)) == 8
    for p, old, on in zip(params, before, expected, strict=True):
        keep = torch.zeros(1, p.numel()).index_fill(1, torch.tensor(on), 1.0)
        assert torch.equal(p, old * keep)
    for p, buffer in zip(params, momenta, strict=True):
        assert torch.equal(masking.optimizer.state[p]["momentum_buffer"], buffer), "dense, dropped or not"
    assert list(masking.name2removed.values()) == dropped == list(masking.num_remove.values())
    assert (masking.total_removed, masking.total_nonzero, masking.adjusted_growth) == (sum(dropped), 8, 0)
    assert masking.name2nonzeros == {"0.weight": 4, "1.weight": 4} and masking.name2zeros == {"0.weight": 4, "1.weight": 20}
    assert repr(masking.masks) == f"Masks(0.weight: {len(expected[0])}/8, 1.weight: {len(expected[1])}/24)"


def test_shares_by_hand() -> None:
    for mode, expected in {
        "momentum": [3 / 4, 1 / 4], "magnitude": [2.5 / 2.65, 0.15 / 2.65], "nonzero": [4 / 7, 3 / 7], "none": [1 / 4, 3 / 4]
    }.items():  # fmt: skip
        masking = two_layers(redistribution_mode=mode)
        masking.truncate_weights()
        assert list(masking.name2variance.values()) == pytest.approx(expected, abs=1e-7)
    for p in masking.modules[0].parameters():
        masking.optimizer.state[p]["momentum_buffer"].zero_()
    masking.redistribution_mode = "momentum"
    masking.truncate_weights()  # no momentum at all: evenly, where the original grows nothing
    assert list(masking.name2variance.values()) == [0, 0] and sum(map(len, active(masking))) == 8


@pytest.mark.parametrize("growth", ["momentum", "global_momentum_growth"])
def test_what_was_dropped_is_a_candidate_and_keeps_its_value(growth: str) -> None:
    masking = two_layers(growth_mode=growth)
    first, _ = masking.modules[0].parameters()
    masking.optimizer.state[first]["momentum_buffer"][0, 0] = 99.0  # abs(momentum) of the first layer is 27 now
    masking.truncate_weights()
    assert active(masking) == ([[0, 2, 3, 4, 5, 6], [1, 2]] if growth == "momentum" else [[0, 2, 3], [1, 2, 4, 5, 6]])
    assert first.flatten().tolist()[:4] == [1.0, 0.0, 3.0, -4.0]


def test_random_growth_goes_by_seed_layer_and_update() -> None:
    def grown(seed: int, updates: int = 1) -> list[list[int]]:
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        masking = SNFSMasking(sgd(model), None, growth_mode="random", redistribution_mode="none", seed=seed)
        masking.add_module(model, 0.5)
        for _ in range(updates):
            for name, p in masking.params().items():
                masking.masks[name] = (torch.arange(256) < 128).view(16, 16).float()
                with torch.no_grad():
                    p.fill_(1.0)
            masking.truncate_weights()
        return [sorted(set(on) - set(range(64, 128))) for on in active(masking)]

    a, b = grown(1)
    assert len(a) == len(b) == 64 and a != b
    assert grown(1) == [a, b] and a not in grown(2) and a not in grown(1, updates=2)


def test_a_nearly_dense_layer_that_grows_is_pruned_less() -> None:
    masking = two_layers()
    masking.masks["0.weight"] = torch.tensor([[1.0] * 7 + [0.0]])
    masking.truncate_weights()  # sparsity 1/8, share above the half: ceil(7/8) go of 7, not ceil(7/2)
    assert masking.name2prune_rate == {"0.weight": 0.125, "1.weight": 0.5}
    assert masking.name2removed == {"0.weight": 1, "1.weight": 2} and sum(map(len, active(masking))) == 11
    masking = two_layers(redistribution_mode="none")  # the share of the small layer is below the half
    masking.masks["0.weight"] = torch.tensor([[1.0] * 7 + [0.0]])
    masking.truncate_weights()
    assert masking.name2prune_rate == {"0.weight": 0.5, "1.weight": 0.5} and masking.name2removed["0.weight"] == 4


def test_initial_masks() -> None:
    model = nn.Sequential(nn.Linear(40, 10), nn.LayerNorm(10), nn.Linear(10, 2))
    for mode, expected in (("constant", [80, 4]), ("linear", [68, 16])):  # 84 in all; 50 : 12 are 67.7 and 16.3
        masking = SNFSMasking(sgd(model), None, seed=1)
        masking.add_module(model, 0.2, sparse_init=mode)
        assert [int(mask.sum()) for mask in masking.masks.values()] == expected and masking.baseline_nonzero == 84
    with torch.no_grad():
        model[2].weight[0].zero_()
    masking = SNFSMasking(sgd(model), None)
    masking.add_module(model, 0.2, sparse_init="resume")
    assert torch.equal(masking.masks["2.weight"], torch.tensor([[0.0] * 10, [0.0] * 10]) + (model[2].weight != 0))
    masking = SNFSMasking(sgd(model), None)
    masking.add_module(model, 0.6, sparse_init="linear")  # 252: 50 : 12 would be 203 and 49 of 20
    assert [int(mask.sum()) for mask in masking.masks.values()] == [232, 20]


# --- trainings -----------------------------------------------------------------------------------------------------------


def go(masking: Any, model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    trajectory = []
    for X, y in data:
        masking.optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        masking.step()
        if masking.steps % 4 == 0:
            trajectory.append({name: mask.clone() for name, mask in masking.masks.items()})
    return trajectory


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("redistribution", ["momentum", "magnitude", "nonzero", "none"])
def test_trains_as_plain_torch_and_so_does_a_patched_original(redistribution: str, optimizer: Any) -> None:
    data, results = list(batches(12)), []
    model = mlp()
    masking = SNFSMasking(optimizer(model), None, 0.4, redistribution_mode=redistribution, seed=5)
    masking.add_module(model, 0.2)
    masking.prune_every_k_steps = 4
    masks = masking.masks.copy()
    results.append((go(masking, model, data), model))
    for patched in (False, True):
        model = mlp()
        plain = PlainSNFS(optimizer(model), 0.4, redistribution, 4)
        plain.add_module(model, masks)
        if patched:
            held = dict(plain.masks)
            assert patch(plain) is plain
        results.append((go(plain, model, data), model))
        if patched:
            assert all(plain.masks[name] is mask for name, mask in held.items()) and "truncate_weights" in vars(plain)
            assert plain.name2removed == masking.name2removed and plain.total_removed == masking.total_removed
            assert plain.name2variance == masking.name2variance
            unpatch(plain)
            assert "truncate_weights" not in vars(plain)
    ours, our_model = results[0]
    assert len(ours) == 3
    total = sum(int(mask.sum()) for mask in masks.values())
    for step in ours:
        assert sum(int(mask.sum()) for mask in step.values()) == total
    for theirs, their_model in results[1:]:
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
        assert all(torch.equal(p, q) for p, q in zip(our_model.parameters(), their_model.parameters(), strict=True))
    moved = [int(ours[-1][name].sum()) - int(mask.sum()) for name, mask in masks.items()]
    assert any(moved) == (redistribution in ("momentum", "magnitude"))


@pytest.mark.parametrize("growth", ["momentum", "random", "gradient", "global_momentum_growth"])
@pytest.mark.parametrize("prune", ["magnitude", "SET", "threshold", "global_magnitude"])
def test_the_total_is_exact_and_resuming_too(prune: str, growth: str) -> None:
    data = list(batches(16, size=16))

    def start() -> tuple[SNFSMasking, nn.Module]:
        model = mlp()
        masking = SNFSMasking(sgd(model), CosineDecay(0.5, 60), prune_mode=prune, growth_mode=growth, seed=2)
        masking.prune_every_k_steps, masking.prune_threshold = 4, 0.03
        masking.add_module(model, 0.2)
        return masking, model

    masking, model = start()
    trajectory = go(masking, model, data[:6])
    file = io.BytesIO()
    torch.save((masking.state_dict(), model.state_dict(), masking.optimizer.state_dict()), file)
    trajectory += go(masking, model, data[6:])
    assert [sum(int(mask.sum()) for mask in masks.values()) for masks in trajectory] == [masking.baseline_nonzero] * 4
    assert not all(torch.equal(a, b) for a, b in zip(trajectory[0].values(), trajectory[-1].values(), strict=True))
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other, copied = start()
    copied.load_state_dict(states[1])
    other.optimizer.load_state_dict(states[2])
    other.load_state_dict(states[0])
    rest = go(other, copied, data[6:])
    for a, b in zip(trajectory[1:], rest, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), copied.parameters(), strict=True))
    assert other.prune_rate == masking.prune_rate and other.round == 4


def test_an_update_at_the_end_of_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    model = mlp()
    masking = SNFSMasking(sgd(model), SNFSLinearDecay(0.5, 10), verbose=True, seed=0)
    masking.add_module(model, 0.2)
    before = masking.masks.copy()
    with pytest.raises(RuntimeError, match=r"the optimizer has none for 0\.weight"):
        masking.at_end_of_epoch()
    assert all(torch.equal(masking.masks[name], mask) for name, mask in before.items()) and masking.round == 0
    go(masking, model, list(batches(3)))
    assert all(torch.equal(masking.masks[name], mask) for name, mask in before.items())
    masking.at_end_of_epoch()
    assert not any(torch.equal(masking.masks[name], mask) for name, mask in before.items())
    assert masking.prune_rate == 0.5 * 7 / 10 and "0.weight: 615->" in capsys.readouterr().out


def test_linear_decays() -> None:
    decay = SNFSLinearDecay(0.5, 4)
    found = []
    for _ in range(6):
        decay.step()
        found.append(decay.get_dr(0.1))
    assert found == [0.375, 0.25, 0.125, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"LinearDecay\(rate, T_max\) is SNFSLinearDecay here"):
        LinearDecay(0.5, 1000)


# --- refusals ------------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"prune_mode": "best"}, "prune_mode 'best' is not supported, choose from magnitude, SET, threshold, global_magnitude"),
    ({"growth_mode": "momentum_neuron"}, "leaves out neurons with a part below 10 weights.*'momentum' grows the same signal"),
    ({"growth_mode": "dst_ee"}, "growth_mode 'dst_ee' is not supported, choose from momentum, random, gradient, global"),
    ({"redistribution_mode": "nonzeros"}, "is called 'nonzero'"),
    ({"redistribution_mode": len}, r"redistribution_mode is a function.*dstee\.methods\.register"),
    ({"fp16": True}, "apex's FP16_Optimizer.*use torch.autocast"),
    ({"prune_rate": 1.5}, r"prune_rate must be in \[0, 1\], got 1.5"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SNFSMasking(sgd(mlp()), None, **options)


def test_refused_initial_masks() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="sparse_init 'ERK' is not supported, choose from constant, linear, resume"):
        SNFSMasking(sgd(model), None).add_module(model, 0.2, sparse_init="ERK")
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        SNFSMasking(sgd(model), None).add_module(model, 0.0, sparse_init="linear")


def test_patch_refuses_what_it_cannot_keep_exact() -> None:
    def plain(**values: Any) -> PlainSNFS:
        model = mlp()
        masking = PlainSNFS(sgd(model), 0.4, "momentum", 4)
        masking.add_module(model, {"0.weight": torch.ones(48, 64)})
        vars(masking).update(values)
        return masking

    with pytest.raises(ValueError, match="growth_mode 'momentum_neuron' is not supported: it leaves out"):
        patch(plain(growth_mode="momentum_neuron"))
    with pytest.raises(ValueError, match="redistribution_mode is a function"):
        patch(plain(redistribution_mode=len))
    with pytest.raises(ValueError, match="32-bit copies of the weights"):
        patch(plain(name_to_32bit={"0.weight": torch.ones(1)}))
    old = plain()
    del old.redistribution_func
    with pytest.raises(ValueError, match=r"this version of SNFS .* take its last version"):
        patch(old)


def test_a_patched_original_keeps_its_momenta_dense() -> None:
    model = mlp()
    masking = PlainSNFS(sgd(model), 0.4, "magnitude", 4)
    masking.growth_mode = "random"
    masking.add_module(model, {"2.weight": torch.zeros(32, 48).fill_diagonal_(1.0)})
    patch(masking)
    weight, data = model[2].weight, list(batches(4))
    go(masking, model, data[:3])
    off = masking.masks["2.weight"] == 0
    assert not bool(weight[off].any()) and bool(masking.optimizer.state[weight]["momentum_buffer"][off].any())
    (found,) = go(masking, model, data[3:])
    assert int(found["2.weight"].sum()) == 32 and not bool(weight[found["2.weight"] == 0].any())


def test_patched_itop_without_redistribution_swaps_in_each_layer() -> None:
    model = mlp()
    masking = PlainSNFS(sgd(model), 0.4, "none", 4)  # with fired_masks as ITOP for ImageNet
    masks = {name: (torch.rand(p.shape) < 0.3).float() for name, p in model.named_parameters() if p.dim() > 1}
    masking.add_module(model, masks)
    masking.fired_masks = {name: mask.clone() for name, mask in masks.items()}  # type: ignore[attr-defined]
    patch(masking)
    for found in go(masking, model, list(batches(8))):
        assert {name: int(mask.sum()) for name, mask in found.items()} == {
            name: int(mask.sum()) for name, mask in masks.items()
        }
    masking.redistribution_mode = "momentum"
    (found,) = go(masking, model, list(batches(4)))
    numbers, before = ([int(mask.sum()) for mask in of.values()] for of in (found, masks))
    assert numbers != before and sum(numbers) == sum(before)
