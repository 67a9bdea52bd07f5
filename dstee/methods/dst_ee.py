"""DST-EE (Huang et al., Dynamic Sparse Training via More Exploration)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dstee.encoding import bonus_table
from dstee.methods.actions import Action, Swap
from dstee.methods.base import Method
from dstee.methods.context import Update
from dstee.methods.registry import register

__all__ = ["DSTEE"]


@register
@dataclass(frozen=True)
class DSTEE(Method):
    """DST-EE: grow by ``abs(g) + c * ln(t) / (N + eps)``, N the mask rounds in which the weight was active (paper, Eq. 1).

    Exactly one of ``c`` and ``c_rel`` is set; where neither is given, ``c_rel`` is 0.1.

    Args:
        c: weight of exploration as the paper has it. It is tied to the scale of the gradients: 0 is RigL's growth; where
            ``c * ln(t) / (eps * (1 + eps))`` exceeds every gradient, weights that were never active come first.
        eps: offset of the counters.
        c_rel: the same in units of the gradient, ``c = c_rel * s`` with s the abs(g) that growth without exploration would just
            take in the layer at this update (:func:`dstee.ops.growth_scale`): at ``c_rel * ln(t) / eps = 1`` a weight that was
            never active and has no gradient ties it. Multiplying the loss by a power of two changes nothing.
    """

    c: float | None = None
    eps: float = 1.0
    c_rel: float | None = field(default=None, kw_only=True)

    name = "DST-EE"
    key = "dst-ee"
    needs_counter = True
    swaps_schedule = True
    needs_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.c is not None and self.c_rel is not None:
            raise ValueError(
                f"c and c_rel are both given, {self.c} and {self.c_rel}: c_rel is c in units of the gradient; pass one"
            )
        if self.c is None and self.c_rel is None:
            object.__setattr__(self, "c_rel", 0.1)
        for name in ("c", "c_rel"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be a finite number > 0, got {self.eps}")

    @classmethod
    def paper(cls, c: float = 1e-3, eps: float = 1.0) -> DSTEE:
        """Algorithm 1 to the letter: an update replaces the step. The paper does not state its c and eps."""
        return cls(c, eps, order="replace")

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(bonus=self.bonus(u.t, u.round))]

    def bonus(self, t: int, round: int) -> Tensor:
        """Exploration bonus by counter for the update at step ``t`` after ``round`` others: [round + 2], float32 by ``c``, or
        float64 in units of the gradient by ``c_rel``."""
        if self.c is not None:
            return bonus_table(self.c, self.eps, t, round)
        assert self.c_rel is not None
        return bonus_table(self.c_rel, self.eps, t, round, dtype=torch.float64)

    def to_dict(self) -> dict[str, str | float | bool]:
        """Of ``c`` and ``c_rel`` the one that is set."""
        return {name: value for name, value in super().to_dict().items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DSTEE:
        if "c" not in values and "c_rel" not in values:
            raise ValueError("neither c nor c_rel is given, expected one of them")
        return cls(**values)
