"""SNFS's ``Masking`` in plain torch, with the original's attributes and exact totals: one weight at a time, by Fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PlainSNFS", "parts"]


def parts(budget: int, shares: list[float], room: list[int]) -> list[int]:
    """What each layer grows: in proportion by largest remainder, then one by one to the layer that got fewest of the rest."""
    known = [Fraction(s) for s in shares] if any(shares) else [Fraction(1)] * len(shares)
    exact = [budget * s / sum(known) for s in known]
    found = [math.floor(e) for e in exact]
    for i in sorted(range(len(found)), key=lambda i: found[i] - exact[i])[: budget - sum(found)]:
        found[i] += 1
    caps = [r * 99 // 100 for r in room]
    found = [min(f, c) for f, c in zip(found, caps, strict=True)]
    for limits in (caps, room):
        extra = [0] * len(found)
        while sum(found) < budget and any(f < c for f, c in zip(found, limits, strict=True)):
            i = min((i for i in range(len(found)) if found[i] < limits[i]), key=lambda i: (extra[i], i))
            extra[i], found[i] = extra[i] + 1, found[i] + 1
    return found


class PlainSNFS:
    """Prunes by magnitude, grows by momentum; ``masks`` are float tensors, given at the start."""

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float, redistribution: str, every: int) -> None:
        self.optimizer, self.prune_rate, self.every = optimizer, rate, every
        self.prune_mode, self.growth_mode, self.redistribution_mode = "magnitude", "momentum", redistribution
        self.redistribution_func = self.prune_func = self.growth_func = None
        self.modules: list[nn.Module] = []
        self.masks: dict[str, Tensor] = {}
        self.name2nonzeros: dict[str, int] = {}
        self.name2zeros: dict[str, int] = {}
        self.name2removed: dict[str, int] = {}
        self.name2variance: dict[str, float] = {}
        self.name2prune_rate: dict[str, float] = {}
        self.total_removed = self.total_nonzero = self.steps = 0
        self.name_to_32bit: dict[str, Tensor] = {}

    def add_module(self, module: nn.Module, masks: dict[str, Tensor]) -> None:
        self.modules.append(module)
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.apply_mask()

    def weights(self) -> dict[str, Tensor]:
        return {name: p for module in self.modules for name, p in module.named_parameters() if name in self.masks}

    def apply_mask(self) -> None:
        for name, p in self.weights().items():
            p.data = p.data * self.masks[name]

    def step(self) -> None:
        self.optimizer.step()
        self.apply_mask()
        self.steps += 1
        if self.steps % self.every == 0:
            self.truncate_weights()

    def momentum(self, p: Tensor) -> Tensor:
        state: dict[str, Any] = self.optimizer.state[p]
        if "exp_avg" in state:
            return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
        return state["momentum_buffer"]

    def measure(self, p: Tensor, mask: Tensor) -> float:
        if self.redistribution_mode == "momentum":
            return float(self.momentum(p)[mask.bool()].double().abs().mean())
        if self.redistribution_mode == "magnitude":
            return float(p.data[mask.bool()].double().abs().mean())
        return float((p.data != 0).sum()) if self.redistribution_mode == "nonzero" else float(p.numel())

    def calc_growth_redistribution(self) -> list[int]:
        names = list(self.masks)
        room = [self.name2zeros[name] + self.name2removed[name] for name in names]
        return parts(sum(self.name2removed.values()), [self.name2variance[name] for name in names], room)

    def truncate_weights(self) -> None:
        weights = self.weights()
        self.name2variance = {name: self.measure(p, self.masks[name]) for name, p in weights.items()}
        mean = sum(self.name2variance.values()) / len(weights)
        for name, p in weights.items():
            on = int(self.masks[name].sum())
            self.name2nonzeros[name], self.name2zeros[name] = on, p.numel() - on
            rate, sparsity = self.prune_rate, 1 - on / p.numel()
            if sparsity < 0.2 and self.name2variance[name] > mean:
                rate = min(rate, sparsity)
            self.name2removed[name] = math.ceil(rate * on)
            smallest = sorted(
                (abs(float(p.data.flatten()[i])), i) for i in self.masks[name].flatten().nonzero().flatten().tolist()
            )
            for _, i in smallest[: self.name2removed[name]]:
                self.masks[name].view(-1)[i] = 0
        for (name, p), number in zip(weights.items(), self.calc_growth_redistribution(), strict=True):
            signal = self.momentum(p).flatten()
            free = (self.masks[name].flatten() == 0).nonzero().flatten().tolist()
            for i in sorted(free, key=lambda i: (-abs(float(signal[i])), i))[:number]:
                self.masks[name].view(-1)[i] = 1
        self.apply_mask()
