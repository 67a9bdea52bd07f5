"""Plots of a result file as SVG text. Told apart by marker, dash and hatch as well as by colour; text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from .results_file import Document, Row, best_of_ours, find, title
from .scaling_report import SWEEPS, curves
from .table import milliseconds, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS", "MARKERS", "bandwidth", "bars", "draw_lines", "growth", "lines", "log_ticks", "over_size", "pictures", "short",
    "step_bars", "svg",
]  # fmt: skip

COLOURS = ("#0b5394", "#b45f06", "#38761d", "#741b47", "#444444", "#0c8599", "#a61c00", "#7f6000", "#351c75", "#5b7f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, object] = {
    "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "font.family": "sans-serif", "text.parse_math": False, "hatch.linewidth": 0.6, "svg.hashsalt": "dstee",
}  # fmt: skip

ROOM = 0.15  # inches beside the text: the reader's font may be wider than the one that is measured here
Draw = Callable[["Figure"], None]


def svg(draw: Draw, width: float, height: float) -> str:
    """The picture as an ``<svg>`` element: no XML header, no metadata, no reference to anything outside."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=ROOM))
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # inside HTML no name space is needed


def log_ticks(axes: Axes, which: Literal["x", "y"]) -> None:
    """A log axis with plain numbers at 1, 10, 100 and, where it covers little, at 2 and 5 between."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if which == "x":
        axes.set_xscale("log")
        axis: Axis = axes.xaxis
        low, high = axes.dataLim.intervalx
    else:
        axes.set_yscale("log")
        axis = axes.yaxis
        low, high = axes.dataLim.intervaly
    narrow = 0 < low < high and high / low < 30
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def short(text: str, limit: int = 34) -> str:
    """At most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def bars(row: Row) -> str | None:
    """Median times of one row on a log axis, 20th to 80th percentile as whiskers, ratio to the best backend as text."""
    ok = {name: one for name, one in row.get("contenders", {}).items() if one["status"] == "ok"}
    ours = best_of_ours(row)
    if not ok or ours is None:
        return None
    base, roof = ok[ours]["median_ms"], row.get("roof_ms")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(ok)[::-1]
        for i, name in enumerate(names):
            one = ok[name]
            mine = one.get("ours")
            colour, hatch = (COLOURS[0], "") if mine else ("#c9c9c9", "//")
            axes.barh(i, one["median_ms"], color=colour, hatch=hatch, edgecolor="#222222", linewidth=0.8, height=0.62)
            low, high = one["median_ms"] - one["p20_ms"], one["p80_ms"] - one["median_ms"]
            axes.errorbar(one["median_ms"], i, xerr=[[max(0, low)], [max(0, high)]], color="#000000", capsize=3, linewidth=1)
            shown = milliseconds(one["median_ms"]) + ("" if name == ours else f", {ratio(one['median_ms'] / base)}")
            axes.annotate(
                shown, (max(one["p80_ms"], one["median_ms"]), i), xytext=(8, 0), textcoords="offset points", va="center"
            )
        if roof is not None:
            axes.axvline(roof, color="#000000", linestyle="--", linewidth=1)
            axes.text(roof, 1.01, "roof", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        log_ticks(axes, "x")
        top = max(one["p80_ms"] for one in ok.values())
        least = min([one["p20_ms"] for one in ok.values()] + ([] if roof is None else [roof]))
        axes.set_xlim(least / 2, top * (top / least) ** 0.55 * 2)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_yticks(range(len(names)), [short(n) for n in names])
        axes.grid(False, axis="y")
        dashed = "" if roof is None else "dashed: the roof; "
        axes.set_xlabel(f"milliseconds, log scale ({dashed}whiskers: 20th to 80th percentile)")

    return svg(draw, 9, 1.1 + 0.36 * len(ok))


def lines(series: dict[str, list[tuple[float, float]]], x: str, y: str, dashed: dict[str, float] | None = None) -> str | None:
    """Log-log curves by name; ``dashed``: horizontal lines with a name."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None

    return svg(lambda figure: draw_lines(figure.subplots(), series, x, y, dashed), 9, 3.6)


def draw_lines(
    axes: Axes, series: dict[str, list[tuple[float, float]]], x: str, y: str, dashed: dict[str, float] | None = None
) -> None:
    """Log-log curves and their legend, into ``axes``."""
    for i, (name, points) in enumerate(series.items()):
        axes.plot(*zip(*points, strict=True), color=COLOURS[i % 10], marker=MARKERS[i % 10], linestyle=DASHES[i % 4],
                  markersize=5, label=short(name))  # fmt: skip
    for name, value in (dashed or {}).items():
        axes.axhline(value, color="#000000", linestyle=(0, (5, 3)), linewidth=1, label=name)
    log_ticks(axes, "x")
    log_ticks(axes, "y")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def over_size(document: Document, op: str) -> str | None:
    """Time over the number of weights, where rows of the op differ in it."""
    return lines(_by_size(document, op, "median_ms"), "weights", "milliseconds")


def bandwidth(document: Document, op: str) -> str | None:
    """The roof's bytes over the time, against the roof."""
    found: dict[str, list[float]] = {}
    for r in find(document, op=op):
        if "roof" in r:
            by_read = r.get("roof_by") == "pairs"
            found.setdefault("roof (read)" if by_read else "roof (copy)", []).append(
                r["roof"]["read_gb_s" if by_read else "copy_gb_s"]
            )
    top = {name: sorted(rates)[len(rates) // 2] for name, rates in found.items()}
    return lines(_by_size(document, op, "gb_s"), "weights", "GB/s", top)


def _by_size(document: Document, op: str, field: Literal["median_ms", "gb_s"]) -> dict[str, list[tuple[float, float]]]:
    rows = [r for r in find(document, op=op) if "roof" in r]
    if len({r["n"] for r in rows}) < 2:
        return {}
    density = rows[0]["key"]["density"]
    found: dict[str, list[tuple[float, float]]] = {}
    for row in sorted((r for r in rows if r["key"]["density"] == density), key=lambda r: r["n"]):
        for name, one in row["contenders"].items():
            if one["status"] == "ok" and not (name in found and found[name][-1][0] == row["n"]):
                found.setdefault(name, []).append((row["n"], one[field]))
    return found


def growth(document: Document, op: str, sweep: str) -> str | None:
    """Time over what a scaling sweep varies."""
    found = {
        curve.short: [(x, one["median_ms"]) for x, _, one in points]
        for curve, points in curves(document).items()
        if (curve.op, curve.sweep) == (op, sweep)
    }
    return lines(found, SWEEPS[sweep], "milliseconds")


def step_bars(row: Row) -> str | None:
    """Phases of a training step, stacked."""
    ok = {name: one for name, one in row.get("contenders", {}).items() if one["status"] == "ok"}
    if not ok:
        return None
    phases = ("forward", "backward", "optimizer", "masks", "update")
    hatches = ("", "..", "//", "xx", "++")
    colours = ("#d9d9d9", "#efefef", COLOURS[0], COLOURS[1], COLOURS[2])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(ok)[::-1]
        for i, name in enumerate(names):
            left = 0.0
            values = {**ok[name]["phases_ms"], "update": max(0.0, ok[name]["update_ms"])}
            for phase, hatch, colour in zip(phases, hatches, colours, strict=True):
                axes.barh(i, values[phase], left=left, height=0.62, label=phase if i == 0 else None, color=colour, hatch=hatch,
                          edgecolor="#222222", linewidth=0.6)  # fmt: skip
                left += values[phase]
            axes.annotate(milliseconds(left), (left, i), xytext=(6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), [short(n) for n in names])
        axes.grid(False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel("milliseconds per training step (update: its cost over the steps between two)")
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5)

    return svg(draw, 9, 1.5 + 0.4 * len(ok))


def pictures(document: Document) -> list[tuple[str, str]]:
    """(caption, svg) of everything that can be drawn."""
    found: list[tuple[str, str | None]] = []
    for row in document["rows"]:
        if row["key"]["op"] in ("drop_grow", "masked_sgd", "host"):
            found.append((title(row), bars(row)))
        elif row["key"]["op"] == "step":
            found.append((title(row), step_bars(row)))
    for op in ("masked_sgd", "drop_grow"):
        found.append((f"{op}: time over size", over_size(document, op)))
        found.append((f"{op}: GB/s over size, against the roof", bandwidth(document, op)))
        for sweep, name in SWEEPS.items():
            if sweep != "data":
                found.append((f"scaling, {op}: time over {name}", growth(document, op, sweep)))
    return [(caption, picture) for caption, picture in found if picture is not None]
