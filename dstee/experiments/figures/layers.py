"""R of each layer after each mask update, a panel for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dstee._console import UsageError
from dstee.experiments.figures.canvas import band, grid, legend_beside, new_figure
from dstee.experiments.figures.lines import lines_of, seeds_text, shared_title
from dstee.experiments.results.row import Row
from dstee.experiments.styles import shade, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_layer"]

_MOST = 12
"""Panels that one picture holds."""
_GREY = "#777777"
_DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.5)))


def by_layer(rows: Sequence[Row]) -> Figure:
    """One panel for each method and value of what varies, one line for each layer (light the first, dark the last), mean over
    the seeds.

    Raises:
        UsageError: no update says R of its layers; there are too many panels.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in lines_of(rows) if any(u.layers for row in line.rows for u in row.updates)]
    if not lines:
        raise UsageError(
            "no update of these runs says R of its layers: none has updates that were counted, or curves were left out"
        )
    if len(lines) > _MOST:
        raise UsageError(f"{len(lines)} panels are too many, at most {_MOST} fit: choose some with --only SETTING=VALUE")
    columns = min(len(lines), 4)
    height = -(-len(lines) // columns)
    figure = new_figure(2.2 + 3.4 * columns if columns > 1 else 7.5, 0.9 + 3.3 * height)
    panels = figure.subplots(height, columns, sharey=True, squeeze=False).flatten()
    most = 0
    for panel, line in zip(panels, lines, strict=False):
        counts = {len(u.layers) for row in line.rows for u in row.updates if u.layers}
        if len(counts) > 1:
            raise UsageError(f"{line.label}: its updates say R of {min(counts)} layers, and of {max(counts)}")
        count = counts.pop()
        most = max(most, count)
        for i in range(count):
            seeds = [[(u.step, u.layers[i]) for u in row.updates if u.layers] for row in line.rows]
            x, low, mean, high = band(seeds)
            style: dict[str, Any] = {
                "color": shade(style_of(line.method).color, i, count),
                "linestyle": _DASHES[i % len(_DASHES)],
            }
            panel.plot(x, mean, linewidth=1.6, **style)
            if len(line.rows) > 1 and count <= 4:
                panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        panel.set_title(line.label, fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        grid(panel)
    panels[0].set_ylim(0, 1.03)
    for panel in panels[len(lines) :]:
        panel.remove()
    color = style_of(lines[0].method).color if len({line.method for line in lines}) == 1 else _GREY
    handles = [
        Line2D([], [], color=shade(color, i, most), linestyle=_DASHES[i % len(_DASHES)], linewidth=1.6, label=f"{i + 1}")
        for i in range(most)
    ]
    legend_beside(figure, handles, "layer")
    figure.supxlabel("optimizer step")
    figure.supylabel("R of the layer")
    bands = "bands from lowest to highest" if most <= 4 else ""
    figure.suptitle(shared_title([row for line in lines for row in line.rows], seeds_text(lines, bands)))
    return figure
