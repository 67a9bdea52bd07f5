"""The picture of a run, after Fig. 3 of the paper: exploration degree after mask updates, test accuracy per epoch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dstee._console import UsageError, needs
from dstee._files import write_atomic
from dstee.experiments.config import differences, grouped_keys, method_keys, method_name
from dstee.experiments.records import Record, read_records
from dstee.experiments.run_folder import read_manifest
from dstee.experiments.styles import styles_of

__all__ = ["Curves", "NoMetrics", "draw", "plot_runs", "read_run"]

_MANY = 8
"""Lines from which on bands would hide more than they show."""
_BESIDE = 5
"""Lines from which on the legend stands beside the axes."""


Point = tuple[float, float]


class NoMetrics(UsageError):
    """A run has none: it has just begun, or all its trainings diverged before their first update and epoch."""


@dataclass
class Curves:
    """One line of the picture: per seed, ``updates`` (step, R) and ``epochs`` (epoch, accuracy in 0..1)."""

    label: str
    method: str
    updates: list[list[Point]] = field(default_factory=list)
    epochs: list[list[Point]] = field(default_factory=list)


def _ignore(text: str) -> None:
    pass


def read_run(folder: Path, warn: Callable[[str], None] = _ignore) -> tuple[Mapping[str, object], dict[str, Curves]]:
    """The settings of a run folder and its curves by method, from the JSON lines alone.

    An incomplete last line (a killed writer's) is left out with a warning.

    Raises:
        UsageError: the folder holds no run, or a line is not a metric; NoMetrics: there is no line.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder} holds no run (no config.json)")
    curves: dict[str, Curves] = {}
    for file in sorted(folder.glob("*/metrics.jsonl")):
        updates: list[Point] = []
        epochs: list[Point] = []
        method = None
        for record in read_records(file, warn, _check_method):
            method = record["method"]
            if record["kind"] == "update":
                if record["exploration"] is not None:
                    updates.append((record["step"], record["exploration"]))
            else:
                epochs.append((record["epoch"], record["accuracy"]))
        if method is not None:
            curve = curves.setdefault(method, Curves(method_name(method), method))
            curve.updates.append(updates)
            curve.epochs.append(epochs)
    if not curves:
        raise NoMetrics(f"{folder} holds no metrics yet")
    return manifest["config"], {method: curves[method] for method in grouped_keys() if method in curves}


def _check_method(record: Record) -> None:
    if record["method"] not in method_keys():
        raise ValueError(f"unknown method {record['method']!r}")


def plot_runs(folders: Sequence[Path], output: Path, warn: Callable[[str], None] = _ignore) -> None:
    """Draws the runs in ``folders`` into the PNG file ``output``; what differs between their settings is in the legend.

    Raises:
        UsageError: a folder cannot be used, or matplotlib is missing. OSError: the file cannot be written.
    """
    runs = [read_run(folder, warn) for folder in folders]
    first = runs[0][0]
    shared = [key for key in first if not any(differences({key: first[key]}, {key: config.get(key)}) for config, _ in runs)]
    lines = []
    for (config, curves), folder in zip(runs, folders, strict=True):
        own = [f"{key}={config.get(key)}" for key in config if key not in shared and key not in ("method", "compare")]
        for curve in curves.values():
            suffix = (", ".join(own) if own or len(runs) == 1 else folder.name).replace("$", r"\$")  # no TeX from a file
            lines.append(
                Curves(f"{curve.label} ({suffix})" if suffix else curve.label, curve.method, curve.updates, curve.epochs)
            )
    title = ", ".join(f"{key} {first[key]}" for key in ("data", "sparsity") if key in shared).replace("$", r"\$")
    write_atomic(output, [draw(lines, title)])


def draw(lines: Sequence[Curves], title: str) -> bytes:
    """PNG: left R after mask updates, right test accuracy over epochs; mean over seeds, the band from lowest to highest."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UsageError(needs("the picture", "matplotlib", "cli")) from error
    many, beside = len(lines) > _MANY, len(lines) > _BESIDE
    figure = Figure(figsize=(13 if beside else 11, 5.4 if many else 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for line, style in zip(lines, styles_of([line.method for line in lines]), strict=True):
        dense_once = any(r == 1 for updates in line.updates for _, r in updates)  # nothing is left to explore
        for axes, seeds, scale in ((left, [] if dense_once else line.updates, 1), (right, line.epochs, 100)):
            x, low, mean, high = _band(seeds, scale)
            if x:
                axes.plot(x, mean, label=line.label, **style.line())
                if not many:
                    axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)
    left.set(xlabel="optimizer step", ylabel="exploration degree R", title="Weights that were ever active")
    right.set(xlabel="epoch", ylabel="test accuracy (%)", title="Accuracy")
    count = max((len(line.epochs) for line in lines), default=0)
    later = [accuracy for line in lines for seed in line.epochs for _, accuracy in seed[len(seed) // 4 :]]
    right.set_ylim(max(0.0, 100 * min(later, default=0.0) - 3), min(100.5, 100 * max(later, default=1.0) + 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines and not beside:
            axes.legend(fontsize=9, loc="best")
    if beside:
        figure.legend(handles=max((left.lines, right.lines), key=len), fontsize=8, loc="outside right center")
    bands = "" if many else ", bands from lowest to highest"
    figure.suptitle(title + (f"; mean of {count} seeds{bands}" if count > 1 else ""))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _band(seeds: Sequence[Sequence[Point]], scale: float) -> tuple[list[float], ...]:
    """x, lowest, mean and highest of the seeds, at every x that all of them reached."""
    tables = [dict(seed) for seed in seeds if seed]
    xs = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    columns = [[scale * table[x] for table in tables] for x in xs]
    return xs, [min(c) for c in columns], [sum(c) / len(c) for c in columns], [max(c) for c in columns]
