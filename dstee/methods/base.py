"""What a method decides: what an update ranks, and whether it replaces the step or follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

__all__ = ["Method", "Order"]

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
    """As people write it, in tables and messages."""
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

    @property
    def scaled_bonus(self) -> bool:
        """Whether :meth:`bonus` is in units of the gradient, a float64 table for :func:`dstee.ops.growth_scale` to scale."""
        return False

    def bonus(self, t: int, round: int) -> Tensor | None:
        """Exploration bonus by counter for the update at step ``t`` after ``round`` others: float32 [round + 2], or None."""
        return None

    def grow_seeds(self, seed: int, names: Sequence[str], round: int) -> list[int] | None:
        """One signed 64-bit seed per layer where growth is random, else None."""
        return None

    def to_dict(self) -> dict[str, str | float | bool]:
        """Plain values for a checkpoint; :func:`dstee.methods.method_from_dict` is the inverse."""
        return {"method": self.key, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Method:
        """The method with these fields, as :meth:`to_dict` has them but for "method".

        Raises:
            ValueError, TypeError: a value is missing, unknown or out of range.
        """
        return cls(**values)
