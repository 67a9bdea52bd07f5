"""Seeds and settings as titles and footers call them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["seed_list", "setting_text"]


def setting_text(name: str, value: Any) -> str:
    """``98 %``, ``mnist``, ``c=0.1``: the value of a setting, as a title."""
    if name == "sparsity" and isinstance(value, (int, float)):
        return f"{100 * value:.6g} %"
    shown = "x".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    return shown if name == "data" else f"{name}={shown}"


def seed_list(seeds: Iterable[int]) -> str:
    """``0-4, 7``: seeds in order, neighbours from three on drawn together."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and seed == found[-1][-1] + 1:
            found[-1].append(seed)
        else:
            found.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found)
