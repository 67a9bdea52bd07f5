"""The report's first pictures, one an op: how many times as long as dstee others take; of growth, time over size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .overview import WHAT, case_names, shown
from .plots import COLOURS, MARKERS, draw_lines, log_ticks, short, svg
from .results_file import Document, Row, best_of_ours, find
from .scaling_report import SWEEPS, curves
from .table import milliseconds, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST", "lead_pictures"]

MOST = 6  # cases in a picture: more than can be told apart help nobody
WIDTH = 8.0  # inches


class Panel(NamedTuple):
    caption: str
    draw: Callable[[Axes], None]
    height: float


def lead_pictures(document: Document) -> list[tuple[str, str]]:
    """(caption, SVG) of each op; none where no contender has a figure."""
    panels = [panel for op in WHAT if (panel := _ratios(document, op)) is not None] + _growth(document)
    return [(panel.caption, svg(_drawn(panel), WIDTH, panel.height)) for panel in panels]


def _drawn(panel: Panel) -> Callable[[Figure], None]:
    return lambda figure: panel.draw(figure.subplots())


def _ratios(document: Document, op: str) -> Panel | None:
    """A line for each contender, a marker for each case."""
    rows = find(document, op=op)
    whole = [(row, name) for row, name in zip(rows, case_names(rows), strict=True) if best_of_ours(row) is not None]
    if not whole:
        return None
    caption = WHAT[op] + (f" (the first {MOST} of {len(whole)} cases)" if len(whole) > MOST else "")
    cases = [_case(row, name) for row, name in whole[:MOST]]
    least = {name: min(found[name] for _, found in cases if name in found) for _, found in cases for name in found}
    names = sorted(least, key=lambda name: least[name], reverse=True)

    def draw(axes: Axes) -> None:
        from matplotlib.transforms import ScaledTranslation

        for i, (label, found) in enumerate(cases):
            y = [names.index(name) for name in found]
            axes.plot(list(found.values()), y, linestyle="none", marker=MARKERS[i], color=COLOURS[i], markersize=7, label=label)
        for i, name in enumerate(names):
            values = sorted(found[name] for _, found in cases if name in found)
            text = ratio(values[0]) if values[0] == values[-1] else f"{ratio(values[0])} to {ratio(values[-1])}"
            if name != "dstee":
                axes.annotate(text, (values[-1], i), xytext=(9, 0), textcoords="offset points", va="center")
        axes.axvline(1, color="#000000", linewidth=1)
        log_ticks(axes, "x")
        low, high = axes.dataLim.intervalx
        axes.set_xlim(min(low, 1) / 1.25, max(high, 1) * (max(high, 1) / min(low, 1)) ** 0.28 * 1.6)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_xlabel("times as long as dstee, log scale")
        below = axes.transAxes + ScaledTranslation(0, -0.55, axes.figure.dpi_scale_trans)  # inches: the axis has its place
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=below, borderaxespad=0)

    return Panel(caption, draw, 0.9 + 0.25 * len(names) + 0.22 * len(cases))


def _case(row: Row, name: str) -> tuple[str, dict[str, float]]:
    """Its label, and times as long as dstee by contender."""
    best = best_of_ours(row)
    assert best is not None
    found = {shown(one, result): result["median_ms"] for one, result in row["contenders"].items() if result["status"] == "ok"}
    base = found.pop(shown(best, row["contenders"][best]))
    label = f"{short(name)}: dstee {milliseconds(base)}"
    return label, {"dstee": 1.0, **{one: time / base for one, time in found.items()}}


def _growth(document: Document) -> list[Panel]:
    """Time over weights, or over what else was varied first, in the first data type of each op."""
    found = curves(document)
    panels = []
    for op in dict.fromkeys(curve.op for curve in found):
        of_op = [curve for curve in found if curve.op == op and curve.sweep != "data"]
        if not of_op:
            continue
        sweep = "n" if any(curve.sweep == "n" for curve in of_op) else of_op[0].sweep
        chosen = [curve for curve in of_op if curve.sweep == sweep]
        series = {c.short: [(x, one["median_ms"]) for x, _, one in found[c]] for c in chosen if c.dtype == chosen[0].dtype}
        panels.append(Panel(f"{WHAT.get(op, op)}: time over {SWEEPS[sweep]}", _curves(series, SWEEPS[sweep]), 3.2))
    return panels


def _curves(series: dict[str, list[tuple[float, float]]], over: str) -> Callable[[Axes], None]:
    return lambda axes: draw_lines(axes, series, over, "milliseconds")
