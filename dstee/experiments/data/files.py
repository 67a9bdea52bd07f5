"""Where a data set's files are, and optional packages that read them."""

from __future__ import annotations

import os
from pathlib import Path

from dstee._console import UsageError

__all__ = ["data_file", "data_folder"]


def data_folder(key: str, wanted: str, data_dir: str | None) -> Path:
    """``data_dir`` or ``$DSTEE_DATA``, where ``wanted`` is looked for.

    Raises:
        UsageError: neither is given.
    """
    folder = data_dir or os.environ.get("DSTEE_DATA")
    if not folder:
        raise UsageError(f"--data {key} needs the folder of {wanted}: pass --data-dir DIR or set DSTEE_DATA")
    return Path(folder)


def data_file(key: str, name: str, data_dir: str | None) -> Path:
    """The file ``name`` in ``data_dir`` or ``$DSTEE_DATA``.

    Raises:
        UsageError: neither is given, or there is no such file.
    """
    path = data_folder(key, name, data_dir) / name
    if not path.is_file():
        raise UsageError(f"no file {path}: pass the folder of {name} as --data-dir DIR or in DSTEE_DATA")
    return path
