"""GaP (Ma et al., Effective Model Sparsification by Scheduled Grow-and-Prune Methods, 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dstee.methods.actions import Action, SetDensity
from dstee.methods.context import Start, Update
from dstee.methods.gradual import DenseToSparse, update_at
from dstee.methods.registry import register
from dstee.schedule import UpdateSchedule

__all__ = ["GaP"]


@register
@dataclass(frozen=True, kw_only=True)
class GaP(DenseToSparse):
    """S-GaP: the layers in order form groups; one group after the other is dense, then pruned by magnitude to its budget.

    There are ``groups * cycles`` phases of equal length up to the schedule's last update, which leaves every layer at its
    budget. Weights that come start at 0. With fewer layers than groups each is a group, and the phases go on round them.

    Args:
        groups: of about as many layers each; the authors' 4 for ResNet-50.
        cycles: rounds through the groups (ours).

    Raises:
        ValueError: the schedule has fewer updates than there are phases.
    """

    groups: int = 4
    cycles: int = 2

    name = "GaP"
    key = "gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("groups", "cycles"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int >= 1, got {value!r}")

    def start(self, s: Start) -> Mapping[str, Tensor]:
        self._ends(s.schedule)
        dense = self._group(list(s.nnz), 0)
        return s.random_masks({name: s.weights[name].numel() if name in dense else n for name, n in s.nnz.items()})

    def due(self, t: int, schedule: UpdateSchedule) -> bool:
        return t in self._ends(schedule)

    def plan(self, u: Update) -> Sequence[Action]:
        return [SetDensity(self._wanted(u))]

    def total(self, u: Update) -> int:
        return sum(self._wanted(u).values())

    def _ends(self, schedule: UpdateSchedule) -> list[int]:
        phases = self.groups * self.cycles
        updates = (schedule.last_update or 0) // schedule.every
        if updates < phases:
            raise ValueError(
                f"GaP has {phases} phases (groups={self.groups} * cycles={self.cycles}), but {schedule} only {updates} updates "
                "to end them: update more often, or lower groups or cycles"
            )
        return [update_at(i / phases, schedule) for i in range(1, phases + 1)]

    def _group(self, names: Sequence[str], phase: int) -> set[str]:
        groups = min(self.groups, len(names))
        return {name for i, name in enumerate(names) if i * groups // len(names) == phase % groups}

    def _wanted(self, u: Update) -> dict[str, int]:
        ends = self._ends(u.schedule)
        phase = sum(end <= u.t for end in ends)  # that begins now
        dense = self._group(list(u.budget), phase) if phase < len(ends) else set()
        return {name: n if name in dense else u.budget[name] for name, n in zip(u.names, u.sizes, strict=True)}
