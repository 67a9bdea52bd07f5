"""Gradual magnitude pruning (Zhu & Gupta, To Prune, or Not to Prune, 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dstee.methods.actions import Action, KeepGlobal
from dstee.methods.context import Update
from dstee.methods.gradual import DenseToSparse, check_phase, cubic_total
from dstee.methods.registry import register

__all__ = ["GMP"]


@register
@dataclass(frozen=True, kw_only=True)
class GMP(DenseToSparse):
    """GMP: dense at first; each update keeps the largest weights of all layers together, fewer by a cubic curve.

    Args:
        begin, end: where the curve starts and reaches the target, as shares of the schedule's last update (ours: 0 and 1).
        power: of the curve; the authors' is 3.
    """

    begin: float = 0.0
    end: float = 1.0
    power: float = 3.0

    name = "GMP"
    key = "gmp"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_phase(self.begin, self.end)
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power must be a finite number > 0, got {self.power}")

    def plan(self, u: Update) -> Sequence[Action]:
        return [KeepGlobal(self.total)]

    def total(self, u: Update) -> int:
        return cubic_total(u, 1.0, self.begin, self.end, self.power)
