"""DST-EE (Huang et al., Dynamic Sparse Training via More Exploration)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dstee.encoding import bonus_table
from dstee.methods.base import Method
from dstee.methods.registry import register

__all__ = ["DSTEE"]


@register
@dataclass(frozen=True)
class DSTEE(Method):
    """DST-EE: grow by ``abs(g) + c * ln(t) / (N + eps)``, N the mask rounds in which the weight was active (paper, Eq. 1).

    ``c`` is tied to the scale of the gradients: 0 is RigL's growth; where ``c * ln(t) / (eps * (1 + eps))`` exceeds every
    gradient, weights that were never active come first.
    """

    c: float = 1e-3
    eps: float = 1.0

    name = "DST-EE"
    key = "dst-ee"
    needs_counter = True
    needs_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.c) and self.c >= 0):
            raise ValueError(f"c must be a finite number >= 0, got {self.c}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps must be a finite number > 0, got {self.eps}")

    @classmethod
    def paper(cls, c: float = 1e-3, eps: float = 1.0) -> DSTEE:
        """Algorithm 1 to the letter: an update replaces the step. The paper does not state its c and eps."""
        return cls(c, eps, order="replace")

    def bonus(self, t: int, round: int) -> Tensor:
        return bonus_table(self.c, self.eps, t, round)
