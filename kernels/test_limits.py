"""Limits that tests set, so that small layers reach what is rare in practice: full lists, and a sample that misled."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TestLimits"]


@dataclass(frozen=True)
class TestLimits:
    """list_share: of the lists' capacity; missed_bounds: bounds from the sample that reject weights to be selected."""

    __test__ = False  # not a test class of pytest

    list_share: float = 1.0
    missed_bounds: bool = False


limits = TestLimits()  # of the calls from now on
