"""Results of trainings as rows, from run folders, folders that hold many of them, and results files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dstee._console import UsageError
from dstee._files import parse_json, read_file
from dstee.experiments.records import Record, read_records
from dstee.experiments.results.file import as_epoch, as_update, parse_rows
from dstee.experiments.results.row import Epoch, Outcome, Row, Update, as_outcome, known_method, label_of, own_settings
from dstee.experiments.run_folder import read_manifest

__all__ = ["Row", "read_rows", "run_folders"]

_MAX_DEPTH = 3
_MAX_FOLDERS = 100_000
_MAX_RESULTS = 1 << 24
_MAX_FILE = 1 << 28


def _ignore(text: str) -> None:
    pass


def read_rows(paths: Iterable[str | Path], warn: Callable[[str], None] = _ignore, curves: bool = True) -> list[Row]:
    """The trainings in ``paths``: run folders, folders with run folders up to three levels below, results files.

    A training that is found twice, with the same numbers, is one row. Runs without results yet are left out with a warning
    where their folder was not named itself. Links below a named folder are not followed.

    Args:
        curves: read epochs and updates too.

    Raises:
        UsageError: there is no result, a file is not what it should be, or one training has two different results.
    """
    found: dict[tuple[object, ...], Row] = {}
    for path in map(Path, paths):
        for row in _rows_of(path, warn, curves):
            key = (row.label, row.method, row.seed, _frozen(row.settings), row.made_by.get("data_digest"))
            held = found.setdefault(key, row)
            if held is row:
                continue
            if not _same(held.result, row.result):
                raise UsageError(
                    f"{held.source} and {row.source} have different results of the same training ({row.name}): "
                    "leave one of them out"
                )
            if len(row.epochs) + len(row.updates) > len(held.epochs) + len(held.updates):
                found[key] = row
    return list(found.values())


def _frozen(value: Any) -> object:
    if isinstance(value, Mapping):
        return tuple(sorted((name, _frozen(one)) for name, one in value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list) else (type(value).__name__, value)


def _same(one: Outcome, other: Outcome) -> bool:
    """Up to the rounding of a results file, time aside; and the digest, which knows settings that do not decide."""
    for field in dataclasses.fields(Outcome):
        here, there = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("seconds", "kernel_seconds", "digest"):
            continue
        if field.name == "scores":
            if here.keys() != there.keys() or not all(_near(here[name], there[name]) for name in here):
                return False
        elif not _near(here, there):
            return False
    return True


def _near(one: float | None, other: float | None) -> bool:
    if one is None or other is None or isinstance(one, int):
        return one == other
    return abs(one - other) <= 1e-5 * max(abs(one), abs(other))


def _rows_of(path: Path, warn: Callable[[str], None], curves: bool) -> list[Row]:
    if not path.is_dir():
        try:
            rows = parse_rows(read_file(path, _MAX_FILE), str(path))
        except FileNotFoundError:
            raise UsageError(f"there is no {path}: name run folders, folders of them, or results files") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be used: {error}") from error
        return rows if curves else [dataclasses.replace(row, epochs=(), updates=()) for row in rows]
    if (path / "config.json").exists():
        if not (path / "results.json").exists():
            raise UsageError(f"{path} has no results yet (no results.json): dstee train --resume --out {path} finishes it")
        return _rows_of_run(path, warn, curves)
    rows, unfinished = [], []
    for folder in run_folders(path, warn):
        if (folder / "results.json").exists():
            rows += _rows_of_run(folder, warn, curves)
        else:
            unfinished.append(folder)
    if not rows:
        what = f"none of its {len(unfinished)} runs has ended" if unfinished else "no run folder in it, three levels deep"
        raise UsageError(f"{path} holds no results: {what}")
    if unfinished:
        warn(f"{path}: {len(unfinished)} runs without results are left out, such as {unfinished[0]}")
    return rows


def run_folders(top: Path, warn: Callable[[str], None]) -> list[Path]:
    """Folders with a config.json below ``top``, in the order of their names; nothing is looked for inside them."""
    found: list[Path] = []
    level, seen = [top], 0
    for _ in range(_MAX_DEPTH):
        deeper: list[Path] = []
        for folder in level:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if entry.is_symlink():
                        if entry.is_dir():
                            warn(f"{entry.path} is a symbolic link and not followed: name it to read it")
                    elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        seen += 1
                        if seen > _MAX_FOLDERS:
                            raise UsageError(f"{top} holds more than {_MAX_FOLDERS} folders: name those of the runs")
                        target = Path(entry.path)
                        (found if (target / "config.json").exists() else deeper).append(target)
        level = deeper
    return sorted(found)


def _rows_of_run(folder: Path, warn: Callable[[str], None], curves: bool) -> list[Row]:
    manifest = read_manifest(folder)
    assert manifest is not None
    held: Mapping[str, Any] = {**manifest}
    config = manifest["config"]
    made_by = {key: held[key] for key in ("dstee", "torch", "data_digest") if key in held}
    file = folder / "results.json"
    rows: dict[str, Row] = {}
    try:
        _refuse_link(file)
        content = parse_json(read_file(file, _MAX_RESULTS))
        results = content.get("results") if isinstance(content, dict) and len(content) == 1 else None
        if not isinstance(results, list) or not results:
            raise ValueError("it is no list of results")
        for i, entry in enumerate(results):
            try:
                if not isinstance(entry, dict):
                    raise ValueError("it is no object")
                method, seed = known_method(entry.get("method")), entry.get("seed")
                if type(seed) is not int or not 0 <= seed < 1 << 63:
                    raise ValueError(f"seed {seed!r} is not a whole number")
                if (name := f"{method}-seed{seed}") in rows:
                    raise ValueError(f"{name} stands there twice")
                rows[name] = Row(
                    label_of(config, method), method, seed, own_settings(config, method), as_outcome(entry),
                    made_by=made_by, source=str(folder),
                )  # fmt: skip
            except ValueError as error:
                raise ValueError(f"result {i}: {error}") from error
    except (OSError, ValueError) as error:
        hint = "without it, dstee train --resume or the sweep makes it again"
        raise UsageError(f"{file} cannot be used: {error}; {hint}") from error
    if not curves:
        return list(rows.values())
    return [_with_curves(row, folder / name / "metrics.jsonl", warn) for name, row in rows.items()]


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise ValueError("it is a symbolic link, which is not followed")


def _with_curves(row: Row, file: Path, warn: Callable[[str], None]) -> Row:
    """With what the training's JSON lines say, if they are there; an incomplete last line is left out with a warning."""
    epochs: list[Epoch] = []
    updates: list[Update] = []

    def take(record: Record) -> None:
        if (record["method"], record["seed"]) != (row.method, row.seed):
            raise ValueError(f"it is of {record['method']!r}, seed {record['seed']}")
        if record["kind"] == "update":
            updates.append(as_update(record))
        else:
            epochs.append(as_epoch(record))

    try:
        _refuse_link(file.parent)
        _refuse_link(file)
        read_records(file, warn, take)
    except FileNotFoundError:
        return row
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
    return dataclasses.replace(row, epochs=tuple(epochs), updates=tuple(updates))
