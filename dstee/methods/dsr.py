"""DSR (Mostafa & Wang, Parameter Efficient Training of Deep CNNs by Dynamic Sparse Reparameterization, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dstee.allocation import allocate
from dstee.methods.actions import Action, Random, Swap
from dstee.methods.base import Method
from dstee.methods.context import Update
from dstee.methods.registry import register

__all__ = ["DSR"]


@register
@dataclass(frozen=True, kw_only=True)
class DSR(Method):
    """DSR: drop what is below one threshold in all layers; grow as many at random, layers in proportion to what they keep.

    The threshold H is doubled after an update that found fewer than 90 % of the wanted number below it, and halved after one
    that found more than 110 %. A layer that has lost all of its weights gets none back while others have places. Just dropped
    weights do not come back; where so few are inactive that what is dropped would find no place, layers drop less, each in
    proportion. The schedule says when; its share of weights is not used.

    Args:
        threshold: H at the first update; the authors' 1e-3.
        share: of all active weights, how many an update should drop. The authors give a number for each network (600 by
            default); a share, and its value, are ours.
    """

    threshold: float = 1e-3
    share: float = 0.1
    regrow: bool = field(default=False)

    name = "DSR"
    key = "dsr"
    moves_budgets = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "share"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")

    def initial_numbers(self) -> dict[str, float]:
        return {"threshold": self.threshold}

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(drop=self._drop, grow=self._grow, grow_by=Random())]

    def _drop(self, u: Update) -> Tensor:
        below = u.count_below(u.numbers["threshold"])
        return below if self.regrow else allocate(u.inactive.sum(), below, below)

    def _grow(self, u: Update) -> Tensor:
        """Here the threshold changes, for the next update."""
        drop, nnz, limit = u.dropping, u.nnz, u.numbers["threshold"]
        found, wanted = u.count_below(limit).sum(), self.share * nnz.sum().double()
        factor = torch.where(found < 0.9 * wanted, 2.0, torch.where(found > 1.1 * wanted, 0.5, 1.0))
        u.numbers["threshold"] = limit * factor
        return allocate(drop.sum(), nnz - drop, u.inactive + drop if self.regrow else u.inactive)
