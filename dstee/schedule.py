"""When the mask is updated and how many weights an update swaps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

__all__ = ["DROPS", "ConstantDrop", "CosineDrop", "Drop", "LinearDrop", "UpdateSchedule"]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], the share of active weights that one update swaps, got {value}")


@dataclass(frozen=True)
class ConstantDrop:
    """The same ``fraction`` at every update."""

    fraction: float
    needs_stop: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_share("fraction", self.fraction)

    def __call__(self, t: int, stop: int) -> float:
        return self.fraction


@dataclass(frozen=True)
class _Falling:
    """From ``initial`` at step 0 to ``floor`` at step ``stop``, and ``floor`` after it."""

    initial: float
    floor: float = 0.0
    needs_stop: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_share("initial", self.initial)
        if not 0 <= self.floor <= self.initial:
            raise ValueError(f"floor must be in [0, initial] = [0, {self.initial}], got {self.floor}")


@dataclass(frozen=True)
class CosineDrop(_Falling):
    """Half a cosine from ``initial`` at step 0 to ``floor`` at step ``stop`` (RigL; with a floor of 0.005: ITOP)."""

    def __call__(self, t: int, stop: int) -> float:
        return self.floor + (self.initial - self.floor) / 2 * (1 + math.cos(math.pi * min(t, stop) / stop))


@dataclass(frozen=True)
class LinearDrop(_Falling):
    """A straight line from ``initial`` at step 0 to ``floor`` at step ``stop``."""

    def __call__(self, t: int, stop: int) -> float:
        return self.floor + (self.initial - self.floor) * (1 - min(t, stop) / stop)


Drop = ConstantDrop | CosineDrop | LinearDrop
DROPS: dict[str, type[Drop]] = {"constant": ConstantDrop, "cosine": CosineDrop, "linear": LinearDrop}


@dataclass(frozen=True)
class UpdateSchedule:
    """An update falls on every optimizer step t with ``t % every == 0`` and ``0 < t < stop``; steps count from 1.

    Args:
        every: optimizer steps from one update to the next.
        stop: first step without updates, normally the length of the training; None never stops.
        drop: share of the active weights that an update swaps, over time. Left out, it is ``CosineDrop(0.3)`` where
            ``stop`` is given and ``ConstantDrop(0.3)`` where it is not.

    Raises:
        ValueError: a number is out of range, or ``drop`` falls towards ``stop`` and ``stop`` is None.
    """

    every: int = 100
    stop: int | None = None
    drop: Drop = None  # type: ignore[assignment]  # the default depends on stop

    def __post_init__(self) -> None:
        for name, steps in (("every", self.every), ("stop", self.stop)):
            if steps is None and name == "stop":
                continue
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                raise ValueError(f"{name} must be a number of optimizer steps, an int >= 1, got {steps!r}")
        if self.drop is None:
            object.__setattr__(self, "drop", ConstantDrop(0.3) if self.stop is None else CosineDrop(0.3))
        if type(self.drop) not in DROPS.values():
            raise ValueError(f"drop must be a ConstantDrop, CosineDrop or LinearDrop, got {self.drop!r}")
        if self.stop is None and self.drop.needs_stop:
            raise ValueError(
                f"{self.drop} falls towards the last step, but stop is None: give stop=number of training steps, "
                "or use ConstantDrop"
            )

    def is_due(self, t: int) -> bool:
        """True when step ``t`` updates the mask."""
        return t > 0 and t % self.every == 0 and (self.stop is None or t < self.stop)

    @property
    def last_update(self) -> int | None:
        """The last step with an update, 0 where there is none, None where they never stop."""
        return None if self.stop is None else (self.stop - 1) // self.every * self.every

    def fraction(self, t: int) -> float:
        """Share of the active weights that an update at step ``t`` swaps."""
        return self.drop(t, self.stop or 0)

    def swap_count(self, nnz: int, t: int) -> int:
        """k = ceil(fraction(t) * nnz) in float64: weights that an update at step ``t`` swaps in a layer of ``nnz``."""
        return min(max(math.ceil(self.fraction(t) * nnz), 0), nnz)

    def to_dict(self) -> dict[str, str | int | float]:
        """Plain values for a checkpoint; without "stop" when there is none."""
        kind = next(kind for kind, cls in DROPS.items() if type(self.drop) is cls)
        stop = {} if self.stop is None else {"stop": self.stop}
        return {"every": self.every, **stop, "drop": kind, **asdict(self.drop)}

    @classmethod
    def from_dict(cls, values: Mapping[str, str | int | float]) -> UpdateSchedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: a value is missing, unknown or out of range.
        """
        rest = dict(values)
        every, stop, kind = rest.pop("every", None), rest.pop("stop", None), rest.pop("drop", None)
        if not isinstance(kind, str) or kind not in DROPS:
            raise ValueError(f"unknown drop {kind!r} in the schedule, expected one of {', '.join(DROPS)}")
        if wrong := [name for name, value in rest.items() if type(value) not in (int, float)]:
            raise ValueError(f"{wrong[0]} of the schedule must be a number, got {rest[wrong[0]]!r}")
        try:
            return cls(every, stop, DROPS[kind](**rest))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"not a schedule: {dict(values)} ({error})") from None
