"""Images that stay in their files until a batch needs them, one folder a class (ImageNet)."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError, needs
from dstee.experiments.data.files import data_folder
from dstee.experiments.data.images import Images, Part

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageFolders", "load_imagenet"]

_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # whatever the name says; others may start programs
_SIDE, _SHORTER = 224, 256
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEST_BATCH = 100

_Batch: TypeAlias = "list[Future[Tensor]]"
_Key: TypeAlias = "tuple[int | None, tuple[int, ...]]"


@dataclass(frozen=True)
class _Files:
    """Paths below ``root``, their bytes, int64 [n], and labels, int64 [n]."""

    root: Path
    names: Sequence[str]
    sizes: Tensor
    labels: Tensor

    def part(self, indices: Tensor) -> _Files:
        return _Files(self.root, [self.names[i] for i in indices.tolist()], self.sizes[indices], self.labels[indices])


class ImageFolders(Images):
    """Images below ``train/CLASS/`` and ``val/CLASS/`` of a folder, as torchvision's ImageFolder lists them; the labels number
    the classes in the order of their names.

    Training images are in a random order that is always the same, so that the first and the last of them are of all classes.
    With noise they are cropped at random, from 8 % to all of the area with an aspect ratio of 3/4 to 4/3, scaled to 224 x 224
    and flipped or not; without, and for the test, the shorter side becomes 256 pixels, out of which come the middle 224 x 224.
    ``reading`` says by how many threads files are read; it does not change what comes of them.

    Raises:
        UsageError: (also later, where a file is read) there are no such folders, or a file is no image; the text names it.
    """

    shape = (3, _SIDE, _SIDE)

    def __init__(self, name: str, folder: Path):
        self.name = name
        classes = _class_names(folder / "train")
        if odd := sorted(set(classes) ^ set(_class_names(folder / "val"))):
            raise UsageError(f"the class {odd[0]} is in one of {folder / 'train'} and {folder / 'val'} alone")
        self.classes = len(classes)
        train = _listed(folder / "train", classes)
        shuffled = torch.randperm(len(train.names), generator=torch.Generator().manual_seed(0))
        self._parts = {"train": train.part(shuffled), "test": _listed(folder / "val", classes)}
        self._class_names = classes
        self._start(1)

    def _start(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, "dstee-images")
        self._coming: dict[_Key, _Batch] = {}

    @functools.cached_property
    def digest(self) -> str:
        """blake2b (16 bytes, hex) of the names, sizes and labels of all files: their bytes are too many to be read for it."""
        hasher = hashlib.blake2b("\0".join(self._class_names).encode(errors="surrogateescape"), digest_size=16)
        for part, files in self._parts.items():
            hasher.update("\0".join((part, *files.names)).encode(errors="surrogateescape"))
            hasher.update(torch.stack([files.sizes, files.labels]).numpy().data)
        return hasher.hexdigest()

    def size(self, part: Literal["train"] | Part) -> int:
        return len(self._parts[part].names) if part in self._parts else 0

    def fetch(self, indices: Tensor, noise: int | None = None) -> tuple[Tensor, Tensor]:
        key = _key(indices, noise)
        batch = self._coming.pop(key, None) or self._submit("train", key)
        return _standard(batch), self._parts["train"].labels[indices.cpu()]

    def prefetch(self, coming: Iterable[tuple[Tensor, int | None]]) -> None:
        keys = [_key(indices, noise) for indices, noise in coming]
        for stale in self._coming.keys() - set(keys):
            for future in self._coming.pop(stale):
                future.cancel()
        for key in keys:
            if key not in self._coming:
                self._coming[key] = self._submit("train", key)

    def batches_of(self, part: Part, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        ahead: list[tuple[Tensor, _Batch]] = []
        for indices in torch.arange(self.size(part)).split(min(size, _TEST_BATCH))[first::every]:
            ahead.append((indices, self._submit(part, _key(indices, None))))
            if len(ahead) == 2:
                yield self._test_batch(part, *ahead.pop(0))
        for indices, batch in ahead:
            yield self._test_batch(part, indices, batch)

    def _test_batch(self, part: Part, indices: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
        return _standard(batch), self._parts[part].labels[indices]

    def _submit(self, part: Literal["train"] | Part, key: _Key) -> _Batch:
        files, (noise, indices) = self._parts[part], key
        return [
            self._pool.submit(_pixels, files.root / files.names[i], None if noise is None else f"{noise} {i}") for i in indices
        ]

    def limited(self, count: int) -> ImageFolders:
        if count > self.size("train"):
            raise UsageError(f"train_limit must be at most the {self.size('train')} training images, got {count}")
        return self._with(train=self._parts["train"].part(torch.arange(count))) if count else self

    def held_out(self, count: int) -> ImageFolders:
        if not count:
            return self
        train, size = self._parts["train"], self.size("train")
        if count >= size:
            raise UsageError(f"validation must be less than the {size} training images, got {count}")
        everyone = torch.arange(size)
        return self._with(train=train.part(everyone[: size - count]), validation=train.part(everyone[size - count :]))

    def reading(self, workers: int) -> ImageFolders:
        other = copy.copy(self)
        other._start(workers)
        return other

    def _with(self, **parts: _Files) -> ImageFolders:
        other = copy.copy(self)
        other.__dict__.pop("digest", None)
        other._parts = {**self._parts, **parts}
        other._coming = {}
        return other


def load_imagenet(data_dir: str | None) -> ImageFolders:
    """The folders ``train`` and ``val`` of ``data_dir`` or ``$DSTEE_DATA``, or of ``imagenet`` in it.

    Raises:
        UsageError: there are none, or Pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(needs("--data imagenet", "pillow", "vision")) from error
    Image.init()  # before threads do
    folder = data_folder("imagenet", "train/ and val/", data_dir)
    return ImageFolders("imagenet", folder / "imagenet" if (folder / "imagenet").is_dir() else folder)


def _class_names(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be read ({error.strerror}): --data-dir takes a folder of train/CLASS/ and val/CLASS/"
        ) from error
    if not names:
        raise UsageError(f"{folder} has no folders, expected one for each class with its images")
    return names


def _listed(folder: Path, classes: Sequence[str]) -> _Files:
    """All files that are images by their names, in the order of classes and names."""
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(names)
        for where, _, found in sorted(os.walk(folder / name, followlinks=True)):
            for file in sorted(found):
                if file.lower().endswith(_ENDINGS):
                    path = os.path.join(where, file)
                    names.append(os.path.relpath(path, folder))
                    sizes.append(_size(path))
                    labels.append(label)
        if len(names) == before:
            raise UsageError(f"{folder / name} has no images, expected files that end in {', '.join(_ENDINGS)}")
    return _Files(folder, names, torch.tensor(sizes), torch.tensor(labels))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _key(indices: Tensor, noise: int | None) -> _Key:
    return noise, tuple(indices.tolist())


def _standard(batch: _Batch) -> Tensor:
    """float32 [n, 3, 224, 224]; raises what the reading of any of them did."""
    x = torch.stack([future.result() for future in batch]).float()
    mean, std = (255 * torch.tensor(parts).view(-1, 1, 1) for parts in (_MEAN, _STD))
    return (x - mean) / std


def _pixels(path: Path, seed: str | None) -> Tensor:
    """uint8 [3, 224, 224]; ``seed`` decides crop and flip."""
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = opened.convert("RGB")
        image = _middle(image) if seed is None else _random_crop(image, random.Random(seed))
    except Exception as error:  # damage makes Pillow raise many kinds
        raise UsageError(f"{path} cannot be read as an image ({type(error).__name__}: {error}): repair or remove it") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _middle(image: Image) -> Image:
    from PIL.Image import Resampling

    width, height = image.size
    shorter = min(width, height)
    width, height = int(_SHORTER * width / shorter), int(_SHORTER * height / shorter)
    image = image.resize((width, height), Resampling.BILINEAR)
    left, top = round((width - _SIDE) / 2), round((height - _SIDE) / 2)
    return image.crop((left, top, left + _SIDE, top + _SIDE))


def _random_crop(image: Image, rng: random.Random) -> Image:
    from PIL.Image import Resampling, Transpose

    left, top, width, height = _box(*image.size, rng)
    image = image.crop((left, top, left + width, top + height)).resize((_SIDE, _SIDE), Resampling.BILINEAR)
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop as torchvision's RandomResizedCrop draws it (Szegedy et al., 2015)."""
    for _ in itertools.repeat(None, 10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randrange(width - w + 1), rng.randrange(height - h + 1), w, h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (width - w) // 2, (height - h) // 2, w, h
