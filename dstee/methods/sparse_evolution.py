"""SET (Mocanu et al., sparse evolutionary training)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dstee.methods.base import Method
from dstee.methods.registry import register
from dstee.sparsity_distribution import seed64

__all__ = ["SET"]


@register
@dataclass(frozen=True)
class SET(Method):
    """SET: grow at random, by a hash of (seed, layer name, round, index); counts stay exact."""

    name = "SET"
    key = "set"

    def grow_seeds(self, seed: int, names: Sequence[str], round: int) -> list[int]:
        return [seed64("grow", seed, name, round) for name in names]
