"""What tests take from the fast path of drop_grow_, so that small inputs reach the rare ways out of it.

The same limits as in csrc/test_limits.h.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TestLimits", "limits"]


@dataclass(frozen=True)
class TestLimits:
    """list_share: of the capacity of lists; tight_bounds: bounds from the sample that leave out weights which are selected."""

    __test__ = False  # not a test class of pytest

    list_share: float = 1.0
    tight_bounds: bool = False


limits = TestLimits()  # read at each call; tests replace it
