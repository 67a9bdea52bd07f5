"""When the mask is updated and how many weights an update swaps; own drop schedules enter with :func:`register_drop`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from dstee._lookup import load_plugins, look_up, refuse_unknown

__all__ = ["DROPS", "ConstantDrop", "CosineDrop", "Drop", "LinearDrop", "UpdateSchedule", "known_drops", "register_drop"]


class Drop(Protocol):
    """How much an update swaps, over time: a frozen dataclass under :func:`register_drop`, whose fields are numbers, texts or
    True and False."""

    key: ClassVar[str]
    """Name on the command line and in checkpoints."""
    needs_stop: ClassVar[bool]
    """Whether it means something only where the schedule has a ``stop``."""

    def __call__(self, t: int, stop: int) -> float:
        """Share in [0, 1] of the active weights that an update at step ``t`` swaps. ``stop`` is the schedule's, 0 where it has
        none."""
        ...


D = TypeVar("D", bound=type[Any])

DROPS: dict[str, type[Any]] = {}
"""What has been registered so far; :func:`known_drops` loads what installed packages offer, too."""


def register_drop(drop: D) -> D:
    """Class decorator, above ``@dataclass(frozen=True)``: schedules with a :class:`Drop` of this class can be saved and loaded,
    and ``dstee train --drop-schedule KEY`` takes it. Its fields ``initial`` or ``fraction`` get ``--drop-fraction`` there, and
    ``floor`` gets ``--drop-floor``; others keep their defaults.

    Raises:
        TypeError: it is no frozen dataclass, or has no ``key``, no ``needs_stop`` or no ``__call__``. ValueError: the key is
            taken, or a field is called every, stop or drop, as the schedule's own are.
    """
    name = getattr(drop, "__name__", repr(drop))
    if not isinstance(drop, type) or "__dataclass_params__" not in vars(drop) or not drop.__dataclass_params__.frozen:
        raise TypeError(f"{name} is no frozen dataclass: write @register_drop above @dataclass(frozen=True)")
    if "key" not in vars(drop) or not isinstance(drop.key, str) or not isinstance(getattr(drop, "needs_stop", None), bool):
        raise TypeError(f"{name} must have key = 'a name of its own' and needs_stop = True or False")
    if "__call__" not in dir(drop):
        raise TypeError(f"{name} must have __call__(self, t, stop), the share of active weights that an update at step t swaps")
    if taken := {field.name for field in dataclasses.fields(drop)} & {"every", "stop", "drop"}:
        raise ValueError(f"the field {min(taken)} of {name} is the schedule's own: call it something else")
    other = DROPS.get(drop.key, drop)
    if other is not drop:
        raise ValueError(f"the key {drop.key!r} of {name} is taken by {other.__name__}")
    DROPS[drop.key] = drop
    return drop


def known_drops() -> dict[str, type[Any]]:
    """All drop schedules by key, those of installed packages (entry points ``dstee.methods``) included."""
    load_plugins()
    return DROPS


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], the share of active weights that one update swaps, got {value}")


@register_drop
@dataclass(frozen=True)
class ConstantDrop:
    """The same ``fraction`` at every update."""

    fraction: float
    key: ClassVar[str] = "constant"
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


@register_drop
@dataclass(frozen=True)
class CosineDrop(_Falling):
    """Half a cosine from ``initial`` at step 0 to ``floor`` at step ``stop`` (RigL; with a floor of 0.005: ITOP)."""

    key: ClassVar[str] = "cosine"

    def __call__(self, t: int, stop: int) -> float:
        return self.floor + (self.initial - self.floor) / 2 * (1 + math.cos(math.pi * min(t, stop) / stop))


@register_drop
@dataclass(frozen=True)
class LinearDrop(_Falling):
    """A straight line from ``initial`` at step 0 to ``floor`` at step ``stop``."""

    key: ClassVar[str] = "linear"

    def __call__(self, t: int, stop: int) -> float:
        return self.floor + (self.initial - self.floor) * (1 - min(t, stop) / stop)


@dataclass(frozen=True)
class UpdateSchedule:
    """An update falls on every optimizer step t with ``t % every == 0`` and ``0 < t < stop``; steps count from 1.

    Args:
        every: optimizer steps from one update to the next.
        stop: first step without updates, normally the length of the training; None never stops.
        drop: share of the active weights that an update swaps, over time. Left out, it is ``CosineDrop(0.3)`` where
            ``stop`` is given and ``ConstantDrop(0.3)`` where it is not. An own one: :func:`dstee.register_drop`.

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
        kind = type(self.drop)
        if kind not in DROPS.values():
            names = ", ".join(cls.__name__ for cls in DROPS.values())
            raise ValueError(f"drop must be a {names}, or of a class under @dstee.register_drop, got {self.drop!r}")
        for name, value in asdict(self.drop).items():  # type: ignore[call-overload]  # register_drop takes dataclasses alone
            if type(value) not in (str, int, float, bool):
                raise ValueError(
                    f"{name} of {kind.__name__} must be a number, a text, True or False, which states hold, got {value!r}"
                )
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
        share = self.drop(t, self.stop or 0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(
                f"{self.drop} gave {share!r} at step {t}, expected a number in [0, 1], a share of the active weights"
            )
        return float(share)

    def swap_count(self, nnz: int, t: int) -> int:
        """k = ceil(fraction(t) * nnz) in float64: weights that an update at step ``t`` swaps in a layer of ``nnz``."""
        return min(max(math.ceil(self.fraction(t) * nnz), 0), nnz)

    def to_dict(self) -> dict[str, str | int | float]:
        """Plain values for a checkpoint; without "stop" when there is none."""
        stop = {} if self.stop is None else {"stop": self.stop}
        return {"every": self.every, **stop, "drop": self.drop.key, **asdict(self.drop)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, str | int | float]) -> UpdateSchedule:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: a value is missing, unknown or out of range.
        """
        rest = dict(values)
        every, stop, kind = rest.pop("every", None), rest.pop("stop", None), look_up("drop", DROPS, rest.pop("drop", None))
        fields = {field.name: field.type for field in dataclasses.fields(kind) if field.init}
        refuse_unknown(f"the drop {kind.key}", rest, fields)
        for name, value in rest.items():
            if fields[name] in (float, int, "float", "int") and type(value) not in (int, float):
                raise ValueError(f"{name} of the schedule must be a number, got {value!r}")
        try:
            return cls(every, stop, kind(**rest))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"not a schedule: {dict(values)} ({error})") from None
