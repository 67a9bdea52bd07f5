"""The one rule of comparison: equal bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["assert_same_bits"]


def assert_same_bits(actual: object, expected: object, name: str = "tensor") -> None:
    """Both hold the same bits, -0.0 and 0.0 told apart; NaN equals NaN whatever its payload. Takes tensors, None, lists.

    Raises:
        AssertionError: naming the first index that differs.
    """
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        _assert_same_tensor(actual.detach().cpu(), expected.detach().cpu(), name)
    elif isinstance(expected, Sequence) and isinstance(actual, Sequence):
        assert len(actual) == len(expected), f"{name}: {len(actual)} tensors, expected {len(expected)}"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_same_bits(a, e, f"{name}[{i}]")
    else:
        assert actual is None and expected is None, f"{name}: {type(actual).__name__}, expected {type(expected).__name__}"


def _assert_same_tensor(actual: Tensor, expected: Tensor, name: str) -> None:
    assert actual.dtype == expected.dtype, f"{name}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    a, e = actual.contiguous().view(-1), expected.contiguous().view(-1)
    if torch.equal(_bits(a), _bits(e)):
        return
    different = _bits(a) != _bits(e)
    if a.is_floating_point():
        different &= ~(a.isnan() & e.isnan())
    if not bool(different.any()):
        return
    first = int(different.nonzero()[0])
    place = [int(i) for i in np.unravel_index(first, tuple(actual.shape) or (1,))]
    raise AssertionError(
        f"{name}: {int(different.sum())} of {a.numel()} elements differ, first at index {place} (element {first}): "
        f"{_show(a[first])}, expected {_show(e[first])}"
    )


def _bits(t: Tensor) -> Tensor:
    if not t.is_floating_point():
        return t
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def _show(value: Tensor) -> str:
    return f"{value.item()!r} ({int(_bits(value)) & (1 << 8 * value.element_size()) - 1:#x})"
