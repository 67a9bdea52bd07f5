"""GraNet's initial masks of trained networks, its pruning over all layers: by hand, beside plain torch; what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.compat_originals import batches, mlp, namespace, single_thread
from torch import Tensor, nn

from dstee import ops
from dstee.compat.sparselearning import GraNetMasking

__all__ = ["single_thread"]  # a fixture that every test here uses


def granet(
    model: nn.Module, sparse_init: str, exact: str = "fixed", growth_mode: str = "gradient", **values: Any
) -> GraNetMasking:
    args = namespace(
        **{"update_frequency": 2, "method": "DST", "sparse_init": sparse_init, "init_density": 1.0, "final_density": 0.1,
           "init_prune_epoch": 0, "final_prune_epoch": 4, "pruning_rate": 0.5} | values
    )  # fmt: skip
    return GraNetMasking(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        prune_rate=0.3, args=args, train_loader=range(10), growth_mode=growth_mode, exact=exact, seed=0,
    )  # fmt: skip


def trained() -> nn.Sequential:
    """Layers of 6 and 4 weights, two of them 0."""
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.9, 0.0, 0.3, -0.4, 0.5]]))
        model[1].weight.copy_(torch.tensor([[0.0, 0.2, -0.7, 0.15]]))
    return model


GRADIENTS = [[1.0, 9.0, 4.0, -6.0, 2.0, 9.0], [0.0, 5.0, 9.0, -7.0]]

BY_HAND = [  # mode, rate, the masks, the weights that keep their value
    # 5 and 3 weights are not 0: ceil(2.5) and ceil(1.5) go
    ("prune_uniform", 0.5, [[0, 1, 0, 0, 0, 1], [0, 0, 1, 0]], [[1, 5], [2]]),
    # int(8 * 0.5) stay: -0.9, -0.7, 0.5, -0.4
    ("prune_global", 0.5, [[0, 1, 0, 0, 1, 1], [0, 0, 1, 0]], [[1, 4, 5], [2]]),
    # 3 come by 6, 4, 2 and 2 by 7, 5
    ("prune_and_grow_uniform", 0.5, [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1]], [[1, 5], [2]]),
    # 2 come by 6, 4 and 2 by 7, 5
    ("prune_and_grow_global", 0.5, [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1]], [[1, 4, 5], [2]]),
    # int(8 * 0.25): -0.9 and -0.7; 4 come by 9, 6, 4, 2 and 2 by 7, 5
    ("prune_and_grow_global", 0.75, [[0, 1, 1, 1, 1, 1], [0, 1, 1, 1]], [[1], [2]]),
    ("prune_uniform", 0.0, [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1]], [[0, 1, 3, 4, 5], [1, 2, 3]]),
]


@pytest.mark.parametrize(("mode", "rate", "expected", "kept"), BY_HAND)
def test_initial_masks_by_hand(mode: str, rate: float, expected: list[list[int]], kept: list[list[int]]) -> None:
    model = trained()
    masking = granet(model, mode, pruning_rate=rate)
    old = [p.detach().flatten().tolist() for p in model.parameters()]
    for p in model.parameters():
        masking.optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
    grads = {name: torch.tensor([g]) for (name, _), g in zip(model.named_parameters(), GRADIENTS, strict=True)}
    masking.add_module(model, grad_dic=grads if "grow" in mode else None)
    assert [mask.int().flatten().tolist() for mask in masking.masks.values()] == expected
    assert masking.baseline_nonzero == sum(map(sum, expected))
    for p, w, stay in zip(model.parameters(), old, kept, strict=True):
        assert p.flatten().tolist() == [x if i in stay else 0.0 for i, x in enumerate(w)], "what is dropped and regrown is 0"
        assert masking.optimizer.state[p]["momentum_buffer"].flatten().tolist() == [float(i in stay) for i in range(len(w))]


def original(mode: str, model: nn.Module, rate: float, grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the original does, where no two weights are equal; the weights change, too."""
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    total = sum(int((p != 0).sum()) for p in weights.values())
    least = torch.cat([p.abs().flatten() for p in weights.values()]).sort(descending=True).values
    masks = {}
    for name, p in weights.items():
        before = int((p != 0).sum())
        if mode.endswith("global"):
            mask = p.abs() >= least[int(total * (1 - rate)) - 1]
        else:
            k = math.ceil(p.numel() - before + rate * before)
            mask = torch.ones_like(p).flatten().index_fill(0, p.abs().flatten().argsort()[:k], 0).view(p.shape) != 0
        p.data = p.data * mask
        if "grow" in mode:
            order = (grads[name] * ~mask).abs().flatten().argsort(descending=True)[: before - int(mask.sum())]
            mask = mask.flatten().index_fill(0, order, True).view(p.shape)
        masks[name] = mask
    return masks


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.77])
@pytest.mark.parametrize("mode", ["prune_uniform", "prune_global", "prune_and_grow_uniform", "prune_and_grow_global"])
def test_initial_masks_are_those_of_the_original(mode: str, rate: float) -> None:
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(torch.rand(p.shape) < 0.6)
    grads = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    twin = copy.deepcopy(model)
    masking = granet(model, mode, pruning_rate=rate)
    masking.add_module(model, mode, grads if "grow" in mode else None)
    expected = original(mode, twin, rate, grads)
    assert all(torch.equal(masking.masks[name] != 0, mask) for name, mask in expected.items())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(torch.equal(masking.fired_masks[name] != 0, mask) for name, mask in expected.items())


def test_training_goes_on_from_a_regrown_network_and_resumes_exactly() -> None:
    data = list(batches(12, size=16))

    def start() -> tuple[nn.Module, GraNetMasking]:
        model = mlp()
        masking = granet(model, "prune_and_grow_global", method="GraNet")
        masking.add_module(model, grad_dic={name: torch.ones_like(p) for name, p in model.named_parameters()})
        return model, masking

    def go(model: nn.Module, masking: GraNetMasking, steps: slice) -> None:
        for X, y in data[steps]:
            masking.optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            masking.step()

    model, masking = start()
    go(model, masking, slice(0, 5))
    states = copy.deepcopy((model.state_dict(), masking.optimizer.state_dict(), masking.state_dict()))
    go(model, masking, slice(5, 12))
    other, others = start()
    other.load_state_dict(states[0])
    others.optimizer.load_state_dict(states[1])
    others.load_state_dict(states[2])
    go(other, others, slice(5, 12))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(masking.masks[name], mask) for name, mask in others.masks.items())
    total = sum(p.numel() for p in masking.params().values())
    goal = int(total * (1 - 0.9 * (1 - (1 - 6 / 20) ** 3)))  # update 6 of 20
    assert sum(int(mask.sum()) for mask in masking.masks.values()) == goal


def test_pruning_over_all_layers_decides_ties_by_layer_and_index_and_keeps_counters() -> None:
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(4, 1, bias=False))
    masking = granet(model, "uniform", growth_mode="dst_ee", method="GMP")
    masking.add_module(model)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
        model[1].weight[0, 3] = -0.6
    masking.masks["0.weight"] = torch.tensor([[1, 0, 1, 1, 1, 1]])

    def counters() -> list[list[int]]:
        layers = masking.masks.layers()
        return [
            ops.decode_counts(c, layer.mask_bits, masking.round, (layer.numel,)).tolist()
            for layer in layers
            if (c := layer.counts) is not None
        ]

    before = counters()
    assert len(before) == 2
    masking.pruning(10)  # update 5 of 20: 1 - 0.9 * (1 - 0.75**3) of 10 weights
    assert [mask.int().flatten().tolist() for mask in masking.masks.values()] == [[1, 0, 1, 1, 0, 0], [0, 0, 0, 1]]
    assert model[0].weight.flatten().tolist() == [0.5, 0, 0.5, 0.5, 0, 0] and counters() == before


def test_uniform_pruning_spares_the_classifier_and_keeps_the_total() -> None:
    model = nn.Sequential()
    for name, n in (("a", 500), ("b", 300), ("classifier", 200)):
        model.add_module(name, nn.Linear(n, 1, bias=False))
    masking = granet(model, "uniform", method="GMP_uniform", update_frequency=10)
    masking.add_module(model)
    masking.pruning_uniform(20)  # update 2 of 4: 1 - 0.9 * (1 - 0.5**3) is above 0.2
    assert [int(mask.sum()) for mask in masking.masks.values()] == [106, 63, 42]
    masking.pruning_uniform(30)  # 1 - 0.9 * (1 - 0.25**3) = 0.1140625 of 1000, 40 of them in the classifier
    assert [int(mask.sum()) for mask in masking.masks.values()] == [46, 27, 40]
    masking.pruning_uniform(40)  # the last: 0.1
    assert [int(mask.sum()) for mask in masking.masks.values()] == [37, 22, 40]
    masking.pruning_uniform(50)
    assert masking.target_density(50) is None and sum(int(mask.sum()) for mask in masking.masks.values()) == 99


def test_gmp_starts_dense() -> None:
    model = mlp()
    masking = granet(model, "ERK", method="GMP", init_density=0.3)
    masking.add_module(model)
    assert all(bool(mask.all()) for mask in masking.masks.values()) and len(masking.masks) == 3


GRADS = {name: torch.ones_like(p) for name, p in trained().named_parameters()}

REFUSED: list[tuple[dict[str, Any], Any, type[Exception], str]] = [
    (
        {"sparse_init": "snip"},
        None,
        ValueError,
        r"'snip' is not supported, choose from ERK, .*assign mask\.masks = dstee\.masks",
    ),
    ({"sparse_init": "prune_structured"}, None, ValueError, "it prunes whole units, and later updates would fill them"),
    ({"sparse_init": "prune_global", "exact": "legacy"}, None, ValueError, r"depends on torch\.sort; use exact='fixed'"),
    ({"sparse_init": "prune_global"}, GRADS, ValueError, "grad_dic is given, but sparse_init 'prune_global' reads no gradient"),
    ({"sparse_init": "prune_and_grow_global"}, None, ValueError, "pass grad_dic=.* got NoneType"),
    ({"sparse_init": "prune_and_grow_global"}, {"0.weight": torch.ones(1, 6)}, ValueError, "lacks the gradients of 1.weight"),
    (
        {"sparse_init": "prune_and_grow_uniform"},
        GRADS | {"1.weight": torch.ones(4)},
        ValueError,
        r"grad_dic\['1.weight'\] must be a tensor of shape \[1, 4\], got \[4\]",
    ),
]


@pytest.mark.parametrize(("options", "grads", "error", "message"), REFUSED)
def test_refused_before_anything_changes(options: dict[str, Any], grads: Any, error: type[Exception], message: str) -> None:
    model = trained()
    masking = granet(model, **options)
    with pytest.raises(error, match=message):
        masking.add_module(model, grad_dic=grads)
    assert len(masking.masks) == 0 and all(
        torch.equal(p, q) for p, q in zip(model.parameters(), trained().parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (1.5, ValueError, r"args\.pruning_rate must be in \[0, 1\].*got 1.5"),
        (1.0, ValueError, r"args\.pruning_rate 1.0 leaves none of the 8 weights"),
        (None, AttributeError, "args has no attribute 'pruning_rate'"),
    ],
)
def test_refused_rates(rate: float | None, error: type[Exception], message: str) -> None:
    model = trained()
    masking = granet(model, "prune_global", pruning_rate=rate)
    if rate is None:
        del masking.args.pruning_rate
    with pytest.raises(error, match=message):
        masking.add_module(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained().parameters(), strict=True))
