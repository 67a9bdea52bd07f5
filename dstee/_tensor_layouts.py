"""How tensors lie in memory, as values to compare: many of them at the price of a few calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _dispatch
from dstee.backends import native

__all__ = ["layouts"]


def layouts(tensors: Sequence[Tensor | None], addresses: bool = True) -> list[object] | None:
    """For each tensor its address (without ``addresses`` not), device, dtype, shape and strides; equal values are equal in all.

    None where one of them is not strided memory of its own: a sparse tensor, a subclass, None.
    """
    module = native.load()[0]
    found = None if module is None else module.layouts(list(tensors), addresses)
    return _layouts(tensors, addresses) if found is None else found


def _layouts(tensors: Sequence[Tensor | None], addresses: bool) -> list[object] | None:
    """As :func:`layouts`, where the compiled module is missing or has not told."""
    if not all([type(t) in _dispatch.PLAIN and t.layout is torch.strided for t in tensors]):  # type: ignore[union-attr]
        return None
    return [
        (t.data_ptr() if addresses else 0, t.device, t.dtype, t.shape, t.stride())  # type: ignore[union-attr]
        for t in tensors
    ]
