"""Files that are whole or absent, and JSON without exceptions to its grammar."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn


class CheckpointError(ValueError):
    """A checkpoint or exported file cannot be used; the text names the file and what is wrong with it."""


class WriteError(Exception):
    """Writing failed so often that the work stops; the text is the one line that the user sees."""


def write_atomic(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Replaces ``path`` by ``parts``, all or nothing: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        OSError: the old file, if any, is untouched (or, if only the last fsync failed, the new one is complete), and no
        temporary file is left.
    """
    buffers = [memoryview(part).cast("B") for part in parts if len(part)]
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o644)
    try:
        try:
            for buffer in buffers:
                while buffer:
                    buffer = buffer[os.write(fd, buffer) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def parse_json(text: str | bytes) -> Any:
    """Strict JSON: no NaN, no Infinity, no duplicate keys; whatever is wrong is a ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def dump_json(value: object) -> bytes:
    """The text of a JSON file, which :func:`parse_json` reads back."""
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"
