"""The report's one table in front: for each case how long dstee takes, and how many times as long the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .results_file import Document, Result, Row, best_of_ours, find
from .scaling_report import SWEEPS, Curve, Point, curves
from .table import milliseconds, ratio

__all__ = ["WHAT", "Line", "case_names", "lines", "shown"]

WHAT = {
    "drop_grow": "mask update", "masked_sgd": "masked step", "step": "whole training step",
    "host": "after backward(), small network",
}  # fmt: skip


class Line(NamedTuple):
    """A case. ``others``: name and times as long, the fastest first; ``lost``: who has no figure although it was tried."""

    what: str
    case: str
    dstee: str
    others: list[tuple[str, str]]
    lost: list[str]


def case_names(rows: list[Row]) -> list[str]:
    """What tells the cases of one op apart: the name, the density, and what is not the same or the default in all of them."""
    many_threads = len({row["key"].get("threads") for row in rows}) > 1
    many_swaps = len({row["key"].get("swap") for row in rows}) > 1
    return [_case_name(row, many_threads, many_swaps) for row in rows]


def _case_name(row: Row, with_threads: bool, with_swap: bool) -> str:
    key = row["key"]
    parts = [key.get("case", "")]
    if "density" in key:
        parts.append(f"{100 * key['density']:g} % active")
    if key.get("dtype", "float32") != "float32":
        parts.append(key["dtype"])
    if key.get("batch"):
        parts.append(f"batch {key['batch']}")
    if with_swap and "swap" in key:
        parts.append(f"{100 * key['swap']:g} % swapped")
    if with_threads and "threads" in key:
        parts.append(_threads(key["threads"]))
    if key.get("device", "cpu") != "cpu":
        parts.append(key["device"])
    return ", ".join(part for part in parts if part)


def shown(name: str, one: Result) -> str:
    """The name; that of another backend of dstee says so."""
    return f"dstee's {name}" if one.get("ours") and name != "dstee" else name


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n != 1 else ''}"


def lines(document: Document) -> Iterator[Line]:
    """All cases, those of one op together; of growth a line for each curve."""
    for op, what in WHAT.items():
        rows = find(document, op=op)
        for row, case in zip(rows, case_names(rows), strict=True):
            yield _line(row, what, case)
    yield from _growth(document)


def _line(row: Row, what: str, case: str) -> Line:
    best = best_of_ours(row)
    found = row.get("contenders", {})
    ok = sorted((one["median_ms"], shown(name, one)) for name, one in found.items() if one["status"] == "ok" and name != best)
    lost = [f"{name}: no figure, {one['status']}" for name, one in found.items() if one["status"] not in ("ok", "skipped")]
    if "error" in row:
        lost.append(row["error"])
    if best is None:
        return Line(what, case, "no figure", [(name, milliseconds(time)) for time, name in ok], lost)
    base = found[best]["median_ms"]
    return Line(what, case, milliseconds(base), [(name, ratio(time / base)) for time, name in ok], lost)


def _growth(document: Document) -> Iterator[Line]:
    """Of each op and sweep native's first data type with the most threads, and the range of the others' ratios to it."""
    found = curves(document)
    chosen: dict[tuple[str, str], Curve] = {}
    for curve in found:
        first = chosen.get((curve.op, curve.sweep), curve)
        if curve.name == "native" and curve.dtype == first.dtype and curve.threads >= first.threads:
            chosen[curve.op, curve.sweep] = curve
    for (op, sweep), curve in chosen.items():
        points = found[curve]
        times = [one["median_ms"] for _, _, one in points]
        low, high = points[0], points[-1]
        over = "odd and ordinary data" if sweep == "data" else f"{SWEEPS[sweep]} from {low[0]:,g} to {high[0]:,g}"
        case = ", ".join([over, curve.dtype, *([_threads(curve.threads)] if curve.threads else [])])
        if sweep == "data":
            times.sort()
        others = [
            (other.name, _between(points, found[other]))
            for other in found
            if other._replace(name="native") == curve and other.name != "native"
        ]
        yield Line(f"{WHAT[op]}, growth", case, f"{milliseconds(times[0])} to {milliseconds(times[-1])}", others, [])


def _between(ours: list[Point], theirs: list[Point]) -> str:
    base = {x: one["median_ms"] for x, _, one in ours}
    found = sorted(one["median_ms"] / base[x] for x, _, one in theirs if x in base)
    if not found:
        return "elsewhere"
    return ratio(found[0]) if len(found) == 1 else f"{ratio(found[0])} to {ratio(found[-1])}"
