"""CIFAR-10 and CIFAR-100 from the archives in which they are passed on, packed or unpacked, binary or pickled by Python."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dstee._console import UsageError
from dstee._files import open_regular, read_file
from dstee.experiments.data.cifar_pickle import read_batch
from dstee.experiments.data.files import data_folder
from dstee.experiments.data.images import Dataset

__all__ = ["CIFAR10", "CIFAR100", "Cifar", "Form", "load_cifar"]

_ROW = 3 * 32 * 32  # red, green and blue, each by rows
_MOST_MEMBERS = 100
_PICKLED = 2 * _ROW  # bytes an image at most: as text the pixels take half as much again


@dataclass(frozen=True)
class Form:
    """One way in which the images are passed on: ``archive`` (.tar.gz) holds the folder ``folder``, and it the files ``train``
    and ``test``; each row of a binary file begins with ``labels`` bytes, the last of them the label; ``key`` is that of the
    labels in pickled files, for which ``labels`` is 0."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: int = 0
    key: str = ""


@dataclass(frozen=True)
class Cifar:
    """A data set in all its forms, the preferred one first; ``counts``: images of each file for training and of the test set;
    ``mean`` and ``std`` of the training set's channels, of pixels in 0..1."""

    key: str
    classes: int
    counts: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    forms: tuple[Form, ...]


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10 = Cifar(
    "cifar10", 10, (10_000, 10_000), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    (
        Form("cifar-10-binary.tar.gz", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", 1),
        Form("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, "test_batch", key="labels"),
    ),
)  # fmt: skip
CIFAR100 = Cifar(
    "cifar100", 100, (50_000, 10_000), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762),
    (
        Form("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", 2),
        Form("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", key="fine_labels"),
    ),
)  # fmt: skip


def load_cifar(cifar: Cifar, data_dir: str | None) -> Dataset:
    """Images of 3 x 32 x 32 pixels, uint8, and (fine) labels: the same whichever form they are read from.

    Pickled files are read by a reader that knows numbers, texts and one array, and runs nothing. Archives are not unpacked
    to the disk.

    Raises:
        UsageError: no form is in ``data_dir`` or ``$DSTEE_DATA``, or the first that is there is damaged or another.
    """
    names = [name for form in cifar.forms for name in (f"{form.folder}/", form.archive)]
    folder = data_folder(cifar.key, " or ".join(names), data_dir)
    for form in cifar.forms:
        if (folder / form.folder).is_dir():
            return _dataset(cifar, form, folder / form.folder, partial(_from_folder, folder / form.folder))
        if (folder / form.archive).is_file():
            return _dataset(cifar, form, folder / form.archive, partial(_from_archive, folder / form.archive, form.folder))
    raise UsageError(f"no {cifar.key} in {folder}, expected one of {', '.join(names)}: pass their folder as --data-dir DIR")


_Files = Callable[[dict[str, int]], dict[str, bytes]]
"""Reads files by name, of which none may have more bytes than it says."""


def _dataset(cifar: Cifar, form: Form, path: Path, read: _Files) -> Dataset:
    counts = {**dict.fromkeys(form.train, cifar.counts[0]), form.test: cifar.counts[1]}
    limits = {name: count * (_PICKLED if form.key else form.labels + _ROW) for name, count in counts.items()}
    try:
        files = read(limits)
        batches = {name: _batch(cifar, form, name, files.pop(name), count) for name, count in counts.items()}
    except Exception as error:  # damage makes tarfile, zlib and the file system raise a dozen kinds
        raise UsageError(f"{path} is not a usable {cifar.key}: {error or type(error).__name__}") from error
    x_train, y_train = (torch.cat([batches[name][i] for name in form.train]) for i in (0, 1))
    x_test, y_test = batches[form.test]
    mean, std = (tuple(255 * part for part in parts) for parts in (cifar.mean, cifar.std))
    return Dataset(cifar.key, x_train, y_train, x_test, y_test, classes=cifar.classes, mean=mean, std=std)


def _batch(cifar: Cifar, form: Form, name: str, data: bytes, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        if form.key:
            pixels, labels = read_batch(data, form.key, count, _ROW)
        else:
            if len(data) != (expected := count * (form.labels + _ROW)):
                raise ValueError(f"it has {len(data)} bytes, expected {expected}: {count} images")
            rows = np.frombuffer(data, np.uint8).reshape(count, form.labels + _ROW)
            pixels, labels = rows[:, form.labels :], rows[:, form.labels - 1].astype(np.int64)
        if labels.min() < 0 or labels.max() >= cifar.classes:
            raise ValueError(f"it has labels outside 0..{cifar.classes - 1}")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32), torch.from_numpy(labels)


def _from_folder(folder: Path, limits: dict[str, int]) -> dict[str, bytes]:
    found = {}
    for name, limit in limits.items():
        try:
            found[name] = read_file(folder / name, limit)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    return found


def _from_archive(path: Path, folder: str, limits: dict[str, int]) -> dict[str, bytes]:
    """The files from the archive as a stream, to its end, where the checksum is."""
    wanted = {f"{folder}/{name}": name for name in limits}
    found: dict[str, bytes] = {}
    with open(path, "rb", opener=open_regular) as file, gzip.GzipFile(fileobj=file) as unzipped:
        stream = _Limited(unzipped, sum(limits.values()) + (1 << 20))
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # reads are all it needs
            for member in _few(archive):
                if (name := wanted.get(member.name)) is None:
                    continue
                if name in found:
                    raise ValueError(f"{member.name} is there twice")
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.size > limits[name]:
                    raise ValueError(f"{member.name} is no regular file of at most {limits[name]} bytes")
                content = archive.extractfile(member)
                found[name] = content.read() if content else b""
        while stream.read(1 << 20):
            pass
    if missing := [name for name in limits if name not in found]:
        raise ValueError(f"{folder}/{missing[0]} is missing")
    return found


def _few(archive: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    for i, member in enumerate(archive):
        if i == _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS} members")
        yield member


class _Limited:
    """A stream that ends with an error where it has more bytes than it may: packed zeros have no end."""

    def __init__(self, stream: gzip.GzipFile, limit: int):
        self.stream, self.left = stream, limit

    def read(self, size: int = io.DEFAULT_BUFFER_SIZE) -> bytes:
        data = self.stream.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("it unpacks to more bytes than its files can have")
        return data
