"""What the scripts for GPUs share with ``python -m bench``."""

from __future__ import annotations

from dstee.testing import assert_same_bits

from .cost import lines_touched
from .environment import describe
from .layers import Layers, make_layers
from .measure import summary


def quantiles(samples: list[float]) -> dict[str, float]:
    """Milliseconds: median, 20th and 80th percentile, and how many samples (seconds)."""
    figures = summary(samples)
    return {name: figures[name] for name in ("median_ms", "p20_ms", "p80_ms", "repeats")}


def require_same(name: str, actual: Layers, expected: Layers) -> None:
    """The gate: no time is reported for a contender whose result differs."""
    for field in ("params", "momenta", "mask_bits", "counts"):
        assert_same_bits(getattr(actual, field), getattr(expected, field), f"{name}: {field}")


__all__ = ["Layers", "describe", "lines_touched", "make_layers", "quantiles", "require_same"]
