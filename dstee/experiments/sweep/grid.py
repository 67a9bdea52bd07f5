"""A grid file: which trainings a sweep makes, as TOML.

.. code-block:: toml

    seeds = 5                    # 0 to 4; or a list of them

    [settings]                   # of all trainings, by the names of ``dstee train``
    data = "mnist"

    [grid]                       # lists, each crossed with the others
    method = ["dense", "rigl", "dst-ee"]
    sparsity = [0.95, 0.98]

    [[variant]]                  # one more beside the methods, with settings of its own
    label = "SNFS, slow momentum"
    method = "snfs"
    method_settings = {beta = 0.99}

    [[skip]]                     # leave out what has one of the values of every list
    method = ["rigl"]
    sparsity = [0.95]
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dstee._console import UsageError, needs
from dstee._files import read_file
from dstee._lookup import did_you_mean
from dstee.experiments.config import Config, setting
from dstee.experiments.results.row import decides

__all__ = ["Grid", "GridRun", "parse_grid", "read_grid"]

_MAX_FILE = 1 << 20
_MAX_RUNS = 100_000
_MAX_NAME = 150
_TABLES = ("seeds", "settings", "grid", "variant", "skip", "differs")
_FIELDS = {f.name: f for f in dataclasses.fields(Config)}
_ELSEWHERE = {
    "compare": "list the methods in [grid] method",
    "seed": "seeds lists them",
    "label": "give it to a [[variant]]",
}
_EXPLORATION = ("c", "c_rel", "eps")


@dataclass(frozen=True)
class GridRun:
    """One run of a sweep: the name of its folder, and its settings."""

    name: str
    config: Config


@dataclass(frozen=True)
class Grid:
    """``text`` is that of the file; ``differs`` says what is not as in the experiment that it repeats."""

    runs: tuple[GridRun, ...]
    differs: tuple[str, ...]
    text: bytes


def read_grid(path: Path, more: Mapping[str, object] | None = None) -> Grid:
    """The grid of a file; ``more`` are settings that go before its own.

    Raises:
        UsageError: it cannot be read, or a training in it could not be made.
    """
    try:
        text = read_file(path, _MAX_FILE)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"the grid file {path} cannot be read: {reason}") from error
    return parse_grid(text, str(path), more)


def parse_grid(text: bytes, source: str, more: Mapping[str, object] | None = None) -> Grid:
    """The grid of a text.

    Raises:
        UsageError: as :func:`read_grid`.
    """
    try:
        held = _parse_toml(text)
        settings, crossed, variants, skips, seeds, differs = _checked_tables(held)
        settings = {**settings, **(more or {})}
        crossed = {name: values for name, values in crossed.items() if name not in (more or {})}
        return Grid(tuple(_runs(settings, crossed, variants, skips, seeds)), differs, text)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _parse_toml(text: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise UsageError(needs("a grid file, before Python 3.11,", "tomli", "cli")) from error
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"it is not TOML: {error}") from error


def _checked_tables(
    held: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, list[Any]], list[dict[str, Any]], list[dict[str, list[Any]]], list[int], tuple[str, ...]]:
    for name in held:
        if name not in _TABLES:
            raise UsageError(f"unknown entry {name!r}{did_you_mean(name, _TABLES)}, expected {', '.join(_TABLES)}")
    tables = {name: held.get(name, {}) for name in ("settings", "grid")}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"[{name}] must be a table, got {table!r}")
    settings, crossed = dict(tables["settings"]), dict(tables["grid"])
    places = {"seeds": held, "[settings]": settings, "[grid]": crossed}
    given = [place for place, table in places.items() if "seeds" in table]
    if len(given) > 1:
        raise UsageError(f"seeds is given {len(given)} times, in {' and '.join(given)}: give it once")
    seeds = _seeds(places[given[0]]["seeds"]) if given else [0]
    settings.pop("seeds", None)
    crossed.pop("seeds", None)
    variants, skips = _many(held, "variant"), _many(held, "skip")
    _refuse_names("[settings]", settings)
    for where, one in (("[grid]", crossed), *(("[[skip]]", one) for one in skips)):
        _refuse_names(where, one)
        for name, values in one.items():
            if not isinstance(values, list) or not values:
                hint = ": single ones belong in [settings]" if where == "[grid]" else ""
                raise UsageError(f"{where} {name} must be a list of values, got {values!r}{hint}")
    for one in variants:
        _refuse_names("[[variant]]", one)
    differs = held.get("differs", [])
    if not isinstance(differs, list) or not all(isinstance(one, str) for one in differs):
        raise UsageError("differs must be a list of texts")
    return settings, crossed, variants, skips, seeds, tuple(differs)


def _many(held: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    tables = held.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) and one for one in tables):
        raise UsageError(f"{name} must be tables of their own, each under [[{name}]]")
    return tables


def _seeds(value: object) -> list[int]:
    if type(value) is int and 1 <= value <= 1000:
        return list(range(value))
    numbers = isinstance(value, list) and all(type(seed) is int and 0 <= seed < 1 << 31 for seed in value)
    if isinstance(value, list) and numbers and 1 <= len(value) == len(set(value)) <= 1000:
        return value
    raise UsageError(f"seeds must be their number, from 1 to 1000, or a list of different seeds in 0..2^31-1, got {value!r}")


def _refuse_names(where: str, table: Mapping[str, object]) -> None:
    for name in table:
        if name not in _FIELDS:
            raise UsageError(f"{where}: unknown setting {name!r}{did_you_mean(name, _FIELDS)}")
        if name in _ELSEWHERE and not (name == "label" and where == "[[variant]]"):
            raise UsageError(f"{where}: {name} cannot stand here: {_ELSEWHERE[name]}")
        if name == "batch_seeds" and where != "[settings]":
            raise UsageError(f"{where}: batch_seeds cannot stand here: it is of all trainings, in [settings]")


def _runs(
    settings: Mapping[str, Any], crossed: dict[str, list[Any]], variants: Sequence[Mapping[str, Any]],
    skips: Sequence[Mapping[str, list[Any]]], seeds: Sequence[int],
) -> Iterable[GridRun]:  # fmt: skip
    """Seed by seed, so that what is finished early can be compared."""
    entries: list[Mapping[str, Any]] = [{"method": method} for method in crossed.pop("method", [])]
    if entries and "method" not in settings and (unnamed := [i for i, one in enumerate(variants, 1) if "method" not in one]):
        raise UsageError(f"[[variant]] number {unnamed[0]} has no method, and there is no one method of all: give it one")
    entries += variants
    entries = entries or [{}]
    wrong: dict[str, None] = {}
    used: set[str] = set()
    combinations = [dict(zip(crossed, values, strict=True)) for values in itertools.product(*crossed.values())]
    if len(entries) * len(combinations) * len(seeds) > _MAX_RUNS:
        raise UsageError(f"it has more than {_MAX_RUNS} trainings")
    groups = _groups(settings, seeds)
    cells: dict[str, GridRun] = {}
    idle_skips = {*range(len(skips))}
    for entry, cell in itertools.product(entries, combinations):
        values = _merged(settings, cell, entry)
        if hits := [i for i, skip in enumerate(skips) if _is_skipped(values, skip)]:
            idle_skips -= {*hits}
            continue
        try:
            one = _cell(values, crossed, groups[0], used)
        except UsageError as error:
            wrong[str(error)] = None
            continue
        if cells.setdefault(one.name, one).config != one.config:
            raise UsageError(f"two different trainings would be called {one.name}: give each variant a label of its own")
    if wrong:
        shown = list(wrong)[:3]
        more = f" (and {len(wrong) - len(shown)} more)" if len(wrong) > len(shown) else ""
        raise UsageError("; ".join(shown) + more)
    if not cells:
        raise UsageError("it makes no training: [[skip]] leaves all of them out")
    if idle_skips:
        raise UsageError(f"[[skip]] number {min(idle_skips) + 1} leaves nothing out: no training has one of its values each")
    if idle := [name for name in crossed if name not in used]:
        raise UsageError(f"[grid] {idle[0]} concerns none of the methods that are trained")
    return [
        GridRun(f"{one.name}-{_seed_name(group)}", dataclasses.replace(one.config, seed=group[0]))
        for group in groups
        for one in cells.values()
    ]


def _seed_name(group: Sequence[int]) -> str:
    return f"seed{group[0]}" if len(group) == 1 else f"seeds{group[0]}to{group[-1]}"


def _groups(settings: Mapping[str, Any], seeds: Sequence[int]) -> list[list[int]]:
    """The seeds that a run trains: one, or all at once where they are batched."""
    if not settings.get("batch_seeds"):
        return [[seed] for seed in seeds]
    if list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        raise UsageError(f"batch_seeds trains seeds that follow one another, got {list(seeds)}")
    return [list(seeds)]


def _merged(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """Later ones go before earlier ones; c and c_rel displace one another."""
    values: dict[str, Any] = {}
    for level in levels:
        for one, other in (("c", "c_rel"), ("c_rel", "c")):
            if one in level and other not in level:
                values.pop(other, None)
        values |= level
    return values


def _is_skipped(values: Mapping[str, Any], skip: Mapping[str, list[Any]]) -> bool:
    return all(values.get(name, _FIELDS[name].default) in wanted for name, wanted in skip.items())


def _cell(values: dict[str, Any], crossed: Iterable[str], seeds: Sequence[int], used: set[str]) -> GridRun:
    """A run of the first ``seeds``, whose name does not say so yet."""
    method = values.get("method", Config.method)
    values = {name: value for name, value in values.items() if _concerns(method, name)}
    used.update(values)
    config = Config.resolve({**values, "seed": seeds[0], "seeds": len(seeds)})
    parts = [_plain(values.get("label") or str(method))]
    for name in crossed:
        if name in values:
            shown = _shown(values[name])
            parts.append(shown if name in ("data", "model") else name + shown)
    name = "-".join(parts)
    if len(name) > _MAX_NAME:
        raise UsageError(f"a training would be called {name[:40]}...: its folder would have more than {_MAX_NAME} letters")
    return GridRun(name, config)


def _concerns(method: object, name: str) -> bool:
    """Whether a training of ``method`` takes the setting at all: dense has no sparsity, RigL no c."""
    if name in ("method", "method_settings", "label") or setting(_FIELDS[name]).free:
        return True
    return decides(str(method), "eps" if name in _EXPLORATION else name, {})


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return _plain(str(value).lower() if isinstance(value, bool) else str(value))


def _plain(text: str) -> str:
    """Letters that a folder's name may have everywhere; what tells apart words of others is a number behind it."""
    plain = re.sub(r"[^a-z0-9._+=]+", "-", text.lower()).strip("-.") or "x"
    return plain if all(c.isascii() for c in text if c.isalnum()) else f"{plain}-{zlib.crc32(text.encode()):08x}"
