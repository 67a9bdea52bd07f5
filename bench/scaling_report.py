"""How time grows, from the rows of one op with one thing varied.

The slope is that of log(time) over log(x) by least squares: 1 for weights means a flat time per weight. Time per weight is
printed beside it, since caches and fixed costs bend the line at its lower end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .results_file import Document, Result, Row, find
from .table import milliseconds

__all__ = ["SWEEPS", "curves", "lines", "slope", "text"]

SWEEPS = {"n": "weights", "layers": "layers", "density": "density", "threads": "threads"}
Point = tuple[float, Row, Result]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curves(document: Document) -> dict[tuple[str, str, str], list[Point]]:
    """(op, sweep, contender) -> (x, row, result), sorted by x."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for row in find(document, op="scaling"):
        for name, one in row.get("contenders", {}).items():
            if one["status"] == "ok":
                found.setdefault((row["key"]["of"], row["key"]["sweep"], name), []).append((row["key"]["x"], row, one))
    return {key: sorted(points, key=lambda p: p[0]) for key, points in found.items()}


def lines(document: Document) -> list[str]:
    """One line per curve: slope over the whole range and over its upper half, time per weight at both ends."""
    out = []
    for (op, sweep, name), points in curves(document).items():
        if len(points) < 2:
            continue
        x = [p[0] for p in points]
        y = [p[2]["median_ms"] for p in points]
        upper = max(2, (len(x) + 1) // 2)
        per = [1e6 * t / p[1]["n"] for t, p in zip(y, points, strict=True)]
        out.append(
            f"{op:10} {name:11} over {SWEEPS[sweep]:8} {x[0]:g} to {x[-1]:g}: {milliseconds(y[0])} to {milliseconds(y[-1])}, "
            f"slope {slope(x, y):.2f}, upper half {slope(x[-upper:], y[-upper:]):.2f}; {per[0]:.2f} to {per[-1]:.2f} ns each"
        )
    return out


def text(document: Document) -> str:
    """All lines under a headline; empty where nothing was varied."""
    found = lines(document)
    head = "\ngrowth (slope of log time over log x; 1 over weights: a flat time per weight)"
    return "\n".join([head, *found]) if found else ""
