"""CIFAR-10 after a lossy JPEG compression, as one small file, ``cifar10_jpeg.npz``."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from dstee._console import UsageError, needs
from dstee.experiments.data.files import data_file
from dstee.experiments.data.images import Dataset
from dstee.experiments.data.npz import Array, read_npz

__all__ = ["NOTE", "load_cifar10_jpeg"]

_TRAIN, _TEST, _SIDE = 50_000, 10_000, 32
_MOST_BYTES = 4096  # of one image, header and all: raw pixels have 3,072
_MEAN = (0.4913, 0.4821, 0.4465)
_STD = (0.2452, 0.2428, 0.2606)
NOTE = "JPEG-recompressed CIFAR-10 (lossy): accuracies on it are not those of CIFAR-10"


def load_cifar10_jpeg(data_dir: str | None) -> Dataset:
    """``cifar10_jpeg.npz`` of ``data_dir`` or ``$DSTEE_DATA``: 50,000 training images of 3 x 32 x 32 pixels, 10,000 of the test
    set, decoded by Pillow.

    The file has the arrays header, scans (uint8), lengths and labels (integers [60000]). The JPEG of image i is the header,
    the next ``lengths[i]`` bytes of the scans, and the end marker FF D9.

    Raises:
        UsageError: Pillow or the file is missing, or the file is damaged or another.
    """
    path = data_file("cifar10-jpeg", "cifar10_jpeg.npz", data_dir)
    count = _TRAIN + _TEST
    wanted = {
        "header": Array(("header bytes",), "u", 0, 255, "bytes", most=_MOST_BYTES),
        "scans": Array(("scan bytes",), "u", 0, 255, "bytes", most=count * _MOST_BYTES // 4),
        "lengths": Array((count,), low=1, high=_MOST_BYTES, values="lengths"),
        "labels": Array((count,), low=0, high=9, values="labels"),
    }
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(needs("--data cifar10-jpeg", "pillow", "vision")) from error
    found = read_npz(path, wanted)
    lengths = found["lengths"].astype(np.int64)
    if int(lengths.sum()) != len(found["scans"]):
        raise UsageError(
            f"{path} is not a usable {path.name}: lengths add up to {int(lengths.sum())} bytes, scans has {len(found['scans'])}"
        )
    header, scans = found["header"].astype(np.uint8).tobytes(), found["scans"].astype(np.uint8).tobytes()
    ends = itertools.accumulate(lengths.tolist())
    pixels = np.empty((count, _SIDE, _SIDE, 3), np.uint8)
    for i, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
        pixels[i] = _decoded(path, i, header + scans[end - length : end] + b"\xff\xd9", Image)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(found["labels"].astype(np.int64))
    return Dataset(
        "cifar10-jpeg", x[:_TRAIN], y[:_TRAIN], x[_TRAIN:], y[_TRAIN:], mean=tuple(255 * m for m in _MEAN),
        std=tuple(255 * s for s in _STD), note=NOTE,
    )  # fmt: skip


def _decoded(path: Path, i: int, jpeg: bytes, image_module: ModuleType) -> np.ndarray:
    try:
        with image_module.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if image.size != (_SIDE, _SIDE) or image.mode != "RGB":
                raise ValueError(f"{image.mode} {image.width} x {image.height}, expected RGB {_SIDE} x {_SIDE}")
            return np.asarray(image)
    except Exception as error:  # damage makes Pillow raise many kinds
        raise UsageError(f"{path} is not a usable {path.name}: image {i} is {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"no JPEG that can be decoded ({type(error).__name__})"
