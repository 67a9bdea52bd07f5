"""SET (Mocanu et al., sparse evolutionary training)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dstee.methods.actions import Action, Random, Swap
from dstee.methods.base import Method
from dstee.methods.context import Update
from dstee.methods.registry import register

__all__ = ["SET"]


@register
@dataclass(frozen=True)
class SET(Method):
    """SET: grow at random, by a hash of (seed, layer name, round, index); counts stay exact."""

    name = "SET"
    key = "set"
    swaps_schedule = True

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(grow_by=Random())]
