"""A user's own data set, ``--data package.module:load``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dstee._console import UsageError
from dstee.experiments.data.images import Dataset, Images
from dstee.experiments.references import call_by_names

__all__ = ["load_own"]


def load_own(name: str, function: Callable[..., Any], data_dir: str | None) -> Images:
    """The data set that ``function`` reads; it is called with ``data_dir`` if it has an argument of this name.

    Raises:
        UsageError: it raised, or returned something else than images and labels.
    """
    try:
        found = call_by_names(function, {"data_dir": data_dir})
    except UsageError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise UsageError(f"--data {name} raised {type(error).__name__}: {error}") from error
    if isinstance(found, Images):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 4:
        raise UsageError(
            f"--data {name} must return four tensors, x_train, y_train, x_test, y_test, or dstee.experiments.data.Images, "
            f"got {type(found).__name__}"
        )
    x_train, y_train, x_test, y_test = (_tensor(name, part) for part in found)
    for x, y in ((x_train, y_train), (x_test, y_test)):
        if y.ndim != 1 or y.dtype.is_floating_point or y.dtype is torch.bool:
            raise UsageError(f"--data {name}: labels must be whole numbers [n], got {y.dtype} {list(y.shape)}")
        if x.ndim < 2 or len(x) != len(y) or len(y) == 0 or x.shape[1:] != x_train.shape[1:]:
            raise UsageError(f"--data {name}: {list(x.shape)} samples do not fit {list(y.shape)} labels")
        if int(y.min()) < 0:
            raise UsageError(f"--data {name}: labels must be 0 or more, got {int(y.min())}")
    classes = max(int(y_train.max()), int(y_test.max())) + 1
    return Dataset(name, x_train.float(), y_train.long(), x_test.float(), y_test.long(), classes=classes)


def _tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return torch.from_numpy(np.ascontiguousarray(value))
    raise UsageError(f"--data {name}: expected tensors or arrays of numbers, got {type(value).__name__}")
