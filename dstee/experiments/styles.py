"""How a method looks, the same in every picture: colour, dashes and marker."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["STYLES", "Style", "shade", "style_of", "styles_of"]

Dashes = Any  # matplotlib's: a name, or (offset, (on, off, ...))


class Style(NamedTuple):
    """``marked``: the line shows its marker, too; ``hatch``: of bars."""

    color: str
    dashes: Dashes
    marker: str
    width: float = 1.5
    marked: bool = False
    hatch: str = ""

    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        marker = {"marker": self.marker, "markersize": 5, "markevery": 0.12} if self.marked else {}
        return {"color": self.color, "linestyle": self.dashes, "linewidth": self.width, **marker}


_DASHES: tuple[Dashes, ...] = (
    "solid", (0, (6, 2)), (0, (4, 1.5, 1, 1.5)), (0, (4, 1.5)), (0, (1, 1.5)), (0, (8, 1.5, 1, 1.5, 1, 1.5)), (0, (2, 1)),
)  # fmt: skip
_SOLID, _LONG, _DOT_DASH, _DASHED, _DOTTED, _TWO_DOTS, _SHORT = _DASHES

# Colours of Okabe and Ito and of Paul Tol, which stay apart for most colour-blind readers. No two methods have both the dashes
# and the marker in common, so that a picture can be read without colours.
STYLES: dict[str, Style] = {
    "dense": Style("#000000", _DOTTED, "*"),
    "static": Style("#999999", _DASHED, "o"),
    "snip": Style("#661100", _DOTTED, "s"),
    "grasp": Style("#999933", _SHORT, "^"),
    "synflow": Style("#B8860B", _TWO_DOTS, "v"),
    "admm": Style("#332288", _SHORT, "D"),
    "gap": Style("#44AA99", _DOT_DASH, "P"),
    "gmp": Style("#117733", _DASHED, "X"),
    "granet": Style("#CC6677", _LONG, "D"),
    "one-shot": Style("#6699CC", _DOTTED, "p"),
    "sis": Style("#882255", _TWO_DOTS, "h"),
    "str": Style("#AA4499", _DASHED, "<"),
    "set": Style("#E69F00", _DOT_DASH, "^"),
    "rigl": Style("#0072B2", _LONG, "s"),
    "dst-ee": Style("#D55E00", _SOLID, "o", 2.0),
    "snfs": Style("#009E73", _TWO_DOTS, "P"),
    "mest": Style("#CC79A7", _SHORT, ">"),
    "dsr": Style("#56B4E9", _DASHED, "v"),
    "deepr": Style("#7F5539", _DOT_DASH, "d"),
}
"""Those that dstee has, by key; others get a style from their key (:func:`style_of`)."""

_OTHER_COLORS = ("#1B9E77", "#7570B3", "#E7298A", "#66A61E", "#A6761D", "#1F78B4", "#B15928", "#6A3D9A")
_OTHER_MARKERS = ("8", "H", "X", "d", "p", "<", ">", "v")
# Of lines of one method; their numbers and that of the dashes have no common divisor, so that pairs repeat late.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo", "++")


def style_of(method: str) -> Style:
    """The style of a method; that of one which others added depends on its key alone."""
    if method in STYLES:
        return STYLES[method]
    number = int.from_bytes(hashlib.blake2b(method.encode(), digest_size=8).digest(), "big")
    colors, dashes = len(_OTHER_COLORS), len(_DASHES)
    return Style(
        _OTHER_COLORS[number % colors],
        _DASHES[number // colors % dashes],
        _OTHER_MARKERS[number // (colors * dashes) % len(_OTHER_MARKERS)],
    )


def styles_of(methods: Sequence[str]) -> list[Style]:
    """One style for each line, whose methods are given: a method has its colour whatever else is drawn; several lines of one
    differ in dashes, markers and, as bars, hatches."""
    found = []
    seen: dict[str, int] = {}
    for method in methods:
        base, i = style_of(method), seen.get(method, 0)
        seen[method] = i + 1
        if methods.count(method) > 1:
            base = base._replace(
                dashes=_DASHES[i % len(_DASHES)], marker=_MARKERS[i % len(_MARKERS)], hatch=_HATCHES[i % len(_HATCHES)],
                width=1.6, marked=True,
            )  # fmt: skip
        found.append(base)
    return found


def shade(color: str, i: int, total: int) -> str:
    """The i-th (from 0) of ``total`` shades of a colour, light to dark, for the layers of a method; the only one is the colour
    itself."""
    if total == 1:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(color[j : j + 2], 16) / 255 for j in (1, 3, 5)))
    light, dark = 0.76, max(0.14, min(lightness, 0.5) * 0.5)
    chosen = light + (dark - light) * i / (total - 1)
    return "#" + "".join(f"{round(255 * x):02X}" for x in colorsys.hls_to_rgb(hue, chosen, saturation))
