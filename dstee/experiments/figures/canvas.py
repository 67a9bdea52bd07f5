"""What all pictures share: the figure, texts that come from files, lines over seeds, and the bytes of the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dstee._console import UsageError, needs, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "band", "clean", "legend_beside", "new_figure", "number", "render"]

FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
"""Of pictures, by the ending of their file."""
DPI = 150
_LONGEST = 60
_RC: Any = {"text.usetex": False, "svg.hashsalt": "dstee", "pdf.fonttype": 42, "axes.unicode_minus": False}

Point = tuple[float, float]


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty figure of so many inches; "compressed" is for axes with an aspect of their own.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(needs("the picture", "matplotlib", "cli")) from error
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def clean(text: object) -> str:
    """``text`` as one line of bounded length that matplotlib does not take for TeX."""
    line = one_line(text)
    return (line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…").replace("$", r"\$")


def number(value: object) -> str:
    """A setting's value, short."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def band(seeds: Sequence[Sequence[Point]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """x, lowest, mean and highest of the seeds, at every x that all of them reached."""
    tables = [dict(seed) for seed in seeds if seed]
    xs = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    columns = [[table[x] for table in tables] for x in xs]
    return xs, [min(c) for c in columns], [sum(c) / len(c) for c in columns], [max(c) for c in columns]


def legend_beside(figure: Figure, handles: Sequence[Any], title: str | None = None) -> None:
    """To the right of all axes, so that it hides nothing; in several columns where it is long."""
    if handles:
        columns = 1 + (len(handles) - 1) // 24
        figure.legend(handles=list(handles), fontsize=9, loc="outside right center", title=title, ncols=columns)


def grid(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def render(figure: Figure, path: Path) -> bytes:
    """The file's bytes, equal for equal figures; the format is that of the ending of ``path``."""
    import matplotlib

    kind = FORMATS[path.suffix.lower()]
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a label in letters that the font has not
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata[kind])
    return buffer.getvalue()
