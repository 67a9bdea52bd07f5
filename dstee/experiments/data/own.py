"""A user's own data set, ``--data package.module:load``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError
from dstee.experiments.data.images import Dataset, Images
from dstee.experiments.references import call_by_names, required

__all__ = ["load_own"]


def load_own(name: str, function: Callable[..., Any], data_dir: str | None) -> Images:
    """The data set that ``function`` reads; it is called with ``data_dir`` if it has an argument of this name.

    Raises:
        UsageError: it raised, or returned something else than images and labels.
    """
    if more := sorted(required(function) - {"data_dir"}):
        raise UsageError(
            f"--data {name} asks for {', '.join(more)}, but is called with data_dir, the folder of the data, or nothing"
        )
    try:
        found = call_by_names(function, {"data_dir": data_dir})
    except UsageError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise UsageError(f"--data {name} raised {type(error).__name__}: {error}") from error
    if isinstance(found, Dataset):
        return _checked(name, found)
    if isinstance(found, Images):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        raise UsageError(
            f"--data {name} must return four tensors, x_train, y_train, x_test, y_test, or dstee.experiments.data.Images, "
            f"got {type(found).__name__}"
        )
    x_train, y_train, x_test, y_test = (_tensor(name, part) for part in found)
    for y in (y_train, y_test):
        if y.ndim != 1 or y.dtype.is_floating_point or y.dtype is torch.bool:
            raise UsageError(f"--data {name}: labels must be whole numbers [n], got {y.dtype} {list(y.shape)}")
    y_train, y_test = y_train.long(), y_test.long()
    if not len(y_train) or not len(y_test):
        raise UsageError(
            f"--data {name}: there must be samples to train on and to test on, got {len(y_train)} and {len(y_test)}"
        )
    classes = max(int(y_train.max()), int(y_test.max())) + 1
    if classes > max(len(y_train), 2):
        raise UsageError(
            f"--data {name}: labels must number the classes from 0, got {classes - 1} as the largest of {len(y_train)} samples"
        )
    return _checked(name, Dataset(name, x_train.float(), y_train, x_test.float(), y_test, classes=classes))


def _checked(name: str, data: Dataset) -> Dataset:
    """What a training would fail on in its midst."""
    channels = data.shape[0] if data.shape else 0
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test), (data.x_validation, data.y_validation)):
        if x is None or y is None:
            continue
        if x.ndim < 2 or y.shape != (len(x),) or not len(y) or not x[0].numel() or x.shape[1:] != data.x_train.shape[1:]:
            raise UsageError(f"--data {name}: {list(x.shape)} samples do not fit {list(y.shape)} labels")
        if x[0].numel() != math.prod(data.shape):
            raise UsageError(f"--data {name}: {list(x.shape)} samples cannot be seen as {list(data.shape)}")
        if y.dtype is not torch.int64 or int(y.min()) < 0 or int(y.max()) >= data.classes:
            raise UsageError(
                f"--data {name}: labels must be int64 in 0..{data.classes - 1}, got {y.dtype} in {int(y.min())}..{int(y.max())}"
            )
        if x.dtype is not (torch.float32 if data.mean is None else torch.uint8):
            raise UsageError(f"--data {name}: samples must be float32, or uint8 with mean and std, got {x.dtype}")
        if x.is_floating_point() and not x.isfinite().all():
            raise UsageError(f"--data {name}: samples must be finite, {int((~x.isfinite()).sum())} numbers of them are not")
    for what, parts in (("mean", data.mean), ("std", data.std)):
        if (parts is None) != (data.mean is None) or (parts is not None and len(parts) not in (1, channels)):
            raise UsageError(f"--data {name}: {what} must have a number for each of the {channels} channels, got {parts}")
    return data


def _tensor(name: str, value: object) -> Tensor:
    try:
        if isinstance(value, Tensor) and not value.is_complex():
            return value.detach().cpu().to_dense().contiguous()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
            return torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor without storage, numbers of another byte order
        raise UsageError(f"--data {name}: a {type(value).__name__} that cannot be used: {error}") from error
    what = value.dtype if isinstance(value, (Tensor, np.ndarray)) else type(value).__name__
    raise UsageError(f"--data {name}: expected tensors or arrays of real numbers, got {what}")
