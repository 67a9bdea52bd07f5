"""Models, batches and masks for the tests of methods that choose masks before training."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

import dstee
from dstee.methods import SNIP, GraSP, Method, SynFlow

ONE_EACH = [SNIP(), GraSP(), SynFlow(rounds=10)]

Batches = list[tuple[Tensor, Tensor]]
Masks = dict[str, Tensor]


def data(*shape: int, batches: int = 2, classes: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(12, *shape, generator=generator), torch.randint(classes, (12,), generator=generator))
        for _ in range(batches)
    ]


def net(seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 8, bias=bias), nn.Tanh(), nn.Linear(8, 6, bias=bias), nn.Tanh(), nn.Linear(6, 4, bias=bias)
    )


def deep(depth: int = 20) -> nn.Sequential:
    torch.manual_seed(0)
    widths = [30, *[40] * depth, 4]
    return nn.Sequential(*[part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())])


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Dropout(0.2), nn.Conv2d(24, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def masks_of(model: nn.Module, method: Method, batches: Any, sparsity: float = 0.8, **arguments: Any) -> Masks:
    return dict(dstee.sparsify(model, sparsity, method=method, batches=batches, **arguments).masks())


def first(scores: Masks, k: int) -> Masks:
    """The masks of the ``k`` highest scores of all together, by a stable sort."""
    order = torch.cat([x.reshape(-1) for x in scores.values()]).sort(descending=True, stable=True).indices
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[:k]] = True
    parts = kept.split([x.numel() for x in scores.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(scores.items(), parts, strict=True)}


def assert_same(found: Masks, expected: Masks) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
