"""Accuracy against what the training cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dstee._console import UsageError
from dstee.experiments.figures.canvas import clean, grid, legend_beside, new_figure, number
from dstee.experiments.figures.lines import Line, lines_of, seeds_text, shared_title, varying
from dstee.experiments.results.row import Row
from dstee.experiments.styles import styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

__all__ = ["accuracy_by_cost"]

_TICKS = [digit * 10.0**power for power in range(-4, 2) for digit in (1, 2, 5)]
_LARGEST, _SMALLEST = 11.0, 5.0


def accuracy_by_cost(rows: Sequence[Row], score: str = "accuracy") -> Figure:
    """The final score, mean and standard deviation over the seeds, against training FLOPs relative to dense (logarithmic): one
    point for each method and sparsity, the larger the denser. The sparsities of a method are joined;
    lines with points of equal cost stand side by side.

    Raises:
        UsageError: no training has such a score.
    """
    from matplotlib.lines import Line2D

    rows = [row for row in rows if row.result.score(score) is not None]
    if not rows:
        raise UsageError(f"no training has the score {score!r}: there is nothing to draw")
    names = [name for name in varying(rows) if name != "sparsity"]
    lines = lines_of(rows, [*names, "sparsity"])
    curves: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        row = line.rows[0]
        parts = [f"{n} = {number(row.setting(n))}" for n in names if row.setting(n) is not None and _varies(rows, row, n)]
        curves.setdefault((line.method, ", ".join([row.label, *parts])), []).append(line)
    sparsities = sorted({s for row in rows if (s := row.setting("sparsity")) is not None})
    figure = new_figure(9.5, 5.4)
    axes = figure.subplots()
    handles = []
    points: list[tuple[float, float, float]] = []
    beside = _SideBySide(figure, axes)
    for (label, own), style in zip(curves.items(), styles_of([method for method, _ in curves]), strict=True):
        own = sorted(own, key=lambda line: line.rows[0].setting("sparsity") or 0.0)
        scores = [[100 * (row.result.score(score) or 0.0) for row in line.rows] for line in own]
        x = [statistics.fmean(row.result.training_flops for row in line.rows) for line in own]
        y = [statistics.fmean(values) for values in scores]
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in scores]
        points += zip(x, y, spread, strict=True)
        where = beside.place(x)
        axes.plot(x, y, color=style.color, linestyle=style.dashes, linewidth=1, transform=where)
        for at, mean, std, line in zip(x, y, spread, own, strict=True):
            size = _size(line.rows[0].setting("sparsity"), sparsities)
            axes.errorbar(
                [at], [mean], [std], color=style.color, marker=style.marker, markersize=size, capsize=3, elinewidth=1,
                markeredgecolor="white", markeredgewidth=0.6, linestyle="none", transform=where,
            )  # fmt: skip
        handles.append(Line2D([], [], color=style.color, marker=style.marker, linestyle=style.dashes, linewidth=1, markersize=7,
                              label=clean(label[1])))  # fmt: skip
    if len(sparsities) > 1:
        handles += [
            Line2D([], [], color="#555555", marker="o", linestyle="none", markersize=_size(s, sparsities),
                   label=f"{100 * s:g} % sparse") for s in sparsities
        ]  # fmt: skip
    ends = [y + sign * std for _, y, std in points for sign in (-1, 1)]
    margin = max(0.06 * (max(ends) - min(ends)), 0.1)
    axes.set_ylim(min(ends) - margin, max(ends) + margin)  # what is moved to the side does not count by itself
    low, high = min(x for x, *_ in points), max(x for x, *_ in points)
    if low > 0 and high > 4 * low:
        margin = (high / low) ** 0.06
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        axes.set_xticks([t for t in _TICKS if low / margin <= t <= high * margin])
        axes.minorticks_off()
    else:
        margin = 0.06 * (high - low) or 0.1 * high or 1
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}x")
    what = "test accuracy" if score == "accuracy" else clean(score)
    as_long = " training of as many epochs" if len({repr(row.setting("epochs")) for row in rows}) > 1 else ""
    axes.set(
        xlabel=f"training FLOPs, relative to dense{as_long}",
        ylabel=f"{what} (%)",
        title="Accuracy against the cost of training",
    )
    grid(axes)
    legend_beside(figure, handles)
    figure.suptitle(shared_title(rows, seeds_text(lines, "bars of one standard deviation")))
    return figure


class _SideBySide:
    """Moves a line with a point that costs what one of an earlier line does a little to the right, so that both can be seen."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self._figure, self._axes = figure, axes
        self._before: list[Sequence[float]] = []

    def place(self, costs: Sequence[float]) -> Transform:
        from matplotlib.transforms import ScaledTranslation

        there = sum(any(abs(x - y) <= 0.02 * y for x in costs for y in line) for line in self._before)
        self._before.append(costs)
        return self._axes.transData + ScaledTranslation(there * 5 / 72, 0, self._figure.dpi_scale_trans)


def _varies(rows: Sequence[Row], row: Row, name: str) -> bool:
    """Whether other trainings of the row's label have another value."""
    return any(other.label == row.label and other.setting(name) != row.setting(name) for other in rows)


def _size(sparsity: float | None, all_of_them: Sequence[float]) -> float:
    """Of the marker; dense has the largest."""
    if sparsity is None or len(all_of_them) < 2:
        return (_LARGEST + _SMALLEST) / 2 if sparsity is not None else _LARGEST
    place = all_of_them.index(sparsity) / (len(all_of_them) - 1)
    return _LARGEST - (_LARGEST - _SMALLEST) * place
