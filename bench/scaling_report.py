"""How time grows, from the rows of one op with one thing varied.

A point of a curve is compared with the line through its two neighbours, straight where both axes are logarithmic: 1 lies on it,
2 took twice as long as they let expect. With odd data a point is compared with ordinary data of the same size instead. The
slope is that of log(time) over log(x) by least squares: 1 for weights means a flat time per weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .adversarial import ORDINARY
from .results_file import Document, Result, Row, find
from .table import aligned, milliseconds, printable

__all__ = ["BAD", "SWEEPS", "Curve", "Point", "Sheet", "above", "curves", "factors", "lines", "sheets", "slope", "text"]

SWEEPS = {
    "n": "weights", "layers": "layers", "small layers": "layers of 5,000 weights", "density": "density",
    "swap": "share of the active weights swapped", "threads": "threads", "data": "data",
}  # fmt: skip
BAD = 2.0
Point = tuple[float, Row, Result]


class Curve(NamedTuple):
    """What all points of a curve have in common. ``threads`` is 0 where they are what is varied."""

    op: str
    sweep: str
    name: str
    dtype: str
    threads: int

    @property
    def short(self) -> str:
        """What tells it from others of the same op and sweep."""
        threads = f", {self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        return f"{self.name}, {self.dtype}{threads}"


class Sheet(NamedTuple):
    """A table: all curves of one op, sweep and contender."""

    caption: str
    head: tuple[str, ...]
    lines: list[tuple[str, ...]]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def curves(document: Document) -> dict[Curve, list[Point]]:
    """(x, row, result), sorted by x."""
    found: dict[Curve, list[Point]] = {}
    for row in find(document, op="scaling"):
        key = row["key"]
        for name, one in row.get("contenders", {}).items():
            if one["status"] == "ok":
                threads = 0 if key["sweep"] == "threads" else key.get("threads", 0)
                curve = Curve(key["of"], key["sweep"], name, key.get("dtype", "float32"), threads)
                found.setdefault(curve, []).append((key["x"], row, one))
    return {key: sorted(points, key=lambda p: p[0]) for key, points in found.items()}


def factors(sweep: str, points: Sequence[Point]) -> list[float | None]:
    """For each point the ratio of its time to what its neighbours, or ordinary data, let expect; None where nothing does."""
    times = [one["median_ms"] for _, _, one in points]
    if sweep == "data":
        ordinary = [one["median_ms"] for _, row, one in points if row["key"]["case"] == ORDINARY]
        return [time / ordinary[0] if ordinary else None for time in times]
    logs = [math.log(x) for x, _, _ in points]
    found: list[float | None] = [None] * len(points)
    for i in range(1, len(points) - 1):
        share = (logs[i] - logs[i - 1]) / (logs[i + 1] - logs[i - 1])
        expected = math.log(times[i - 1]) * (1 - share) + math.log(times[i + 1]) * share
        found[i] = times[i] / math.exp(expected)
    return found


def sheets(document: Document) -> list[Sheet]:
    """One for each op, sweep and contender; for each of its curves the time, the time of a weight and the factor."""
    grouped: dict[tuple[str, str, str], dict[Curve, list[Point]]] = {}
    for curve, points in curves(document).items():
        grouped.setdefault(curve[:3], {})[curve] = points
    out = []
    for (op, sweep, name), found in grouped.items():
        head = [SWEEPS[sweep]]
        labels = {p[0]: p[1]["key"]["case"] if sweep == "data" else f"{p[0]:g}" for points in found.values() for p in points}
        columns: dict[float, list[str]] = {x: [label] for x, label in sorted(labels.items())}
        for curve, points in found.items():
            head += [curve.short.removeprefix(f"{name}, "), "ns each", "x ordinary" if sweep == "data" else "x line"]
            cells = {p[0]: _cells(p, factor) for p, factor in zip(points, factors(sweep, points), strict=True)}
            for x, line in columns.items():
                line += cells.get(x, ["", "", ""])
        out.append(Sheet(f"{op}, {name}, over {SWEEPS[sweep]}", tuple(head), [tuple(line) for line in columns.values()]))
    return out


def _cells(point: Point, factor: float | None) -> list[str]:
    _, row, one = point
    mark = "" if factor is None else f"{factor:.2f}" + ("!" if factor > BAD else " ")
    return [milliseconds(one["median_ms"]), f"{1e6 * one['median_ms'] / row['n']:.2f}", mark]


def above(document: Document) -> list[str]:
    """The points that are worse than :data:`BAD` times what is expected, worst first, and who has no number at all."""
    found = []
    for curve, points in curves(document).items():
        for (x, row, _), factor in zip(points, factors(curve.sweep, points), strict=True):
            if factor is not None and factor > BAD:
                where = row["key"]["case"] if curve.sweep == "data" else f"{SWEEPS[curve.sweep]} {x:g}"
                than = "ordinary data" if curve.sweep == "data" else "the line through its neighbours"
                found.append((factor, f"{curve.op}, {where}: {curve.short}: {factor:.1f} times {than}"))
    out = [text for _, text in sorted(found, reverse=True)]
    for row in find(document, op="scaling"):
        key, where = row["key"], f"{row['key']['of']}, {row['key'].get('case', '')}"
        if "error" in row:
            out.append(f"{where}: {row['error']}")
        for name, one in row.get("contenders", {}).items():
            if one["status"] not in ("ok", "skipped"):
                out.append(f"{where}: {name}, {key.get('dtype', 'float32')}: {one['status']}: {one['reason']}")
    return out


def lines(document: Document) -> list[str]:
    """One line per curve: slope over the whole range and over its upper half, time per weight at both ends."""
    out = []
    for curve, points in curves(document).items():
        if len(points) < 2 or curve.sweep == "data":
            continue
        x = [p[0] for p in points]
        y = [p[2]["median_ms"] for p in points]
        upper = max(2, (len(x) + 1) // 2)
        per = [1e6 * t / p[1]["n"] for t, p in zip(y, points, strict=True)]
        out.append(
            f"{curve.op}  {curve.short}  over {SWEEPS[curve.sweep]} {x[0]:g} to {x[-1]:g}: {milliseconds(y[0])} to "
            f"{milliseconds(y[-1])}, slope {slope(x, y):.2f}, upper half {slope(x[-upper:], y[-upper:]):.2f}; {per[0]:.2f} to "
            f"{per[-1]:.2f} ns each"
        )
    return out


def text(document: Document) -> str:
    """All tables, the slopes, and the points that stand out; empty where nothing was varied."""
    if not curves(document):
        return ""
    out = [
        "\ngrowth (x line: times the straight line through the two neighbours, both axes logarithmic; x ordinary: times "
        f"ordinary data of the same size; !: more than {BAD:g})"
    ]
    for sheet in sheets(document):
        out += ["", printable(sheet.caption), *aligned(sheet.head, sheet.lines)]
    out += ["\nslope of log time over log x (1 over weights: a flat time per weight)", *map(printable, lines(document))]
    found = above(document)
    out.append(f"\n{len(found)} to look at" + (":" if found else f": no point is more than {BAD:g} times what is expected"))
    return "\n".join([*out, *map(printable, found)])
