"""MEST (Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training Framework on the Edge, 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dstee.methods.actions import Action, Random, Swap
from dstee.methods.base import Method
from dstee.methods.context import Update
from dstee.methods.registry import register

__all__ = ["MEST"]


@register
@dataclass(frozen=True, kw_only=True)
class MEST(Method):
    """MEST: elastic mutation (EM), and with a soft memory bound (EM&S).

    EM drops ``exchange`` of each layer's budget and grows as many at random. EM&S drops what a layer has beyond its budget,
    then grows so many at random beyond it: they have until the next update to prove themselves. Half as many from ``halve_at``
    on, none at the last update before ``schedule.stop``, which leaves every layer at its budget. New weights start at 0. Dense
    layers take no part. The schedule's share of weights is not used.

    Args:
        soft: EM&S.
        exchange: as a share of the budget; default 0.2, with ``soft`` 0.5: the authors' bounds of sparsity at 90 %.
        lam: what goes has the lowest ``abs(w) + lam * abs(gradient)``; the authors' code has 0.
        halve_at: as a share of the schedule; the authors halve at epoch 90 of the 120 until they stop.
    """

    soft: bool = False
    exchange: float | None = None
    lam: float = 0.0
    halve_at: float = 0.75
    reset_regrown: bool = field(default=True)

    name = "MEST"
    key = "mest"
    needs_stop = True
    moves_budgets = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.soft, bool):
            raise ValueError(f"soft must be True or False, got {self.soft!r}")
        if self.exchange is None:
            object.__setattr__(self, "exchange", 0.5 if self.soft else 0.2)
        assert self.exchange is not None
        if not (math.isfinite(self.exchange) and self.exchange >= 0 and (self.soft or self.exchange <= 1)):
            raise ValueError(f"exchange must be a share >= 0 of the budget, without soft <= 1, got {self.exchange}")
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"lam must be a finite number >= 0, got {self.lam}")
        if not 0 <= self.halve_at <= 1:
            raise ValueError(f"halve_at must be in [0, 1], got {self.halve_at}")

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(drop=self._drop, grow=self._grow, drop_by=self._importance if self.lam else None, grow_by=Random())]

    def total(self, u: Update) -> int:
        return sum(after for _, after in self._bounds(u))

    def _bounds(self, u: Update) -> list[tuple[int, int]]:
        """Active weights of each layer between drop and growth, and after the growth."""
        assert self.exchange is not None
        share = 0.0 if u.progress == 1 else self.exchange * (0.5 if u.progress >= self.halve_at else 1.0)
        bounds = []
        for name, n in zip(u.names, u.sizes, strict=True):
            budget = u.budget[name]
            moved = min(math.ceil(share * budget), n) if budget < n else 0
            bounds.append((budget, min(budget + moved, n)) if self.soft else (budget - moved, budget))
        return bounds

    def _drop(self, u: Update) -> Tensor:
        nnz = u.nnz
        return (nnz - torch.tensor([low for low, _ in self._bounds(u)], device=nnz.device)).clamp(min=0)

    def _grow(self, u: Update) -> Tensor:
        left = u.nnz - u.dropping
        return torch.tensor([high for _, high in self._bounds(u)], device=left.device) - left

    def _importance(self, u: Update) -> list[Tensor]:
        found = []
        for layer, w in zip(u.layers, u.weights, strict=True):
            g = layer.grad
            found.append(w.float().abs() if g is None else w.float().abs() + self.lam * g.float().abs())
        return found
