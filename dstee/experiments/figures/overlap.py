"""How much masks have in common: between the updates of one training, between seeds, between methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from dstee._console import UsageError
from dstee._files import CheckpointError
from dstee._lookup import did_you_mean
from dstee.experiments.config import grouped_keys
from dstee.experiments.figures.canvas import clean, new_figure
from dstee.experiments.figures.lines import shared_title, varying
from dstee.experiments.final_state import final_masks
from dstee.experiments.kept_masks import kept_rounds, load_masks
from dstee.experiments.results.row import Row
from dstee.experiments.run_folder import refuse_link

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BETWEEN", "Overlap", "jaccard", "mask_overlap", "overlaps"]

BETWEEN = ("rounds", "seeds", "methods")
_MOST_ROUNDS = 16
_MOST = 20
_NUMBERED = 12

Masks = Mapping[str, Tensor]
Warn = Callable[[str], None]


class Overlap(NamedTuple):
    """One heat map: ``values[i][j]`` is the Jaccard index of two masks, ``random[i][j]`` that of random masks as dense."""

    title: str
    labels: Sequence[str]
    values: Sequence[Sequence[float]]
    random: Sequence[Sequence[float]]


def jaccard(one: Masks, other: Masks) -> tuple[float, float]:
    """The weights active in both as a share of those active in one of them, over all layers; and about what to expect where the
    positions in each layer are random: the ratio of the two expected numbers.

    Raises:
        ValueError: their layers are not the same.
    """
    if {name: mask.shape for name, mask in one.items()} != {name: mask.shape for name, mask in other.items()}:
        raise ValueError("they are masks of different layers")
    both, active, expected = 0, 0, 0.0
    for name, mask in one.items():
        here, there = int(mask.sum()), int(other[name].sum())
        both += int((mask & other[name]).sum())
        active += here + there
        expected += here * there / max(mask.numel(), 1)
    return both / max(active - both, 1), expected / max(active - expected, 1)


def mask_overlap(rows: Sequence[Row], between: str | None, warn: Warn) -> Figure:
    """Heat maps of the overlap of masks (``between``: some of :data:`BETWEEN`, with commas; None: all that there are).

    Raises:
        UsageError: there are no masks to compare; a file is damaged.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    found = overlaps(rows, between, warn)
    figure = new_figure(4.6 * len(found) + 1.6, 5.6, "compressed")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    images = [_heat_map(axes, one) for axes, one in zip(panels, found, strict=True)]
    figure.colorbar(images[-1], ax=list(panels), shrink=0.85, label="Jaccard index")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 0.91))  # room for the title, which this layout forgets
    figure.suptitle(f"Weights active in both masks, of those active in either\n{shared_title(rows)}", fontsize=12, y=0.985)
    return figure


def overlaps(rows: Sequence[Row], between: str | None, warn: Warn) -> list[Overlap]:
    """What :func:`mask_overlap` draws."""
    wanted = list(BETWEEN) if between is None else between.split(",")
    for name in wanted:
        if name not in BETWEEN:
            raise UsageError(f"--between: unknown {name!r}{did_you_mean(name, BETWEEN)}, expected some of {', '.join(BETWEEN)}")
    rows = [row for row in rows if row.method != "dense"]
    if files := sorted({row.source for row in rows if not Path(row.source).is_dir()}):
        raise UsageError(f"{files[0]} has no masks, which are in run folders alone: name these")
    make = {"rounds": _between_rounds, "seeds": _between_seeds, "methods": _between_methods}
    found = [(name, make[name](rows, warn)) for name in BETWEEN if name in wanted]
    if between is not None and (lacking := [name for name, one in found if one is None]):
        raise UsageError(_LACKING[lacking[0]])
    there = [one for _, one in found if one is not None]
    if not there:
        raise UsageError(f"there are no two masks to compare: {_LACKING['rounds']}; {_LACKING['seeds']}; {_LACKING['methods']}")
    return there


_LACKING = {
    "rounds": "no training kept the masks of its updates (dstee train --keep-masks)",
    "seeds": "no method has masks of two seeds",
    "methods": "no seed has masks of two methods",
}


def _folder(row: Row) -> Path:
    folder = Path(row.source) / f"{row.method}-seed{row.seed}"
    refuse_link(folder)
    return folder


def _between_rounds(rows: Sequence[Row], warn: Warn) -> Overlap | None:
    for row in rows:
        folder = _folder(row)
        files = kept_rounds(folder) if folder.is_dir() else {}
        if len(files) > 1:
            rounds = list(files)
            last, count = len(rounds) - 1, min(len(rounds), _MOST_ROUNDS)
            shown = sorted({rounds[round(i * last / (count - 1))] for i in range(count)})
            masks = {str(n): load_masks(files[n]).masks for n in shown}
            return _compare(f"mask rounds of {row.label}, seed {row.seed}", masks)
    return None


def _between_seeds(rows: Sequence[Row], warn: Warn) -> Overlap | None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    for label, own in groups.items():
        if len({row.seed for row in own}) > 1:
            if len({row.seed for row in own}) < len(own):
                raise UsageError(f"{label} has several trainings of one seed: {_choose(own)}")
            masks = _final({str(row.seed): row for row in sorted(own, key=lambda row: row.seed)[:_MOST]}, warn)
            if len(masks) > 1:
                return _compare(f"seeds of {label}, at the end", masks)
    return None


def _between_methods(rows: Sequence[Row], warn: Warn) -> Overlap | None:
    order = {key: i for i, key in enumerate(grouped_keys())}
    for seed in sorted({row.seed for row in rows}):
        own = sorted((row for row in rows if row.seed == seed), key=lambda row: order.get(row.method, len(order)))
        if len({row.label for row in own}) > 1:
            if len({row.label for row in own}) < len(own):
                raise UsageError(f"seed {seed} has several trainings of one method: {_choose(own)}")
            masks = _final({clean(row.label): row for row in own[:_MOST]}, warn)
            if len(masks) > 1:
                return _compare(f"methods of seed {seed}, at the end", masks)
    return None


def _choose(rows: Sequence[Row]) -> str:
    names = varying(rows)
    return f"choose with --only {names[0] if names else 'label'}=VALUE"


def _final(rows: Mapping[str, Row], warn: Warn) -> dict[str, Masks]:
    found = {name: final_masks(_folder(row), warn) for name, row in rows.items()}
    return {name: one.masks for name, one in found.items() if one is not None}


def _compare(title: str, masks: Mapping[str, Masks]) -> Overlap:
    try:
        pairs = [[jaccard(one, other) for other in masks.values()] for one in masks.values()]
    except (ValueError, CheckpointError) as error:
        raise UsageError(f"the {title} cannot be compared: {error}") from error
    return Overlap(title, list(masks), [[p[0] for p in row] for row in pairs], [[p[1] for p in row] for row in pairs])


def _heat_map(axes: Axes, one: Overlap) -> Any:
    n = len(one.labels)
    by_chance = [one.random[i][j] for i in range(n) for j in range(n) if i != j]
    shown = [[float("nan") if i == j else one.values[i][j] for j in range(n)] for i in range(n)]
    axes.set_facecolor("#DDDDDD")
    image = axes.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    if n <= _NUMBERED:
        for i in range(n):
            for j in range(n):
                if i != j:
                    color = "black" if one.values[i][j] > 0.55 else "white"
                    axes.text(
                        j, i, f"{one.values[i][j]:.2f}", ha="center", va="center", color=color, fontsize=8 if n < 10 else 6
                    )
    turned = max(map(len, one.labels)) > 3
    axes.set_xticks(range(n), one.labels, rotation=90 if turned else 0, fontsize=8)
    axes.set_yticks(range(n), one.labels, fontsize=8)
    low, high = f"{min(by_chance):.3f}", f"{max(by_chance):.3f}"
    axes.set_title(f"{clean(one.title)}\n(at random {low}{'' if low == high else f' to {high}'})", fontsize=10)
    return image
