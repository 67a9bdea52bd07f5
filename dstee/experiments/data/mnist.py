"""MNIST as one file, ``mnist.npz``."""

from __future__ import annotations

import numpy as np
import torch

from dstee.experiments.data.files import data_file
from dstee.experiments.data.images import Dataset, standardised
from dstee.experiments.data.npz import Array, read_npz

__all__ = ["load_mnist"]

_MNIST = {
    "x_train": (60_000, 28, 28),
    "y_train": (60_000,),
    "x_test": (10_000, 28, 28),
    "y_test": (10_000,),
}


def load_mnist(data_dir: str | None) -> Dataset:
    """``mnist.npz`` of ``data_dir`` or ``$DSTEE_DATA``: 60,000 training images of 28 x 28 pixels, 10,000 of the test set."""
    wanted = {
        key: Array(shape, low=0, high=9, values="labels") if key[0] == "y" else Array(shape, low=0, high=255, values="pixels")
        for key, shape in _MNIST.items()
    }
    found = read_npz(data_file("mnist", "mnist.npz", data_dir), wanted)
    tensors = {key: torch.from_numpy(array.astype(np.int64 if key[0] == "y" else np.uint8)) for key, array in found.items()}
    return standardised("mnist", (1, 28, 28), **tensors)
