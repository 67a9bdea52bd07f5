"""Fig. 3 of the paper over the weight of exploration, and what that weight changes in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from dstee._console import UsageError
from dstee.experiments.figures.canvas import band, clean, grid, legend_beside, new_figure, number
from dstee.experiments.figures.lines import Line, lines_of, seeds_text, shared_title, vary_by, varying
from dstee.experiments.results.row import Row
from dstee.experiments.results.text import setting_text
from dstee.experiments.styles import Style, styles_of
from dstee.experiments.tables.statistics import compare_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["over_setting", "over_time"]

_MANY = 8
"""Lines from which on bands would hide more than they show."""
_PANELS = ("data", "sparsity")
"""Settings whose values have panels of their own, as in the paper."""
_MOST_PANELS = 6


def over_time(rows: Sequence[Row], by: str | None = None) -> Figure:
    """R after each mask update and test accuracy per epoch, one line for each value of a setting (``by``; default c, c_rel);
    other data sets and sparsities below each other.

    Raises:
        UsageError: nothing varies, or the rows have no curves.
    """
    by_names = vary_by(rows, by)
    panels = _panels(rows, [name for name in _PANELS if name not in by_names and name in varying(rows)])
    drawn = {title: lines_of(own, by_names) for title, own in panels.items()}
    figure = new_figure(12.5, 0.6 + 4.2 * len(panels))
    axes = figure.subplots(len(panels), 2, squeeze=False)
    handles: list[Any] = []
    for (title, lines), (left, right) in zip(drawn.items(), axes, strict=True):
        handles = max((handles, _over_time(lines, left, right, f", {title}" if title else "")), key=len)
    if not handles:
        raise UsageError("these results have no curves: they were kept without (--no-curves), or their metrics are gone")
    legend_beside(figure, handles)
    all_lines = [line for lines in drawn.values() for line in lines]
    bands = "bands from lowest to highest" if max(map(len, drawn.values())) <= _MANY else ""
    figure.suptitle(shared_title(rows, seeds_text(all_lines, bands)))
    return figure


def _panels(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by what their panel is called. What has no such setting, as dense has no sparsity, is in all of its data."""
    found: dict[str, list[Row]] = {}
    values = dict.fromkeys(tuple(row.setting(name) for name in names) for row in rows)
    for wanted in sorted((v for v in values if None not in v), key=str) if names else [()]:
        title = ", ".join(setting_text(name, value) for name, value in zip(names, wanted, strict=True))
        found[title] = [row for row in rows if all(row.setting(n) in (v, None) for n, v in zip(names, wanted, strict=True))]
    if len(found) > _MOST_PANELS:
        raise UsageError(
            f"{len(found)} panels are too many, at most {_MOST_PANELS} fit: choose some with --only {names[0]}=VALUE"
        )
    return found


def _over_time(lines: Sequence[Line], left: Axes, right: Axes, where: str) -> list[Any]:
    """Draws lines into both axes; returns those of the legend."""
    ends: list[float] = []
    for line, style in zip(lines, styles_of([line.method for line in lines]), strict=True):
        updates = [[(u.step, u.exploration) for u in row.updates if u.exploration is not None] for row in line.rows]
        epochs = [[(e.epoch, 100 * e.accuracy) for e in row.epochs if e.accuracy is not None] for row in line.rows]
        for axes, seeds in ((left, updates), (right, epochs)):
            x, low, mean, high = band(seeds)
            if x:
                axes.plot(x, mean, label=line.label, **style.line())
                if len(lines) <= _MANY and len(line.rows) > 1:
                    axes.fill_between(x, low, high, color=style.color, alpha=0.15 if len(lines) <= 3 else 0.08, linewidth=0)
                if axes is right:
                    ends += [*low[len(x) // 10 :], *high[len(x) // 10 :]]
    _finish(left, "optimizer step", "exploration degree R", f"Weights that were ever active{where}")
    _finish(right, "epoch", "test accuracy (%)", f"Accuracy{where}")
    _show_the_end(right, ends)
    return max((list(left.lines), list(right.lines)), key=len)


def _finish(axes: Axes, x: str, y: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x, ylabel=y, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid(axes)


def _show_the_end(axes: Axes, later: Sequence[float]) -> None:
    """The y axis spans ``later``, what there is after a tenth of the way: the first epochs would take all the room."""
    if later:
        low, high = min(later), max(later)
        margin = max(0.05 * (high - low), 0.2)
        axes.set_ylim(max(0.0, low - margin), min(100.5, high + margin))


# --- at the end ----------------------------------------------------------------------------------------------------------


def over_setting(rows: Sequence[Row], by: str | None = None, score: str = "accuracy") -> Figure:
    """Final score and R against c on a logarithmic axis, and where c = 0 was trained the paired difference to it.

    Other settings that vary make lines of their own; ``by``: another setting with numbers, instead of c or c_rel.

    Raises:
        UsageError: nothing varies, it has no numbers, or values are not paired by seed with 0.
    """
    name = _one_name(rows, by)
    held = [row for row in rows if row.setting(name) is not None]
    if any(type(row.setting(name)) not in (int, float) or row.setting(name) < 0 for row in held):
        raise UsageError(f"--by {name}: its values are no numbers >= 0, which this picture needs")
    curves: dict[tuple[str, str], list[Line]] = {}
    for line in lines_of(held, [name, *(n for n in _others(held, name))]):
        rest = _rest(line, name, held)
        curves.setdefault((line.method, rest), []).append(line)
    values = sorted({float(row.setting(name)) for row in held})
    place = _places(values)
    paired = 0.0 in values and len(values) > 1
    figure = new_figure(14 if paired else 10.5, 4.6)
    axes = list(figure.subplots(1, 3 if paired else 2))
    styles = styles_of([method for method, _ in curves])
    for i, ((label, lines), style) in enumerate(zip(curves.items(), styles, strict=True)):
        text = clean(label[1])
        aside = 0.06 * (i - (len(curves) - 1) / 2)  # bars of two curves do not hide each other
        _spread(axes[0], lines, place, lambda row: row.result.score(score), 100, style, text)
        if paired:
            _differences(axes[1], lines, partial(_beside, place, aside), score, style, text)
        _spread(axes[-1], lines, place, lambda row: row.result.exploration, 1, style, text)
    what = "test accuracy" if score == "accuracy" else clean(score)
    axes[0].set(ylabel=f"{what} (%)", title=f"Final {what}: mean, lowest to highest")
    if paired:
        axes[1].axhline(0, color="#666666", linewidth=1)
        axes[1].set(ylabel="percentage points", title=f"Less that of {name} = 0: paired 95 % intervals,\neach by itself")
    axes[-1].set(ylabel="exploration degree R", title="Weights that were ever active:\nmean, lowest to highest")
    for one in axes:
        one.set(xlabel=clean(name))
        one.set_xticks([place(v) for v in _ticks(values)], [number(v) for v in _ticks(values)])
        one.minorticks_off()
        one.set_xlim(place(values[0]) - 0.25, place(values[-1]) + 0.25)
        grid(one)
    if len(curves) > 1:
        legend_beside(figure, axes[0].get_legend_handles_labels()[0])
    figure.suptitle(shared_title(held, seeds_text([line for lines in curves.values() for line in lines], "")))
    return figure


def _one_name(rows: Sequence[Row], by: str | None) -> str:
    names = vary_by(rows, by)
    if len(names) > 1:
        raise UsageError(f"this picture has one setting on its axis, of {', '.join(names)}: say --by {names[0]}")
    return names[0]


def _others(rows: Sequence[Row], name: str) -> list[str]:
    return [other for other in varying(rows) if other != name]


def _rest(line: Line, name: str, rows: Sequence[Row]) -> str:
    """What a curve is called: its method and the settings beside ``name`` that vary."""
    row = line.rows[0]
    parts = [f"{n} = {number(row.setting(n))}" for n in _others(rows, name) if row.setting(n) is not None]
    return ", ".join([row.label, *parts])


def _places(values: Sequence[float]) -> Callable[[float], float]:
    """Positions on a logarithmic axis on which 0 stands a step to the left of the smallest."""
    positive = [v for v in values if v > 0]
    least = math.log10(min(positive)) if positive else 0.0
    return lambda v: math.log10(v) if v > 0 else least - 1


def _beside(place: Callable[[float], float], aside: float, value: float) -> float:
    return place(value) + aside


def _ticks(values: Sequence[float]) -> list[float]:
    """All values, or of many those that stay half a decade apart."""
    chosen: list[float] = []
    for v in values:
        if not chosen or chosen[-1] == 0 or v >= chosen[-1] * 10**0.5 * 0.99 or len(values) <= 8:
            chosen.append(v)
    return chosen


def _spread(
    axes: Axes, lines: Sequence[Line], place: Callable[[float], float], read: Callable[[Row], float | None], scale: float,
    style: Style, label: str,
) -> None:  # fmt: skip
    points = []
    for line in lines:
        found = [scale * value for row in line.rows if (value := read(row)) is not None]
        if found:
            points.append((place(float(line.values[0])), sum(found) / len(found), min(found), max(found)))
    points.sort()
    if points:
        x, mean, low, high = zip(*points, strict=True)
        axes.plot(x, mean, label=label, **style.line() | {"marker": style.marker, "markevery": None})
        axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)


def _differences(
    axes: Axes, lines: Sequence[Line], place: Callable[[float], float], score: str, style: Style, label: str
) -> None:
    scores = {float(line.values[0]): {row.seed: row.result.score(score) for row in line.rows} for line in lines}
    if (base := scores.pop(0.0, None)) is None:
        return
    for value, found in sorted(scores.items()):
        lacking = {seed for table in (found, base) for seed, result in table.items() if result is None}  # it diverged
        one, other = (
            {seed: 100 * result for seed, result in table.items() if result is not None and seed not in lacking}
            for table in (found, base)
        )
        if not one and not other:
            continue
        compared = compare_pairs(one, other, (f"{label} at {number(value)}", "that at 0"))
        low, high = compared.interval or (compared.mean, compared.mean)
        axes.errorbar(
            [place(value)], [compared.mean], [[compared.mean - low], [high - compared.mean]], color=style.color,
            marker=style.marker, capsize=4, linestyle="none",
        )  # fmt: skip
