"""Whether a run has finished, by its ``results.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dstee._console import UsageError
from dstee.experiments.config import Config
from dstee.experiments.records import Result
from dstee.experiments.results.row import Outcome, Row
from dstee.experiments.results.rows import read_rows

__all__ = ["finished_rows", "read_results"]


def finished_rows(folder: Path, config: Config, warn: Callable[[str], None]) -> list[Row] | None:
    """The results of a run, where they are there, whole and all; what is wrong with them is a warning."""
    if not (folder / "results.json").exists():
        return None
    try:
        rows = read_rows([folder], curves=False)
    except UsageError as error:
        warn(f"{error}; the run goes on from its last checkpoint, where it has one")
        return None
    return rows if [(row.method, row.seed) for row in rows] == config.trials() else None


def read_results(folder: Path, config: Config, warn: Callable[[str], None]) -> list[Result] | None:
    """The same as they were written; None also where an older dstee did not write all of it."""
    rows = finished_rows(folder, config, warn)
    values: list[dict[str, Any]] = [
        {f.name: getattr(row.result, f.name) for f in dataclasses.fields(Outcome)} for row in rows or ()
    ]
    if rows is None or any(one[name] is None for one in values for name in _ALWAYS):
        return None
    return [Result(method=row.method, seed=row.seed, **one) for row, one in zip(rows, values, strict=True)]


_ALWAYS = ("exploration_limit", "dead_units", "mean_density", "seconds", "kernel_seconds")
"""What every result has had since they were introduced."""
