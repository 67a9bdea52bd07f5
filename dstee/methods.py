"""The sparse training methods: what an update ranks, and whether it replaces the step or follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from dstee.encoding import bonus_table
from dstee.sparsity_distribution import seed64

Order = Literal["after", "replace"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods share. All drop the active weights closest to zero; they differ in what they grow.

    Args:
        order: "after": a due step does SGD, then drops by the new weights and grows by the same gradient (ITOP, GraNet);
            "replace": it updates the mask instead of doing SGD (paper's Algorithm 1, RigL).
        regrow: weights dropped in an update are candidates for growth in it.
        reset_regrown: those that are dropped and regrown start at 0 instead of keeping their value.
    """

    order: Order = "after"
    regrow: bool = True
    reset_regrown: bool = False

    name: ClassVar[str]
    key: ClassVar[str]
    """Name on the command line and in checkpoints."""
    updates: ClassVar[bool] = True
    needs_counter: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    """Growth ranks the dense gradient."""

    def __post_init__(self) -> None:
        if self.order not in ("after", "replace"):
            raise ValueError(f"order must be 'after' or 'replace', got {self.order!r}")
        for name in ("regrow", "reset_regrown"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def bonus(self, t: int, round: int) -> Tensor | None:
        """Exploration bonus by counter for the update at step ``t`` after ``round`` others: float32 [round + 2], or None."""
        return None

    def grow_seeds(self, seed: int, names: Sequence[str], round: int) -> list[int] | None:
        """One signed 64-bit seed per layer where growth is random, else None."""
        return None

    def to_dict(self) -> dict[str, str | float | bool]:
        """Plain values for a checkpoint; :func:`method_from_dict` is the inverse."""
        return {"method": self.key, **asdict(self)}


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


@dataclass(frozen=True)
class RigL(Method):
    """RigL: grow by ``abs(g)``; an update replaces the step."""

    order: Order = field(default="replace", kw_only=True)

    name = "RigL"
    key = "rigl"
    needs_gradients = True


@dataclass(frozen=True)
class SET(Method):
    """SET: grow at random, by a hash of (seed, layer name, round, index); counts stay exact."""

    name = "SET"
    key = "set"

    def grow_seeds(self, seed: int, names: Sequence[str], round: int) -> list[int]:
        return [seed64("grow", seed, name, round) for name in names]


@dataclass(frozen=True)
class Static(Method):
    """The initial random mask, for good."""

    name = "static"
    key = "static"
    updates = False


METHODS: dict[str, type[Method]] = {cls.key: cls for cls in (DSTEE, RigL, SET, Static)}


def method_from_dict(values: Mapping[str, str | float | bool]) -> Method:
    """Inverse of :meth:`Method.to_dict`.

    Raises:
        ValueError: the method is unknown, or a value is missing, unknown or out of range.
    """
    rest = dict(values)
    key = rest.pop("method", None)
    if not isinstance(key, str) or key not in METHODS:
        raise ValueError(f"unknown method {key!r}, expected one of {', '.join(METHODS)}")
    try:
        return METHODS[key](**rest)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"not a {key} method: {dict(values)} ({error})") from None
