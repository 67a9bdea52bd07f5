"""A small real training that the tests of swap-ins share: scikit-learn's digits, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Layers this small are faster so; and two trainings that are compared add in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Standardised float32 [1797, 61] (pixels that are always 0 left out: they tie) and labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    x, y = datasets.load_digits(return_X_y=True)
    x = torch.from_numpy(x).float()
    x = x[:, x.amax(0) > 0]
    return (x - x.mean()) / x.std(), torch.from_numpy(y).long()


def batches(steps: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    x, y = digits()
    for t in range(steps):
        index = torch.randint(len(y), (size,), generator=torch.Generator().manual_seed(t))
        yield x[index], y[index]


def mlp(seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """61 -> 32 -> 24 -> 10; no dead units, so that no gradient is 0 by accident."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(61, 32), activation(), nn.Linear(32, 24), activation(), nn.Linear(24, 10))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
