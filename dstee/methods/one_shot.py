"""One-shot magnitude pruning in the middle of a training (Han et al., Learning both Weights and Connections, 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dstee.methods.actions import Action, KeepGlobal
from dstee.methods.context import Update
from dstee.methods.gradual import DenseToSparse, check_share, update_at
from dstee.methods.registry import register
from dstee.schedule import UpdateSchedule

__all__ = ["OneShot"]


@register
@dataclass(frozen=True, kw_only=True)
class OneShot(DenseToSparse):
    """Dense until one update, which keeps the largest weights of all layers together; static from there on.

    Args:
        at: when, as a share of the schedule's last update: the first due step from there (ours: half).
    """

    at: float = 0.5

    name = "one-shot"
    key = "one-shot"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("at", self.at)

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        return schedule.is_due(t) and t == update_at(self.at, schedule)

    def plan(self, u: Update) -> Sequence[Action]:
        return [KeepGlobal(self.total)]

    def total(self, u: Update) -> int:
        return min(u.total, u.target)
