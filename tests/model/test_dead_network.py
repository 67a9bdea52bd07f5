"""Masks that let nothing of the input through are told as the model is made sparse, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import dstee


def chain(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def masks_of(model: nn.Module, **active: object) -> dict[str, Tensor]:
    """All weights, but for layers that are named with an underscore for the dot: of those only these."""
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    for name, indices in active.items():
        mask = masks[f"{name.lstrip('_').replace('_', '.')}.weight"]
        mask[...] = False
        for index in indices:  # type: ignore[attr-defined]
            mask[index] = True
    return masks


MLP = chain(
    nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
)
CNN = chain(
    chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Conv2d(4, 6, 1, groups=2), nn.MaxPool2d(2), nn.Flatten(),
    nn.Linear(24, 2),
)  # fmt: skip
UP = chain(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))


class Residual(nn.Module):
    """Its order is known to its forward alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + torch.relu(self.a(x)))  # type: ignore[no-any-return]


DEAD = [
    (MLP, {"_5": []}, "1 of 3 layers have no active weight and give their biases alone (5.weight)"),
    (MLP, {"_1": [], "_5": []}, "2 of 3 layers have no active weight and give their biases alone (1.weight, 5.weight)"),
    (MLP, {"_1": [(0, 0)], "_5": [(0, 1), (4, 5)]}, "all active weights of 5.weight start from units that no active"),
    (MLP, {"_1": [(0, 0)], "_5": [(2, 0)], "_7": [(0, 1)]}, "all active weights of 7.weight"),
    (CNN, {"_0_0": [(0, 0, 1, 1)], "_1": [(4, 1, 0, 0), (0, 1, 0, 0)]}, "all active weights of 1.weight"),
    (CNN, {"_1": [(5, 0, 0, 0)], "_4": [(0, 19)]}, "all active weights of 4.weight"),
    (UP, {"_0": [(0, 0, 0, 0)], "_2": [(0, 3, 0, 0)]}, "all active weights of 2.weight"),
    (Residual(), {"_a": []}, "1 of 2 layers have no active weight and give their biases alone (a.weight)"),
    (
        chain(nn.Linear(4, 4), Residual(), nn.Linear(4, 4)),
        {"_0": []},
        "1 of 4 layers have no active weight and give their biases alone (0.weight)",
    ),
]
ALIVE = [
    (MLP, {"_1": [(0, 0)], "_5": [(2, 0)], "_7": [(0, 2)]}),
    (CNN, {"_0_0": [(3, 0, 1, 1)], "_1": [(5, 1, 0, 0)], "_4": [(0, 23)]}),
    (UP, {"_0": [(2, 0, 0, 0)], "_2": [(0, 3, 0, 0)]}),
    (Residual(), {"_a": [(0, 0)], "_b": [(0, 3)]}),
    # what passes on in another way
    (chain(nn.Linear(4, 4), Residual(), nn.Linear(4, 4)), {"_0": [(0, 0)], "_2": [(0, 3)]}),
    (chain(nn.Linear(4, 4), nn.LayerNorm(4), nn.Softmax(1), nn.Linear(4, 4)), {"_0": [(0, 0)], "_3": [(0, 3)]}),
    (chain(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 1)), {"_0": [(0, 0)]}),
    (chain(nn.Conv1d(3, 4, 1), nn.Linear(4, 4)), {"_0": [(0, 0, 0)], "_1": [(0, 3)]}),  # along the width, which is another 4
]


@pytest.mark.parametrize(("model", "active", "text"), DEAD, ids=range(len(DEAD)))
def test_a_part_that_is_dead_is_named_once(model: nn.Module, active: dict[str, object], text: str) -> None:
    with pytest.warns(UserWarning, match="a part of the network is dead from the start") as found:
        sparse = dstee.sparsify(model, masks=masks_of(model, **active))
    sparse.remove(*sparse.layers)
    assert len(found) == 1 and text in str(found[0].message), found[0].message
    assert found[0].filename == __file__


@pytest.mark.parametrize(("model", "active"), ALIVE, ids=range(len(ALIVE)))
def test_nothing_is_told_of_what_lives_or_is_not_known(model: nn.Module, active: dict[str, object]) -> None:
    sparse = dstee.sparsify(model, masks=masks_of(model, **active))
    sparse.remove(*sparse.layers)


def test_what_is_called_dead_does_not_depend_on_the_input() -> None:
    """Random masks of a few weights: the output moves with the input exactly where nothing was told."""
    told = 0
    for seed in range(60):
        torch.manual_seed(seed)
        model = chain(nn.Flatten(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            dstee.sparsify(model, 1 - 7 / 70, distribution="uniform", seed=seed)
        x = torch.randn(50, 5)
        moves = bool((model(x) - model(torch.zeros(1, 5))).abs().max() > 1e-7)
        assert moves == (not found), (seed, [str(w.message) for w in found])
        told += len(found)
    assert 5 < told < 55


def ordinary() -> Iterator[tuple[nn.Module, float]]:
    from dstee.experiments.models.mlp import mlp

    for sparsity in (0.5, 0.9, 0.95, 0.98):
        yield mlp((1, 8, 8), 10, (512, 256)), sparsity
        yield chain(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(32, 10)), sparsity  # fmt: skip


@pytest.mark.parametrize("method", ["dst-ee", "set", "static", "snip", "gmp"])
def test_ordinary_networks_are_told_nothing(method: str) -> None:
    for model, sparsity in ordinary():
        schedule = dstee.UpdateSchedule(every=10, stop=100)
        batches = [(torch.randn(4, 3, 8, 8) if isinstance(model[0], nn.Conv2d) else torch.randn(4, 1, 8, 8), torch.arange(4))]  # type: ignore[index]
        dstee.sparsify(model, sparsity, method=method, schedule=schedule, batches=batches)
