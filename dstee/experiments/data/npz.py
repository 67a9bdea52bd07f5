"""``.npz`` files read against a description: nothing is unpickled, and no memory is taken for what only a header claims."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dstee._console import UsageError
from dstee._files import open_regular

__all__ = ["Array", "read_npz"]

_END = struct.Struct("<4s8xI4xH")  # of a zip file without a comment
_MAX_DIRECTORY = 1 << 16
_MAX_NPY_HEADER = 4096
_KINDS = {"u": "integers", "i": "integers", "b": "bool", "f": "floats"}


@dataclass(frozen=True)
class Array:
    """What one array of a file must be.

    Args:
        shape: its sizes; a text in the place of one is a name for any size, the same wherever the name stands.
        kinds: ``dtype.kind`` that it may have, some of "uibf" (unsigned, signed, bool, float), at most 8 bytes an element.
        low, high: its values are in low..high (both included), where given; so are no floats that are not finite.
        values: what errors call them.
        most: elements at most; needed where the shape has a free size.
    """

    shape: tuple[int | str, ...] = ()
    kinds: str = "ui"
    low: float | None = None
    high: float | None = None
    values: str = "values"
    most: int | None = None

    @property
    def expected(self) -> str:
        kinds = " or ".join(dict.fromkeys(_KINDS[kind] for kind in self.kinds))
        limit = "" if self.most is None else f" of at most {self.most} elements"
        return f"{kinds} [{', '.join(map(str, self.shape))}]{limit}"

    @property
    def limit(self) -> int:
        """Elements at most."""
        if self.most is not None:
            return self.most
        fixed = [size for size in self.shape if isinstance(size, int)]
        if len(fixed) != len(self.shape):
            raise ValueError("an array with a free size needs `most`")
        return math.prod(fixed)


def read_npz(path: Path, arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """The arrays of ``path`` that ``arrays`` describes, by name; others in the file are not looked at.

    Raises:
        UsageError: it cannot be read or is damaged, or an array is missing or another than described; the text names the file.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                _check_members(archive, arrays)
                sizes: dict[str, int] = {}
                return {key: _read(archive, key, array, sizes) for key, array in arrays.items()}
    except Exception as error:  # damage makes zipfile, zlib and numpy raise a dozen kinds
        raise UsageError(f"{path} is not a usable {path.name}: {error or type(error).__name__}") from error


def _check_directory(file: BinaryIO) -> None:
    """zipfile reads a directory of any size into memory; that of a few arrays is small."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    signature, directory, comment = _END.unpack(tail[-_END.size :].rjust(_END.size))
    if (signature, comment) != (b"PK\5\6", 0) or tail.startswith(b"PK\6\7") or directory > _MAX_DIRECTORY:
        raise ValueError("no zip file of a few arrays")


def _check_members(archive: zipfile.ZipFile, arrays: Mapping[str, Array]) -> None:
    """Before anything is unpacked: each array is there once, and no larger than it (and a header) can be."""
    names = archive.namelist()
    for key, array in arrays.items():
        if (count := names.count(f"{key}.npy")) != 1:
            raise ValueError(f"array {key} is " + ("missing" if count == 0 else f"there {count} times"))
        if (size := archive.getinfo(f"{key}.npy").file_size) > 8 * array.limit + _MAX_NPY_HEADER:
            raise ValueError(f"array {key} would take {size} bytes")


def _read(archive: zipfile.ZipFile, key: str, wanted: Array, sizes: dict[str, int]) -> np.ndarray:
    """An array of the archive. Its header is looked at first: numpy takes memory for whatever shape stands there."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"array {key} has format {version}")
    if not _fits(shape, wanted, sizes) or dtype.kind not in wanted.kinds or dtype.itemsize > 8:
        others = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(
            f"array {key} is {dtype} {list(shape)}, expected {wanted.expected}" + (f" with {others}" if others else "")
        )
    with archive.open(f"{key}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"array {key} has {wanted.values} that are not finite")
    low, high = (-math.inf if wanted.low is None else wanted.low), (math.inf if wanted.high is None else wanted.high)
    if array.size and (array.min() < low or array.max() > high):
        limits = (
            f"below {low:g}" if high == math.inf else f"above {high:g}" if low == -math.inf else f"outside {low:g}..{high:g}"
        )
        raise ValueError(f"array {key} has {wanted.values} {limits}")
    return array


def _fits(shape: tuple[object, ...], wanted: Array, sizes: dict[str, int]) -> bool:
    """Whether the array may have this shape; then the names of free sizes are bound."""
    if len(shape) != len(wanted.shape):
        return False
    bound: dict[str, int] = {}
    for size, meant in zip(shape, wanted.shape, strict=True):
        if type(size) is not int or size < 0:
            return False
        if size != (sizes.get(meant, bound.setdefault(meant, size)) if isinstance(meant, str) else meant):
            return False
    if math.prod(size for size in shape if isinstance(size, int)) > wanted.limit:
        return False
    sizes.update({name: size for name, size in bound.items() if name not in sizes})
    return True
