"""Fig. 1 of the paper as bars: what updates ignored of the weights that matter later, beside growth at random."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dstee._console import UsageError
from dstee.experiments.config import grouped_keys
from dstee.experiments.figures.canvas import clean, grid, legend_beside, new_figure
from dstee.experiments.figures.lines import shared_title
from dstee.experiments.ignored import MEASURES, Measurement
from dstee.experiments.results.text import seed_list
from dstee.experiments.styles import styles_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ignored_bars"]

_MOST_STEPS = 4
_MANY_LAYERS = 8
"""From which on the panels stand below one another."""


def ignored_bars(measured: Sequence[Measurement]) -> Figure:
    """Bars of the ignored share, mean over the seeds with its lowest and highest, for each layer and all together; a dash over
    each bar is what to expect of growth at random. A panel for each sense of important and each update.

    Raises:
        UsageError: there are too many updates, or one is measured twice.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    steps = sorted({(one.step, one.steps) for one in measured})
    if len(steps) > _MOST_STEPS:
        raise UsageError(
            f"{len(steps)} updates are too many for one picture, at most {_MOST_STEPS} fit: choose with --only step=N"
        )
    order = {key: i for i, key in enumerate(grouped_keys())}
    names = sorted({(one.method, one.label) for one in measured}, key=lambda key: (order.get(key[0], len(order)), key[1]))
    kinds = [kind for kind in MEASURES if any(kind in one.measures for one in measured)]
    layers = list(dict.fromkeys(name for one in measured for growth in one.measures.values() for name in growth.per_layer))
    groups: list[str | None] = [*layers, None] if len(layers) > 1 else [*layers]  # None: all of them together
    cells = [(kind, step, later) for kind in kinds for step, later in steps]
    columns = len(steps) if len(groups) <= _MANY_LAYERS else 1
    width = 2.4 + columns * max(4.0, 1.0 + 0.26 * len(groups) * len(names))
    figure = new_figure(min(24.0, max(7.5, width)), 1.2 + 2.7 * len(cells) / columns)
    panels = figure.subplots(len(cells) // columns, columns, squeeze=False, sharey=True)
    for axes, (kind, step, later) in zip(panels.flatten(), cells, strict=True):
        here = [one for one in measured if (one.step, one.steps) == (step, later)]
        _bars(axes, here, kind, names, groups)
        axes.set_title(f"update at step {step}: {MEASURES[kind].replace('after', f'after {later}')}", fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("ignored")
    handles: list[object] = [
        Patch(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0, label=clean(label))
        for (_, label), style in zip(names, styles_of([method for method, _ in names]), strict=True)
    ]
    legend_beside(figure, [*handles, Line2D([], [], color="black", linewidth=2, label="growth at random,\nexpected")])
    seeds = sorted({one.seed for one in measured})
    of = f"mean of seeds {seed_list(seeds)}, bars from lowest to highest" if len(seeds) > 1 else f"seed {seeds[0]}"
    figure.suptitle("Share of the later important weights that an update ignored\n" + shared_title(measured, of), fontsize=12)
    return figure


def _bars(
    axes: Axes, measured: Sequence[Measurement], kind: str, names: Sequence[tuple[str, str]], groups: Sequence[str | None]
) -> None:
    width = 0.84 / len(names)
    for i, ((method, label), style) in enumerate(zip(names, styles_of([method for method, _ in names]), strict=True)):
        own = [one for one in measured if (one.method, one.label) == (method, label)]
        if len({one.seed for one in own}) < len(own):
            raise UsageError(f"{label} has several measurements of one seed at one step: choose with --only SETTING=VALUE")
        for j, layer in enumerate(groups):
            found = [growth if layer is None else growth.per_layer.get(layer)
                     for one in own if (growth := one.measures.get(kind)) is not None]  # fmt: skip
            shares = [x.share for x in found if x is not None]
            if not shares:
                continue
            at, mean = j - 0.42 + (i + 0.5) * width, statistics.fmean(shares)
            axes.bar(at, mean, 0.92 * width, color=style.color, hatch=style.hatch, edgecolor="white", linewidth=0)
            if len(shares) > 1:
                spread = [[mean - min(shares)], [max(shares) - mean]]
                axes.errorbar([at], [mean], spread, color="#333333", linewidth=1, capsize=2)
            random = statistics.fmean(x.random for x in found if x is not None)
            axes.plot([at - 0.46 * width, at + 0.46 * width], [random, random], color="black", linewidth=2)
    shown = ["all" if name is None else clean(name.removesuffix(".weight")) for name in groups]
    turned = len(groups) > 6 or max(map(len, shown)) > 14
    axes.set_xticks(range(len(groups)), shown, rotation=90 if turned else 0, fontsize=8 if turned else 9)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
    grid(axes)
    axes.grid(visible=False, axis="x")
