"""What the tests of compat share: the installed originals, a re-implementation of ITOP's ``Masking``, and a small task."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.contenders import rigl_torch


def original_rigl() -> Any:
    """rigl-torch's module; the test skips where it is not installed."""
    pytest.importorskip("rigl_torch", reason="rigl-torch is not installed: pip install --no-deps rigl-torch==0.5.2")
    return rigl_torch.load()


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Small layers: threads would cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: 1797 images of 64 pixels in [0, 1], and their labels."""
    data = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed: pip install 'dstee[cli]'")
    X, y = data.load_digits(return_X_y=True)
    return torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)


def convnet(seed: int = 0, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """For the digits: four weights (72, 576, 4096, 320)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


def batches(steps: int, size: int = 64) -> Any:
    """(images, labels), the same at every call."""
    X, y = digits()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        chosen = torch.randint(0, len(X), (size,), generator=generator)
        yield X[chosen], y[chosen]


def accuracy(model: nn.Module) -> float:
    X, y = digits()
    with torch.no_grad():
        return float((model(X).argmax(1) == y).float().mean())


def namespace(**values: Any) -> argparse.Namespace:
    """``args`` as ITOP's scripts have it."""
    return argparse.Namespace(**({"fix": False, "update_frequency": 1} | values))


class ItopMasking:
    """A plain re-implementation of ITOP's ``Masking`` from its description, on the CPU: what ``exact="legacy"`` must equal."""

    def __init__(self, optimizer: torch.optim.Optimizer, death_rate: float, death_mode: str, growth_mode: str, every: int):
        self.optimizer, self.death_rate, self.death_mode, self.growth_mode = optimizer, death_rate, death_mode, growth_mode
        self.prune_every_k_steps = every
        self.modules: list[nn.Module] = []
        self.masks: dict[str, Tensor] = {}
        self.fired_masks: dict[str, Tensor] = {}
        self.name2nonzeros: dict[str, float] = {}
        self.name2zeros: dict[str, float] = {}
        self.num_remove: dict[str, int] = {}
        self.steps = 0

    def add_module(self, module: nn.Module, density: float) -> None:
        self.modules.append(module)
        weights = {name: p for name, p in module.named_parameters() if "bias" not in name}
        self.masks = {name: (torch.rand(p.shape) < density).float() for name, p in weights.items()}
        self.apply_mask()
        self.fired_masks = {name: mask.clone() for name, mask in self.masks.items()}

    def step(self) -> None:
        self.optimizer.step()
        self.apply_mask()
        self.steps += 1
        if self.steps % self.prune_every_k_steps == 0:
            self.truncate_weights()
            self.fired_masks_update()

    def weights(self) -> dict[str, Tensor]:
        return {name: p for module in self.modules for name, p in module.named_parameters() if name in self.masks}

    def apply_mask(self) -> None:
        for name, p in self.weights().items():
            p.data = p.data * self.masks[name]
            state = self.optimizer.state[p]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = state["momentum_buffer"] * self.masks[name]

    def truncate_weights(self) -> None:
        weights = self.weights()
        for name, p in weights.items():
            before = int(self.masks[name].sum())
            self.name2nonzeros[name], self.name2zeros[name] = before, p.numel() - before
            self.masks[name] = self.dead(self.masks[name], p.data, p.grad, math.ceil(self.death_rate * before)).float()
            self.num_remove[name] = before - int(self.masks[name].sum())
        for name, p in weights.items():
            self.masks[name] = self.grown(name, p, self.num_remove[name]).float()
        self.apply_mask()

    def dead(self, mask: Tensor, w: Tensor, g: Tensor | None, remove: int) -> Tensor:
        asleep = int((mask == 0).sum())
        if self.death_mode == "magnitude":
            if remove == 0:
                return w != 0
            return w.abs() > w.abs().flatten().sort().values[asleep + remove - 1]
        if self.death_mode == "Taylor_FO":
            assert g is not None
            order = ((w * g) ** 2).flatten().sort().indices
            mask = mask.clone()
            mask.view(-1)[order[: asleep + remove]] = 0
            return mask
        half = math.ceil(remove / 2)
        up, down = w[w > 0].sort().values, w[w < 0].sort().values
        return ((w > 0) & (w > up[min(half, len(up)) - 1])) | ((w < 0) & (w < down[min(half, len(down)) - 1]))

    def grown(self, name: str, p: Tensor, wanted: int) -> Tensor:
        mask, fired = self.masks[name].clone(), self.fired_masks[name]
        empty = int((mask == 0).sum())
        if self.growth_mode == "random":
            return (mask != 0) | (torch.rand(mask.shape) < wanted / empty) if empty else mask
        if self.growth_mode == "random_unfired":
            never = (fired.flatten() == 0).nonzero().flatten()
            if wanted <= len(never):
                mask.view(-1)[never[torch.randperm(len(never))[:wanted]]] = 1
                return mask
            mask.view(-1)[never] = 1
            return (mask != 0) | (torch.rand(mask.shape) < (wanted - len(never)) / int((mask == 0).sum()))
        signal = p.grad if self.growth_mode == "gradient" else self.optimizer.state[p]["momentum_buffer"]
        assert signal is not None
        order = (signal * (mask == 0)).abs().flatten().sort(descending=True).indices
        mask.view(-1)[order[:wanted]] = 1
        return mask

    def fired_masks_update(self) -> None:
        for name, mask in self.masks.items():
            self.fired_masks[name] = ((self.fired_masks[name] != 0) | (mask != 0)).byte()
