"""What methods share that start denser and come down to their budget: shares of the schedule, the cubic curve between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dstee.methods.base import Method
from dstee.methods.context import Start, Update
from dstee.schedule import UpdateSchedule

__all__ = ["DenseToSparse", "check_phase", "check_share", "cubic_total", "update_at"]


@dataclass(frozen=True, kw_only=True)
class DenseToSparse(Method):
    """Starts dense, unless a subclass starts otherwise, and has reached its budget at the schedule's last update."""

    group = "dense-to-sparse"
    needs_stop = True
    starts_denser = True
    moves_budgets = True

    def start(self, s: Start) -> Mapping[str, Tensor]:
        return s.dense_masks()


def check_share(name: str, value: float, low: float = 0.0) -> None:
    """Raises ValueError unless ``low < value <= 1``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= 1:
        raise ValueError(f"{name} must be a number in ({low}, 1], a share of the schedule, got {value!r}")


def check_phase(begin: float, end: float) -> None:
    """Raises ValueError unless ``0 <= begin < end <= 1``."""
    check_share("end", end)
    if not 0 <= begin < end:
        raise ValueError(f"begin must be in [0, end) = [0, {end}), got {begin}")


def update_at(share: float, schedule: UpdateSchedule) -> int:
    """The first due step at or after this share of the schedule's last update; needs ``stop``."""
    number = (schedule.last_update or 0) // schedule.every
    return max(1, math.ceil(round(share * number, 9))) * schedule.every


def cubic_total(u: Update, start: float, begin: float, end: float, power: float = 3.0) -> int:
    """Active weights after the update: from the density ``start`` to the target (Zhu & Gupta 2017, eq. 1), never more than
    before it."""
    left = 1 - min(max((u.progress - begin) / (end - begin), 0.0), 1.0)
    above = max(start * sum(u.sizes) - u.target, 0.0)
    return min(u.total, u.target + round(above * left**power))
