"""Which rows go into a table: those with certain settings, and of a setting's values the best by the validation score."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from dstee._console import UsageError
from dstee._lookup import did_you_mean
from dstee.experiments.config import method_name
from dstee.experiments.results.row import Row
from dstee.experiments.results.text import seed_list, setting_text

__all__ = ["Selectable", "choose", "only"]

VALIDATION = "validation"
"""The score of data held out from training, which alone may decide between settings."""


class Selectable(Protocol):
    """Something of one training: a row, or what else was measured in it."""

    @property
    def method(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def setting(self, name: str) -> Any: ...
    def setting_names(self) -> tuple[str, ...]: ...


_NAMES = ("method", "label", "seed")
T = TypeVar("T", bound=Selectable)


def only(rows: Sequence[T], conditions: Sequence[str]) -> list[T]:
    """The rows for which each of ``conditions``, as ``data=mnist`` or ``c=0.1,0.01``, holds; a row without such a setting
    (dense has no c) stays. ``method``, ``label`` and ``seed`` may be named as well.

    Raises:
        UsageError: a name or value that no row has; nothing is left.
    """
    for condition in conditions:
        name, equals, text = condition.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"--only takes SETTING=VALUE or SETTING=VALUE,VALUE, got {condition!r}")
        known = list(dict.fromkeys([*_NAMES, *(n for row in rows for n in row.setting_names())]))
        if name not in known:
            raise UsageError(f"--only: no run has a setting {name!r}{did_you_mean(name, known)}")
        held = [(row, getattr(row, name) if name in _NAMES else row.setting(name)) for row in rows]
        there = list(dict.fromkeys(_text(value) for _, value in held if value is not None))
        wanted = [text] if text in there else text.split(",")
        for value in wanted:
            if not any(_equals(value, one) for one in there):
                raise UsageError(f"--only: no run has {name}={value}{did_you_mean(value, there)}, but {', '.join(there)}")
        rows = [row for row, value in held if value is None or any(_equals(w, _text(value)) for w in wanted)]
    return list(rows)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(_text, value)) if isinstance(value, list) else json.dumps(value)


def _equals(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def choose(rows: Sequence[Row], name: str) -> tuple[list[Row], list[str]]:
    """Of trainings that differ in the setting ``name`` alone those with the value of the best mean validation score, and a
    note of each choice. A value with which a training diverged is the last to be taken; of equal ones the first.

    Raises:
        UsageError: no row has the setting, or one value only; a row has no validation score; the values' seeds differ.
    """
    known = list(dict.fromkeys(n for row in rows for n in row.setting_names()))
    if name not in known:
        raise UsageError(f"--choose: no run has a setting {name!r}{did_you_mean(name, known)}")
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if row.setting(name) is not None:
            others = {n: row.setting(n) for n in sorted(row.setting_names()) if n != name}
            key = json.dumps([row.method, row.made_by.get("data_digest"), others], sort_keys=True)
            groups.setdefault(key, {}).setdefault(json.dumps(row.setting(name)), []).append(row)
    left = [row for row in rows if row.setting(name) is None]
    notes = []
    for values in groups.values():
        if len(values) > 1:
            kept, note = _best(values, name)
            left += kept
            notes.append(note)
        else:
            left += next(iter(values.values()))
    if not notes:
        raise UsageError(f"--choose {name}: no trainings differ in {name} alone")
    return left, notes


def _best(values: dict[str, list[Row]], name: str) -> tuple[list[Row], str]:
    rows = [row for held in values.values() for row in held]
    method, seeds = method_name(rows[0].method), {row.seed for row in rows}
    means = {}
    for value, held in values.items():
        if {row.seed for row in held} != seeds:
            raise UsageError(
                f"--choose {name}: {method} with {name}={value} has the seeds {seed_list(row.seed for row in held)}, "
                f"others have {seed_list(seeds)}: train the same seeds of all"
            )
        means[value] = statistics.fmean(_validation(row, name) for row in held)
    best = max(means, key=means.__getitem__)
    labels = {row.label for row in rows}
    kept = [row if len(labels) == 1 else replace(row, label=method) for row in values[best]]
    where = "".join(f", {setting_text(n, v)}" for n in ("data", "sparsity") if (v := rows[0].setting(n)) is not None)
    label = rows[0].label if len(labels) == 1 else method
    return kept, f"Chosen by validation: {name} of {label}{where}: {best} (of {', '.join(values)})"


def _validation(row: Row, name: str) -> float:
    if row.result.diverged_at is not None:
        return -math.inf
    if (score := row.result.score(VALIDATION)) is None:
        raise UsageError(
            f"--choose {name}: {row.name} in {row.source} has no validation score, and choosing by the test set would make its "
            "accuracy no estimate: train with --validation N"
        )
    return score
