"""Rows as lines of a picture: which trainings belong together, and what tells the lines apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dstee._console import UsageError
from dstee._lookup import did_you_mean
from dstee.experiments.config import grouped_keys
from dstee.experiments.figures.canvas import clean, number
from dstee.experiments.results.choice import Selectable
from dstee.experiments.results.row import Row
from dstee.experiments.results.text import seed_list

__all__ = ["Line", "lines_of", "shared_title", "vary_by", "varying"]

_EXPLORATION = ("c", "c_rel")
_LONGEST_LABEL = 36
_TITLED = ("data", "model", "sparsity", "optimizer")


@dataclass(frozen=True)
class Line:
    """Trainings that differ in their seed alone; ``values`` are those of the settings that tell the lines apart."""

    label: str
    method: str
    values: tuple[Any, ...]
    rows: Sequence[Row]


def varying(rows: Sequence[Row]) -> list[str]:
    """Settings of which the trainings of some method have several values, in the rows' order."""
    found: dict[str, None] = {}
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        names = dict.fromkeys(name for row in own for name in row.setting_names())
        found |= {name: None for name in names if len({_key(row.setting(name)) for row in own}) > 1}
    return list(found)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def vary_by(rows: Sequence[Row], asked: str | None) -> list[str]:
    """The settings to look at: those asked for, else those of exploration that vary.

    Raises:
        UsageError: no row has such a setting; nothing varies.
    """
    if asked is not None:
        known = list(dict.fromkeys(name for row in rows for name in row.setting_names()))
        names = asked.split(",")
        for name in names:
            if name not in known:
                raise UsageError(f"--by: no run has a setting {name!r}{did_you_mean(name, known)}")
        return names
    there = varying(rows)
    if names := [name for name in _EXPLORATION if name in there]:
        return names
    others = f": --by {there[0]} draws it over {there[0]}" if there else ""
    raise UsageError(f"these runs have no more than one value of c and c_rel{others}")


def lines_of(rows: Sequence[Row], by: Sequence[str] | None = None) -> list[Line]:
    """One line for each method, label and value of ``by`` (default: of whatever varies), methods in the order of tables.

    Raises:
        UsageError: a line would have a seed twice; the text says by which setting.
    """
    names = varying(rows) if by is None else list(by)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.label, _key([row.setting(name) for name in names])), []).append(row)
    methods, labels = {row.method for row in rows}, {(row.method, row.label) for row in rows}
    several = len(methods) > 1 or len(labels) > 1
    lines = []
    for (method, name, _), own in groups.items():
        label = name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"  # the values stand behind it
        values = tuple(own[0].setting(name) for name in names)
        parts = [f"{name} = {number(v)}" for name, v in zip(names, values, strict=True) if v is not None]
        alone = sum(key[:2] == (method, name) for key in groups) == 1
        text = label if (several and alone) or not parts else ", ".join([label, *parts] if several else parts)
        _refuse_twice(own, text)
        lines.append(Line(clean(text), method, values, sorted(own, key=lambda row: row.seed)))
    order = {key: i for i, key in enumerate(grouped_keys())}
    return sorted(lines, key=lambda line: (order.get(line.method, len(order)), [_sort_key(v) for v in line.values]))


def _sort_key(value: Any) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))


def _refuse_twice(rows: Sequence[Row], text: str) -> None:
    seeds = [row.seed for row in rows]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        differ = varying(rows)
        hint = (
            f"they differ in {', '.join(differ)}: keep one value with --only {differ[0]}=VALUE" if differ else "of other data"
        )
        raise UsageError(f"{text} has several trainings of seed {twice[0]}; {hint}")


def shared_title(rows: Sequence[Selectable], more: str = "") -> str:
    """What all rows have in common that a reader must know, and over which seeds the picture is."""
    parts = []
    for name in _TITLED:
        found = {_key(v) for row in rows if (v := row.setting(name)) is not None}
        if len(found) == 1:
            value = json.loads(found.pop())
            if name != "optimizer" or value != "sgd":
                parts.append(f"{100 * value:g} % sparse" if name == "sparsity" else str(value))
    text = ", ".join(parts)
    return clean(text) + (f"; {more}" if more and text else more)


def seeds_text(lines: Iterable[Line], spread: str) -> str:
    """``mean of seeds 0-4, bands from lowest to highest``."""
    seeds = [frozenset(row.seed for row in line.rows) for line in lines]
    most = max(map(len, seeds), default=0)
    if most < 2:
        return "one seed"
    same = len(set(seeds)) == 1
    return (f"mean of seeds {seed_list(seeds[0])}" if same else f"mean of up to {most} seeds") + (
        f", {spread}" if spread else ""
    )
