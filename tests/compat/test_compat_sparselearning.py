"""``Masking``: updates by hand, quirks one by one, and trainings beside a plain re-implementation of ITOP's."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import torch
from support.compat_originals import ItopMasking, accuracy, batches, mlp, namespace, single_thread
from torch import Tensor, nn

from dstee.compat.sparselearning import CosineDecay, Masking, add_sparse_args

__all__ = ["single_thread"]  # a fixture that every test here uses

ACTIVE = [1, 1, 1, 1, 0, 0, 0, 0]


def one_layer(weights: list[float], gradient: list[float], mask: list[int] | None = None, **options: Any) -> Masking:
    """A bias-free layer of one output with these weights, gradient (also as momentum) and mask; learning rate 0."""
    layer = nn.Linear(len(weights), 1, bias=False)
    options = {"death_rate": 0.5, "growth_mode": "gradient", "args": namespace()} | options
    masking = Masking(torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9), **options)
    masking.add_module(layer, density=0.5, sparse_init="uniform")
    masking.masks["weight"] = torch.tensor([mask or ACTIVE])
    masking.fired_masks["weight"] = torch.tensor([mask or ACTIVE])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    layer.weight.grad = torch.tensor([gradient], dtype=torch.float32)
    masking.optimizer.state[layer.weight]["momentum_buffer"] = torch.tensor([gradient], dtype=torch.float32)
    return masking


def shown(masking: Masking) -> list[int]:
    return masking.masks["weight"].int().flatten().tolist()


def weights_of(masking: Masking) -> list[float]:
    return [round(x, 6) for x in masking.modules[0].weight.flatten().tolist()]  # type: ignore[union-attr,operator]


# --- fixed: by hand ------------------------------------------------------------------------------------------------------

BY_HAND = {  # death, growth: weights, gradient, mask afterwards
    ("magnitude", "gradient"): ([0.1, -0.2, 0.3, -0.4], [5, 1, 0, 0, 4, 3, -6, 2], [1, 0, 1, 1, 0, 0, 1, 0]),
    ("SET", "gradient"): ([0.1, 0.2, 0.3, -0.4], [0, 0, 0, 0, 4, 3, 6, 2], [0, 1, 1, 0, 1, 0, 1, 0]),
    ("Taylor_FO", "gradient"): ([0.1, 0.2, 0.3, 0.4], [9, 1, 1, 0.1, 4, 3, 6, 2], [1, 0, 1, 0, 1, 0, 1, 0]),
    ("threshold", "gradient"): ([0.1, -0.25, 0.3, 0.4], [0, 0, 0, 0, 4, 3, 6, 2], [0, 0, 1, 1, 1, 0, 1, 0]),
    ("magnitude", "momentum"): ([0.1, -0.2, 0.3, -0.4], [0, 0, 0, 0, 4, 3, -6, 2], [0, 0, 1, 1, 1, 0, 1, 0]),
    # 10 ln(2) / (N + 1): 3.5 for what was active once, 6.9 for what never was; index 4 (4 + 6.9) passes index 0 (5 + 3.5)
    ("magnitude", "dst_ee"): ([0.1, -0.2, 0.3, -0.4], [5, 1, 0, 0, 4, 3, -6, 2], [0, 0, 1, 1, 1, 0, 1, 0]),
}


@pytest.mark.parametrize(("modes", "case"), BY_HAND.items(), ids=["-".join(modes) for modes in BY_HAND])
def test_an_update_by_hand(modes: tuple[str, str], case: tuple[list[float], list[float], list[int]]) -> None:
    weights, gradient, expected = case
    masking = one_layer(weights + [0.0] * 4, gradient, death_mode=modes[0], growth_mode=modes[1], threshold=0.25, c=10.0)
    masking.steps = 2
    masking.truncate_weights()
    assert shown(masking) == expected
    survivors = [w * old * new for w, old, new in zip(weights + [0.0] * 4, ACTIVE, expected, strict=True)]
    assert weights_of(masking) == survivors
    assert (masking.name2nonzeros, masking.name2zeros, masking.num_remove) == ({"weight": 4}, {"weight": 4}, {"weight": 2})
    if modes[1] != "momentum":
        buffer = masking.optimizer.state[masking.modules[0].weight]["momentum_buffer"]  # type: ignore[index]
        assert not buffer[0, [i for i in range(4) if not expected[i]]].any()


def test_ties_have_an_order() -> None:
    masking = one_layer([0.5] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4)
    masking.truncate_weights()
    assert shown(masking) == [0, 0, 1, 1, 1, 1, 0, 0]
    masking = one_layer([0.5] * 4 + [0.0] * 4, [0.0] * 8)
    masking.truncate_weights()
    assert shown(masking) == ACTIVE  # nothing has a gradient: the lowest indices, which are those just dropped


def test_growth_by_momentum_of_adam() -> None:
    masking = one_layer([0.1, -0.2, 0.3, -0.4] + [0.0] * 4, [0.0] * 8, growth_mode="momentum")
    state = masking.optimizer.state[masking.modules[0].weight]  # type: ignore[index]
    state["exp_avg"], state["exp_avg_sq"] = torch.tensor([[0.0, 0, 0, 0, 4, 3, 9, 2]]), torch.tensor([[1.0] * 6 + [16, 0.25]])
    masking.truncate_weights()  # 4, 3, 9/4, 2/0.5
    assert shown(masking) == [0, 0, 1, 1, 1, 0, 0, 1]


def test_random_growth_is_exact_and_seeded() -> None:
    seen = set()
    for seed in (1, 1, 2, 3):
        masking = one_layer([1.0] * 50 + [0.0] * 50, [0.0] * 100, [1] * 50 + [0] * 50, growth_mode="random", seed=seed)
        masking.truncate_weights()
        assert sum(shown(masking)) == 50
        seen.add(tuple(shown(masking)))
    assert len(seen) == 3


def test_random_unfired_growth_takes_new_weights_first() -> None:
    masking = one_layer([1.0] * 50 + [0.0] * 50, [0.0] * 100, [1] * 50 + [0] * 50, growth_mode="random_unfired", death_rate=0.4)
    for expected in (70, 90, 100):
        masking.truncate_weights()
        _, total = masking.fired_masks_update()
        assert sum(shown(masking)) == 50 and total == expected / 100


# --- legacy: the quirks, one test each -----------------------------------------------------------------------------------


def legacy(*args: Any, **options: Any) -> Masking:
    masking = one_layer(*args, exact="legacy", **options)
    masking.truncate_weights()
    return masking


def test_quirk_ties_with_the_threshold_die_together() -> None:
    weights = [0.5, 0.5, 0.5, 1.0] + [0.0] * 4
    masking = legacy(weights, [0.0] * 4 + [1.0, 2.0, 3.0, 4.0], death_rate=0.25)
    assert masking.num_remove == {"weight": 3} and shown(masking) == [0, 0, 0, 1, 0, 1, 1, 1]
    fixed = one_layer(weights, [0.0] * 4 + [1.0, 2.0, 3.0, 4.0], death_rate=0.25)
    fixed.truncate_weights()
    assert fixed.num_remove == {"weight": 1} and shown(fixed) == [0, 1, 1, 1, 0, 0, 0, 1]


def test_quirk_all_active_zeros_die() -> None:
    masking = legacy([0.0, 0.0, 1.0, 2.0] + [0.0] * 4, [0.0] * 4 + [1.0, 2.0, 3.0, 4.0], death_rate=0.25)
    assert masking.num_remove == {"weight": 2}
    masking = legacy([0.0, 1.0, 1.0, 2.0] + [0.0] * 4, [0.0] * 4 + [1.0, 2.0, 3.0, 4.0], death_rate=0.0)
    assert masking.num_remove == {"weight": 1}


def test_quirk_few_gradients_lower_the_density() -> None:
    torch.manual_seed(0)
    mask = (torch.rand(1000) < 0.5).int().tolist()
    weights = (torch.randn(1000) * torch.tensor(mask)).tolist()
    gradient = [1.0 if i < 20 else 0.0 for i in range(1000)]
    lost = sum(mask) - sum(shown(legacy(weights, gradient, mask)))
    fixed = one_layer(weights, gradient, mask)
    fixed.truncate_weights()
    assert lost > 0 and sum(shown(fixed)) == sum(mask)


def test_quirk_random_growth_is_bernoulli() -> None:
    found = set()
    for seed in range(5):
        torch.manual_seed(seed)
        masking = legacy([1.0 + i for i in range(50)] + [0.0] * 50, [0.0] * 100, [1] * 50 + [0] * 50, growth_mode="random")
        found.add(sum(shown(masking)))
    assert len(found) > 1


def test_quirk_set_keeps_the_most_negative_only() -> None:
    weights = [0.1, 0.2, -0.1, -0.2, -0.3, -0.4, 0.0, 0.0]
    options: dict[str, Any] = {"mask": [1] * 6 + [0] * 2, "death_mode": "SET", "death_rate": 1 / 3}
    masking = legacy(weights, [0.0] * 8, growth_mode="momentum_neuron", **options)
    assert shown(masking) == [0, 1, 0, 0, 0, 0, 0, 0]  # asked for one of each sign
    fixed = one_layer(weights, [0.0] * 6 + [1.0, 1.0], **options)
    fixed.truncate_weights()
    assert shown(fixed) == [0, 1, 0, 1, 1, 1, 1, 1]


def test_quirk_momentum_regrows_what_it_dropped() -> None:
    masking = one_layer([0.1, -0.2, 0.3, -0.4] + [0.0] * 4, [1.0, 1, 1, 1, 4, 3, 6, 2], growth_mode="momentum", exact="legacy")
    masking.apply_mask()
    masking.truncate_weights()
    assert shown(masking) == ACTIVE


def test_quirk_momentum_neuron_grows_nothing() -> None:
    masking = legacy([0.1, -0.2, 0.3, -0.4] + [0.0] * 4, [1.0] * 8, growth_mode="momentum_neuron")
    assert shown(masking) == [0, 0, 1, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="'momentum_neuron' grows nothing"):
        one_layer([0.1] * 8, [1.0] * 8, growth_mode="momentum_neuron")


def test_quirk_taylor_may_keep_an_inactive_weight_for_an_active_one() -> None:
    """Its sort sees all positions: with gradient 0 an active weight ties with the inactive ones, and fewer or others die."""
    torch.manual_seed(0)
    mask = [1] * 100 + [0] * 100
    masking = legacy([1.0 + i for i in range(100)] + [0.0] * 100, [0.0] * 200, mask, death_mode="Taylor_FO", death_rate=0.1)
    assert 0 <= masking.num_remove["weight"] <= 100
    fixed = one_layer([1.0 + i for i in range(100)] + [0.0] * 100, [0.0] * 200, mask, death_mode="Taylor_FO", death_rate=0.1)
    fixed.truncate_weights()
    assert fixed.num_remove == {"weight": 10}


def test_quirk_threshold_death_fails() -> None:
    with pytest.raises(AttributeError, match="no attribute 'threshold'"):
        legacy([0.1] * 8, [1.0] * 8, death_mode="threshold")


def test_quirk_infinities_outside_the_mask_become_nan() -> None:
    for exact, kept in (("legacy", True), ("fixed", False)):
        masking = one_layer([0.1, 0.2, 0.3, 0.4] + [math.inf] * 4, [1.0] * 8, exact=exact)
        masking.apply_mask()
        assert bool(masking.modules[0].weight.isnan().any()) is kept  # type: ignore[union-attr,operator]


def test_quirk_norms_are_masked() -> None:
    def names(exact: str) -> list[str]:
        model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.BatchNorm1d(8))
        masking = Masking(torch.optim.SGD(model.parameters(), lr=0.1), args=namespace(), growth_mode="random", exact=exact)
        masking.add_module(model, density=0.5)
        return list(masking.masks)

    assert names("legacy") == ["0.weight", "1.weight", "2.weight"]
    assert names("fixed") == ["1.weight"]


# --- trainings beside the re-implementation ------------------------------------------------------------------------------


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)


def train(masking: Any, model: nn.Module, steps: int = 52) -> list[dict[str, Tensor]]:
    """Returns the masks after each step with an update."""
    trajectory = []
    for X, y in batches(steps):
        masking.optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        masking.step()
        if masking.steps % masking.prune_every_k_steps == 0:
            trajectory.append({name: mask.clone() for name, mask in masking.masks.items()})
    return trajectory


def pair(death: str, growth: str, exact: str) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]], list[nn.Module]]:
    """The re-implementation and ours from the same masks and random numbers: both trajectories, both models."""
    models = [mlp(), mlp()]
    torch.manual_seed(3)
    plain = ItopMasking(sgd(models[0]), 0.3, death, growth, every=4)
    plain.add_module(models[0], density=0.2)
    theirs = train(plain, models[0])
    torch.manual_seed(3)
    args = namespace(update_frequency=4)
    ours = Masking(sgd(models[1]), 0.3, death_mode=death, growth_mode=growth, args=args, exact=exact)
    ours.add_module(models[1], density=0.2, sparse_init="uniform")
    if exact == "fixed":
        torch.manual_seed(3)
        ours.masks = {name: (torch.rand(mask.shape) < 0.2).float() for name, mask in ours.masks.items()}
        ours.fired_masks = ours.masks.copy()
        models[1].load_state_dict(mlp().state_dict())
        ours.apply_mask()
    return theirs, train(ours, models[1]), models


@pytest.mark.parametrize(
    ("death", "growth"),
    [
        ("magnitude", "gradient"),
        ("magnitude", "random"),
        ("magnitude", "random_unfired"),
        ("magnitude", "momentum"),
        ("Taylor_FO", "gradient"),
        ("SET", "random"),
    ],
)
def test_legacy_trains_as_the_reimplementation(death: str, growth: str) -> None:
    theirs, ours, models = pair(death, growth, "legacy")
    assert len(theirs) == len(ours) == 13
    for a, b in zip(theirs, ours, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_fixed_agrees_with_legacy_where_there_are_no_ties() -> None:
    """No weight of this training is ever exactly 0 or tied when it matters, and enough gradients are not 0."""
    theirs, ours, _ = pair("magnitude", "gradient", "fixed")
    assert len(theirs) == 13
    for a, b in zip(theirs, ours, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("growth", ["random", "random_unfired", "momentum", "gradient", "dst_ee"])
def test_a_script_of_the_readme_learns_and_keeps_its_density(growth: str) -> None:
    parser = argparse.ArgumentParser()
    add_sparse_args(parser)
    args = parser.parse_args(["--sparse", "--density", "0.2", "--update_frequency", "10", "--growth", growth])
    model = mlp()
    optimizer = sgd(model)
    decay = CosineDecay(args.death_rate, 240)
    mask = Masking(
        optimizer, death_rate=args.death_rate, death_mode=args.death, death_rate_decay=decay, growth_mode=args.growth,
        redistribution_mode=args.redistribution, args=args,
    )  # fmt: skip
    mask.add_module(model, sparse_init=args.sparse_init, density=args.density)
    total, addresses = sum(m.numel() for m in mask.masks.values()), [p.data_ptr() for p in model.parameters()]
    numbers = {name: int(m.sum()) for name, m in mask.masks.items()}
    assert sum(numbers.values()) == round(0.2 * total)
    for masks in train(mask, model, 240):
        assert {name: int(m.sum()) for name, m in masks.items()} == numbers
    assert accuracy(model) > 0.9 and addresses == [p.data_ptr() for p in model.parameters()]
    for name, p in model.named_parameters():
        assert name not in mask.masks or not p[mask.masks[name] == 0].any()
