"""MNIST as one file, ``mnist.npz``."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from dstee._console import UsageError
from dstee._files import open_regular
from dstee.experiments.data.images import Dataset, standardised

__all__ = ["load_mnist"]

_MNIST = {
    "x_train": (60_000, 28, 28),
    "y_train": (60_000,),
    "x_test": (10_000, 28, 28),
    "y_test": (10_000,),
}
_END = struct.Struct("<4s8xI4xH")  # of a zip file without a comment
_MAX_DIRECTORY = 1 << 16
_MAX_NPY_HEADER = 4096


def load_mnist(data_dir: str | None) -> Dataset:
    """``mnist.npz`` of ``data_dir`` or ``$DSTEE_DATA``: 60,000 training images of 28 x 28 pixels, 10,000 of the test set."""
    folder = data_dir or os.environ.get("DSTEE_DATA")
    if not folder:
        raise UsageError("--data mnist needs the folder of mnist.npz: pass --data-dir DIR or set DSTEE_DATA")
    path = Path(folder) / "mnist.npz"
    if not path.is_file():
        raise UsageError(f"no file {path}: pass the folder of mnist.npz as --data-dir DIR or in DSTEE_DATA")
    try:
        with open(path, "rb", opener=open_regular) as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                _check_members(archive)
                tensors = {key: torch.from_numpy(_read(archive, key)) for key in _MNIST}
    except Exception as error:  # damage makes zipfile, zlib and numpy raise a dozen kinds
        raise UsageError(f"{path} is not a usable mnist.npz: {error or type(error).__name__}") from error
    return standardised("mnist", (1, 28, 28), **tensors)


def _check_directory(file: BinaryIO) -> None:
    """zipfile reads a directory of any size into memory; that of a few arrays is small."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    signature, directory, comment = _END.unpack(tail[-_END.size :].rjust(_END.size))
    if (signature, comment) != (b"PK\5\6", 0) or tail.startswith(b"PK\6\7") or directory > _MAX_DIRECTORY:
        raise ValueError("no zip file of a few arrays")


def _check_members(archive: zipfile.ZipFile) -> None:
    """Before anything is unpacked: each array is there once, and no larger than it (and a header) can be."""
    names = archive.namelist()
    for key, shape in _MNIST.items():
        if (count := names.count(f"{key}.npy")) != 1:
            raise ValueError(f"array {key} is " + ("missing" if count == 0 else f"there {count} times"))
        if (size := archive.getinfo(f"{key}.npy").file_size) > 8 * math.prod(shape) + _MAX_NPY_HEADER:
            raise ValueError(f"array {key} would take {size} bytes")


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array of the archive. Its header is looked at first: numpy takes memory for whatever shape stands there."""
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"array {key} has format {version}")
    if shape != _MNIST[key] or not all(type(d) is int for d in shape) or dtype.kind not in "ui" or dtype.itemsize > 8:
        raise ValueError(f"array {key} is {dtype} {list(shape)}, expected integers {list(_MNIST[key])}")
    with archive.open(f"{key}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if key.startswith("y") and (array.min() < 0 or array.max() > 9):
        raise ValueError(f"array {key} has labels outside 0..9")
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"array {key} has pixels outside 0..255")
    return array.astype(np.int64) if key.startswith("y") else array.astype(np.uint8)
