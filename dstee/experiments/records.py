"""What a training leaves behind in numbers: records of its updates and epochs, and its result."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

from dstee._console import UsageError
from dstee._files import dump_json, parse_json, read_file, write_atomic

__all__ = ["EpochRecord", "MetricsLog", "Record", "Result", "UpdateRecord", "as_record", "read_digests", "write_results"]


class UpdateRecord(TypedDict):
    """A mask update, at its step; ``exploration`` is None where there were too many updates to count them."""

    kind: Literal["update"]
    method: str
    seed: int
    step: int
    round: int
    exploration: float | None
    churn: float


class EpochRecord(TypedDict):
    """The end of an epoch; ``loss`` is its mean, None where that is not finite."""

    kind: Literal["epoch"]
    method: str
    seed: int
    step: int
    epoch: int
    loss: float | None
    accuracy: float
    exploration: float | None


Record = UpdateRecord | EpochRecord
_COUNTS = ("seed", "step", "round", "epoch")
_SHARES = ("exploration", "churn", "accuracy")
_LARGEST = sys.float_info.max
_MAX_RESULTS = 1 << 24
_FIELDS = {"update": set(UpdateRecord.__annotations__), "epoch": set(EpochRecord.__annotations__)}


def as_record(value: object) -> Record:
    """``value``, read from a file, if it is a record.

    Raises:
        ValueError: it is not; the text says why.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a record is an object, got {type(value).__name__}")
    fields = _FIELDS.get(kind) if isinstance(kind := value.get("kind"), str) else None
    if fields is None:
        raise ValueError(f"unknown kind {kind!r}")
    if wrong := fields ^ set(value):
        raise ValueError(f"{', '.join(map(repr, sorted(map(str, wrong))))} missing or unknown")
    if not isinstance(value["method"], str):
        raise ValueError(f"unknown method {value['method']!r}")
    for key, number in value.items():
        if key in ("kind", "method") or (key in ("loss", "exploration") and number is None):
            continue
        if key in _COUNTS:
            if type(number) is not int or not 0 <= number < 1 << 63:
                raise ValueError(f"{key} {number!r} is not a whole number")
        elif type(number) not in (int, float) or not -_LARGEST <= number <= _LARGEST:
            raise ValueError(f"{key} {number!r} is not a number")
        elif key in _SHARES and not 0 <= number <= 1:
            raise ValueError(f"{key} {number!r} is not in 0..1")
    return cast(Record, value)


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


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Result:
    """One training at its end. FLOPs are relative to dense; seconds are wall time and time in dstee's ops.

    ``exploration`` is R (None where it was not counted), ``exploration_limit`` R_max, ``dead_units`` a share of all output
    units, ``nnz`` the active weights at the end, ``mean_density`` their share while training.
    """

    method: str
    seed: int
    accuracy: float
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


_SINCE_0_1_0 = {"exploration_limit", "dead_units", "mean_density"}
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
