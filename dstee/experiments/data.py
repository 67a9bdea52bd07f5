"""Data sets of the command line, and the order in which a training sees them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError
from dstee._files import open_regular

__all__ = ["DATA_SETS", "BatchOrder", "BatchOrderState", "Dataset", "Source", "load"]

_MNIST = {
    "x_train": (60_000, 28, 28),
    "y_train": (60_000,),
    "x_test": (10_000, 28, 28),
    "y_test": (10_000,),
}
_DIGITS_TEST = 500
_END = struct.Struct("<4s8xI4xH")  # of a zip file without a comment
_MAX_DIRECTORY = 1 << 16
_MAX_NPY_HEADER = 4096


@dataclass(frozen=True)
class Dataset:
    """Images as float32 [n, features], standardised by the training set; labels as int64 [n] in 0..9."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def limited(self, count: int) -> Dataset:
        """With the first ``count`` training images alone, standardised as all of them; 0: as it is.

        Raises:
            UsageError: there are not so many.
        """
        if count > len(self.y_train):
            raise UsageError(f"train_limit must be at most the {len(self.y_train)} training images, got {count}")
        return dataclasses.replace(self, x_train=self.x_train[:count], y_train=self.y_train[:count]) if count else self

    @functools.cached_property
    def digest(self) -> str:
        """blake2b (16 bytes, hex) of all four tensors."""
        hasher = hashlib.blake2b(digest_size=16)
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            hasher.update(tensor.numpy().data)
        return hasher.hexdigest()


def _standardised(name: str, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> Dataset:
    x_train, x_test = (x.flatten(1).float() for x in (x_train, x_test))
    # Pixels are small whole numbers: both sums are exact.
    mean = x_train.sum(dtype=torch.float64).item() / x_train.numel()
    square = x_train.square().sum(dtype=torch.float64).item() / x_train.numel()
    x_train, x_test = ((x - mean) / math.sqrt(square - mean * mean) for x in (x_train, x_test))
    return Dataset(name, x_train, y_train.long(), x_test, y_test.long())


def _digits(data_dir: str | None) -> Dataset:
    """1,797 real 8x8 images, of which 500 are the test set, the same for every seed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("--data digits needs scikit-learn, which ships the images: pip install scikit-learn") from error
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = shuffled[:_DIGITS_TEST], shuffled[_DIGITS_TEST:]
    return _standardised("digits", images[train], labels[train], images[test], labels[test])


def _mnist(data_dir: str | None) -> Dataset:
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
    return _standardised("mnist", **tensors)


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


@dataclass(frozen=True)
class Source:
    """How a data set is read, and the settings that suit it where the user names no others."""

    load: Callable[[str | None], Dataset]
    settings: Mapping[str, object]


# Digits at 98 %: 3,328 of 166,400 weights are active, and where they are makes a difference.
DATA_SETS: dict[str, Source] = {
    "digits": Source(_digits, {"hidden": (512, 256), "epochs": 60, "batch_size": 64, "every": 20, "checkpoint_every": 400}),
    "mnist": Source(_mnist, {"hidden": (512, 256), "epochs": 5, "batch_size": 128, "every": 40, "checkpoint_every": 1000}),
}
"""The choices of ``--data``; an entry more is a choice more."""


def load(name: str, data_dir: str | None) -> Dataset:
    """Data set ``name``: "digits" (inside scikit-learn) or "mnist" (``mnist.npz`` in ``data_dir`` or ``$DSTEE_DATA``).

    Raises:
        UsageError: a file or package is missing or damaged; the text says which, and which option helps.
    """
    return DATA_SETS[name].load(data_dir)


class BatchOrderState(TypedDict):
    """The exact position in the order of the data."""

    position: int
    permutation: Tensor
    generator: Tensor


class BatchOrder:
    """Shuffled batches of indices, epoch after epoch, with a generator of its own; an incomplete last batch is left out.

    ``state_dict`` holds the exact position, in the middle of an epoch too.
    """

    def __init__(self, size: int, batch_size: int, seed: int):
        if batch_size > size:
            raise UsageError(f"batch_size must be at most the {size} training samples, got {batch_size}")
        self.size, self.batch_size = size, batch_size
        self.batches = size // batch_size
        self.position = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._permutation = torch.randperm(size, generator=self._generator)

    def next(self) -> Tensor:
        """int64 [batch_size]: the samples of the next step."""
        if self.position == self.batches:
            self._permutation = torch.randperm(self.size, generator=self._generator)
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self._permutation[start : start + self.batch_size]

    def state_dict(self) -> BatchOrderState:
        return {
            "position": self.position,
            "permutation": self._permutation,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: BatchOrderState) -> None:
        """Raises ValueError, before anything changes, if the state is not one of this data and batch size."""
        position, permutation = state["position"], state["permutation"]
        if type(position) is not int or not 0 <= position <= self.batches:
            raise ValueError(f"the position in the data order must be in 0..{self.batches}, got {position!r}")
        if not torch.equal(permutation.sort().values, torch.arange(self.size)):
            raise ValueError(f"the data order is not a permutation of the {self.size} training samples")
        self._generator.set_state(state["generator"])
        self.position, self._permutation = position, permutation
