"""What a training leaves behind in numbers: records of its updates and epochs, and its result."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

from dstee._console import UsageError
from dstee._files import dump_json, parse_json, read_file, write_atomic

__all__ = [
    "EpochRecord",
    "MetricsLog",
    "MetricsLogs",
    "Record",
    "Result",
    "UpdateRecord",
    "as_record",
    "read_digests",
    "read_records",
    "write_results",
]


class _Update(TypedDict):
    kind: Literal["update"]
    method: str
    seed: int
    step: int
    round: int
    exploration: float | None
    churn: float


class UpdateRecord(_Update, total=False):
    """A mask update, at its step; ``exploration`` is None where there were too many updates to count them.

    Not in records of 0.1.0: ``exploration_limit`` is R_max so far, ``layers`` R by layer, ``dead_units`` their share.
    """

    exploration_limit: float
    layers: list[float] | None
    dead_units: float


class _Epoch(TypedDict):
    kind: Literal["epoch"]
    method: str
    seed: int
    step: int
    epoch: int
    loss: float | None
    accuracy: float
    exploration: float | None


class EpochRecord(_Epoch, total=False):
    """The end of an epoch; ``loss`` is its mean, None where that is not finite. ``scores``: others than the test accuracy, by
    name; not in records of 0.1.0."""

    scores: dict[str, float]


Record = UpdateRecord | EpochRecord
_COUNTS = ("seed", "step", "round", "epoch")
_SHARES = ("exploration", "churn", "accuracy", "exploration_limit", "dead_units")
_LARGEST = sys.float_info.max
_MAX_RESULTS = 1 << 24
_MAX_METRICS = 1 << 27
_FIELDS = {"update": set(_Update.__annotations__), "epoch": set(_Epoch.__annotations__)}
_OPTIONAL = {"update": {"exploration_limit", "layers", "dead_units"}, "epoch": {"scores"}}


def as_record(value: object) -> Record:
    """``value``, read from a file, if it is a record.

    Raises:
        ValueError: it is not; the text says why.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a record is an object, got {type(value).__name__}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise ValueError(f"unknown kind {kind!r}")
    if wrong := _FIELDS[kind] ^ (set(value) - _OPTIONAL[kind]):
        raise ValueError(f"{', '.join(map(repr, sorted(map(str, wrong))))} missing or unknown")
    if not isinstance(value["method"], str):
        raise ValueError(f"unknown method {value['method']!r}")
    for key, number in value.items():
        if type(number) is int and abs(number) >= 1 << 63:
            raise ValueError(f"{key} {number!r} is too large")
        if key in ("kind", "method") or (key in ("loss", "exploration", "layers") and number is None):
            continue
        if key in ("layers", "scores"):
            if not _is_shares(number, list if key == "layers" else dict):
                raise ValueError(f"{key} is no {'list' if key == 'layers' else 'object'} of numbers in 0..1")
            continue
        if key in _COUNTS:
            if type(number) is not int or number < 0:
                raise ValueError(f"{key} {number!r} is not a whole number")
        elif type(number) not in (int, float) or not -_LARGEST <= number <= _LARGEST:
            raise ValueError(f"{key} {number!r} is not a number")
        elif key in _SHARES and not 0 <= number <= 1:
            raise ValueError(f"{key} {number!r} is not in 0..1")
    return cast(Record, value)


def _is_shares(value: object, kind: type) -> bool:
    """Whether it is a list, or an object with short names, of at most 10,000 numbers in 0..1."""
    if not isinstance(value, kind) or not isinstance(value, (list, dict)):
        return False
    names, numbers = ([], value) if isinstance(value, list) else (list(value), list(value.values()))
    return (
        len(numbers) <= 10_000
        and all(isinstance(name, str) and len(name) <= 100 for name in names)
        and all(type(n) in (int, float) and 0 <= n <= 1 for n in numbers)
    )


def read_records(
    file: Path, warn: Callable[[str], None], check: Callable[[Record], object] = lambda record: None
) -> list[Record]:
    """The records of a training's JSON lines; an incomplete last line (a killed writer's) is left out with a warning.

    Args:
        check: raises ValueError for a record that does not belong there.

    Raises:
        FileNotFoundError: there is no such file. UsageError: it cannot be read, or a line is not a record.
    """
    try:
        lines = read_file(file, _MAX_METRICS).split(b"\n")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
    if lines.pop():
        warn(f"{file}: the last line is incomplete and left out")
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = as_record(parse_json(line))
            check(record)
        except ValueError as error:
            raise UsageError(f"{file}, line {number}: not a metric of dstee: {error}") from error
        records.append(record)
    return records


class MetricsLog:
    """``records``, a list that its owner extends, as JSON lines on disk."""

    def __init__(self, path: Path, records: list[Record]):
        self.path, self.records = path, records
        self._behind = True

    def flush(self, *new: Record) -> None:
        """Brings the file up to date: appends ``new``, or writes all records where the file was never whole or is not now.

        Raises:
            OSError: it could not be written; the next call repairs it.
        """
        if self._behind:
            write_atomic(self.path, [_line(record) for record in self.records])
        elif new:
            self._behind = True
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
            try:
                data = memoryview(b"".join(_line(record) for record in new))
                while data:
                    data = data[os.write(fd, data) :]
            finally:
                os.close(fd)
        self._behind = False


class MetricsLogs:
    """Those of trainings that run together; each gets its own records, by method and seed."""

    def __init__(self, logs: Mapping[tuple[str, int], MetricsLog]):
        self.logs = logs

    def flush(self, *new: Record) -> None:
        """As :meth:`MetricsLog.flush`; the failure of one does not keep the others from being written."""
        failure: OSError | None = None
        for (method, seed), log in self.logs.items():
            try:
                log.flush(*(record for record in new if record["method"] == method and record["seed"] == seed))
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Result:
    """One training at its end. FLOPs are relative to dense; seconds are wall time and time in dstee's ops.

    ``accuracy`` is that of the test set at the epoch which the task reports, None where the training diverged at step
    ``diverged_at`` (its loss was not finite, or all gradients were 0 at a mask update); ``scores`` has others by name, of the
    same epoch. ``exploration`` is R (None where it was not counted), ``exploration_limit`` R_max, ``dead_units`` a share of all
    output units, ``nnz`` the active weights at the end, ``mean_density`` their share while training.
    """

    method: str
    seed: int
    accuracy: float | None
    exploration: float | None
    exploration_limit: float
    dead_units: float
    nnz: int
    numel: int
    mean_density: float
    inference_flops: float
    training_flops: float
    seconds: float
    kernel_seconds: float
    digest: str
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    diverged_at: int | None = None


_SINCE_0_1_0 = {"exploration_limit", "dead_units", "mean_density", "scores", "diverged_at"}
"""Entries of a result that a folder of 0.1.0 does not have."""


def write_results(run: Path, results: Sequence[Result]) -> None:
    """``results.json`` of the folder ``run``. Raises OSError: it could not be written."""
    write_atomic(run / "results.json", [dump_json({"results": [asdict(result) for result in results]})])


def read_digests(run: Path) -> dict[str, str]:
    """The digest of each training's last state, by training, from ``results.json``.

    Raises:
        UsageError: there is no such file, or it does not hold results.
    """
    file = run / "results.json"
    try:
        held = parse_json(read_file(file, _MAX_RESULTS))
        results = held.get("results") if isinstance(held, dict) and len(held) == 1 else None
        if not isinstance(results, list):
            raise ValueError("it is no list of results")
        digests: dict[str, str] = {}
        for i, result in enumerate(results):
            if not isinstance(result, dict) or set(result) | _SINCE_0_1_0 != {f.name for f in dataclasses.fields(Result)}:
                raise ValueError(f"result {i} has other entries than a result")
            method, seed, digest = result["method"], result["seed"], result["digest"]
            if not isinstance(method, str) or type(seed) is not int or not isinstance(digest, str):
                raise ValueError(f"result {i} names no method, seed and digest")
            if (name := f"{method}-seed{seed}") in digests:
                raise ValueError(f"{name} stands there twice")
            digests[name] = digest
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from error
    return digests
