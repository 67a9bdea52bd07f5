"""Files that are whole or absent, files that are not what they seem, and JSON without exceptions to its grammar."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

_MAX_DIMS = 16
_MAX_DIM = 1 << 40
_STALE = 3600.0


class CheckpointError(ValueError):
    """A checkpoint or exported file cannot be used; the text names the file and what is wrong with it."""


class WriteError(Exception):
    """Writing failed so often that the work stops; the text is the one line that the user sees."""


def write_atomic(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Replaces ``path`` by ``parts``, all or nothing: temporary file beside it, fsync, rename, fsync of the folder.

    A symbolic link in the place of ``path`` is replaced, not followed. The temporary file has a name that nobody can foresee:
    one who may write to the folder cannot put a link there. The new file's mode is what the umask leaves of 0666.

    Raises:
        OSError: the old file, if any, is untouched (or, if only the last fsync failed, the new one is complete), and no
        temporary file is left.
    """
    buffers = [memoryview(part).cast("B") for part in parts if len(part)]
    name = path.name[:200]  # room for the rest within the 255 of most file systems
    temporary = path.with_name(f".{name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        fd = os.open(temporary, flags, 0o666)
    except OSError as error:
        error.filename = str(path)  # whoever reads it knows of no temporary file
        raise
    try:
        try:
            for buffer in buffers:
                while buffer:
                    buffer = buffer[os.write(fd, buffer) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)
    remove_leftovers(path.parent, re.escape(name), _STALE)  # younger ones may belong to another process that writes this file


def remove_leftovers(folder: Path, targets: str, older_than: float = 0.0) -> None:
    """Removes temporary files that killed writers left in ``folder``, those of 0.1.0 too; what cannot be removed stays.

    Args:
        targets: a regular expression for the names of the files that were to be written.
        older_than: seconds since a file was last written to.
    """
    temporary = re.compile(rf"\.(?:{targets})(?:\.[0-9a-f]{{16}})?\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if temporary.fullmatch(name):
                with contextlib.suppress(OSError):
                    if not older_than or time.time() - os.lstat(folder / name).st_mtime > older_than:
                        os.unlink(folder / name)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Opens a file, as the ``opener`` of :func:`open` too. A named pipe in its place would block for ever.

    Raises:
        ValueError: it is no regular file. OSError: it cannot be opened.
    """
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a regular file")
    return fd


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file.

    Raises:
        ValueError: it is none, or has more than ``limit`` bytes. OSError: it cannot be read.
    """
    with open(path, "rb", opener=open_regular) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"more than {limit} bytes, which is too much for such a file")
    return data


def parse_json(text: str | bytes, max_depth: int = 64, finite: bool = True) -> Any:
    """Strict JSON: no duplicate keys, no int beyond 64 bits, where ``finite`` no NaN and no Infinity; whatever is wrong is a
    ValueError."""
    constant: Callable[[str], Any] = _refuse_constant if finite else float
    number: Callable[[str], Any] = _finite if finite else float
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=constant, parse_float=number, parse_int=_int64)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level: list[Any] = [value]
    for _ in range(max_depth):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


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


def _int64(text: str) -> int:
    number = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"the number {text[:20]}... has more than 64 bits")
    return number


def is_shape(value: object) -> bool:
    """Whether ``value``, read from a file, is a list of sizes that a tensor can have: neither it nor its strides overflow."""
    if not isinstance(value, list) or len(value) > _MAX_DIMS or not all(type(d) is int and 0 <= d < _MAX_DIM for d in value):
        return False
    return 16 * math.prod(max(d, 1) for d in value) < 1 << 63  # 16 bytes: the largest dtype


def dump_json(value: object) -> bytes:
    """The text of a JSON file, which :func:`parse_json` reads back."""
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"
