"""Plans and first masks that cannot be: named with what was expected, before any mask has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support.small_models import EVERY_STEP, mlp, set_gradients
from torch import Tensor

import dstee
from dstee.methods import Action, KeepGlobal, Method, Project, Random, SetDensity, Start, Swap, Update, register


@register
@dataclass(frozen=True)
class Planning(Method):
    """Whatever a test plans; ``ends`` with so many weights."""

    planned: Callable[[Update], Any] = lambda u: [Swap()]
    ends: int | None = None
    first: Callable[[Start], Any] = field(default=lambda s: None)

    name, key = "planning", "planning"
    needs_gradients = needs_counter = moves_budgets = True

    def start(self, s: Start) -> Mapping[str, Tensor] | None:
        return self.first(s)

    def total(self, u: Update) -> int:
        return u.total if self.ends is None else self.ends

    def plan(self, u: Update) -> Sequence[Action]:
        return self.planned(u)


def shapes(u: Update) -> list[Tensor]:
    return [torch.zeros(3), torch.zeros(3)]


@pytest.mark.parametrize(
    "planned, error, text",
    [
        (lambda u: (Swap() for _ in range(1)), TypeError, "must return a list of actions, got generator"),
        (lambda u: [Swap(), 3], TypeError, r"returned int at \[1\]"),
        (lambda u: [KeepGlobal(10**6)], ValueError, "total must be in 0"),
        (lambda u: [KeepGlobal(5, by=lambda u: u.weights[:1])], ValueError, "KeepGlobal.by must give a list with a tensor"),
        (lambda u: [SetDensity({"0.weight": 10.0})], ValueError, r"SetDensity wants 10\.0 active weights in 0\.weight"),
        (lambda u: [SetDensity({"0.weight": True})], ValueError, r"SetDensity wants True .* expected an int in 0\.\.108"),
        (lambda u: [SetDensity({"0.weight": -1})], ValueError, "SetDensity wants -1 active"),
        (lambda u: [SetDensity({"0.weight": 109})], ValueError, "SetDensity wants 109 active"),
        (lambda u: [SetDensity({"0": 1})], ValueError, "SetDensity names 0, which take no part"),
        (lambda u: [Project(-5)], ValueError, r"Project.k must be whole numbers of weights >= 0, got \[-5, -5\]"),
        (lambda u: [Project(5.5)], TypeError, "Project.k must be an int, a list, a dict by layer or a tensor, got float"),
        (lambda u: [Project({"0.weight": 5})], ValueError, r"Project.k has no number for 3\.weight"),
        (lambda u: [Project(5, to=shapes)], ValueError, r"Project.to gave \[3\] on cpu for 0\.weight, expected .* \[9, 12\]"),
        (lambda u: [Project(5, to=lambda u: [None, None])], ValueError, "Project.to gave NoneType"),
        (lambda u: [Swap(drop=True)], TypeError, "Swap.drop must be an int, .* got bool"),
        (lambda u: [Swap(drop=[1, 2.0])], ValueError, r"Swap.drop must be whole numbers of weights >= 0, got \[1, 2\.0\]"),
        (lambda u: [Swap(drop=[1])], ValueError, "one number per layer: got 1, expected 2"),
        (lambda u: [Swap(drop=0, grow=10**6)], ValueError, "k_grow"),
        (lambda u: [Swap(grow_by=shapes)], ValueError, r"Swap.grow_by gave \[3\]"),
        (lambda u: [Swap(bonus=torch.ones(3).double(), grow_by=Random())], ValueError, r"bonus in units of the signal"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["fused", "torch"])
def test_plans(kind: str, planned: Callable[[Update], Any], error: type[Exception], text: str) -> None:
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=Planning(planned=planned), schedule=EVERY_STEP)
    fused = kind == "fused"
    optimizer = dstee.SparseSGD(model.parameters(), sparse) if fused else torch.optim.SGD(model.parameters())
    masks = sparse.masks()
    set_gradients(model, 0)
    with pytest.raises(error, match=text):
        sparse.step(optimizer)
    assert (sparse.t, sparse.round) == (0, 0)
    assert all(torch.equal(mask, sparse.mask(name)) for name, mask in masks.items())


@pytest.mark.parametrize(
    "first, error, text",
    [
        (lambda s: list(s.random_masks().values()), TypeError, "start must return a dict from parameter name to mask, or None"),
        (lambda s: dict.fromkeys(s.weights), ValueError, r"gave 0\.weight the mask None, expected dense torch.bool \[9, 12\]"),
        (lambda s: {n: m.float() for n, m in s.random_masks().items()}, ValueError, "the mask torch.float32"),
        (lambda s: {n: m.to("meta") for n, m in s.random_masks().items()}, ValueError, "on meta"),
        (lambda s: {n: m.to_sparse() for n, m in s.random_masks().items()}, ValueError, "torch.sparse_coo"),
        (lambda s: {n: m.view(-1) for n, m in s.random_masks().items()}, ValueError, r"torch.bool \[108\]"),
        (lambda s: {"0.weight": s.random_masks()["0.weight"]}, ValueError, r"other layers than there are: 3\.weight"),
        (lambda s: s.dense_masks(), ValueError, "made 153 weights active, the budget has 76"),
    ],
)
def test_first_masks(first: Callable[[Start], Any], error: type[Exception], text: str) -> None:
    model = mlp()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(error, match=text):
        dstee.sparsify(model, 0.5, method=Planning(first=first))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    dstee.sparsify(model, 0.5)


def test_everything_may_go_and_come_back() -> None:
    """Layers without an active weight, and dense ones, in numbers, figures and a state."""
    model = mlp()
    sparse = dstee.sparsify(model, 0.5, method=Planning(), schedule=EVERY_STEP)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.1, momentum=0.9)
    for t, (planned, ends) in enumerate(
        [
            (lambda u: [SetDensity(dict.fromkeys(u.names, 0))], 0),
            (lambda u: [Swap(drop=u.nnz)], 0),
            (lambda u: [SetDensity(dict(zip(u.names, u.sizes, strict=True)), grow_by=Random())], 153),
            (lambda u: [KeepGlobal(0)], 0),
        ]
    ):
        sparse.method = Planning(planned=planned, ends=ends)
        set_gradients(model, t)
        assert sparse.step(optimizer)
        assert sparse.nnz == ends and dstee.metrics.density(sparse) == ends / 153
        assert dstee.metrics.churn(sparse) == (1 if ends else 0)
        r, limit = dstee.metrics.exploration(sparse), dstee.metrics.exploration_limit(sparse)
        assert all(r.per_layer[name] <= limit.per_layer[name] for name in sparse.layers)
        assert f"{ends:,}" in str(sparse.summary())
        sparse.method = dstee.DSTEE()
        dstee.sparsify(mlp(), 0.5).load_state_dict(sparse.state_dict(), strict=False)


def test_what_was_active_at_a_dense_start_counts_as_explorable() -> None:
    @register
    @dataclass(frozen=True)
    class Dense(Planning):
        key = "planning-dense"
        starts_denser = True

        def start(self, s: Start) -> Mapping[str, Tensor]:
            return s.dense_masks()

    model = mlp()
    sparse = dstee.sparsify(model, 0.9, method=Dense(planned=lambda u: [KeepGlobal(u.target)], ends=15), schedule=EVERY_STEP)
    set_gradients(model, 0)
    sparse.step(dstee.SparseSGD(model.parameters(), sparse, lr=0.1))
    assert sparse.nnz == 15 == sum(sparse.budget.values())
    assert dstee.metrics.exploration(sparse).total == dstee.metrics.exploration_limit(sparse).total == 1
