"""Masks that keep the weights of the highest scores, in each layer or over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor

from dstee import _checks, ops

__all__ = ["masks_from_scores"]

K = TypeVar("K")


@overload
def masks_from_scores(
    scores: Mapping[str, Tensor], k: Mapping[str, int] | None = None, total: int | Tensor | None = None
) -> dict[str, Tensor]: ...
@overload
def masks_from_scores(
    scores: Sequence[Tensor], k: Sequence[int] | None = None, total: int | Tensor | None = None
) -> list[Tensor]: ...
def masks_from_scores(
    scores: Mapping[str, Tensor] | Sequence[Tensor],
    k: Mapping[str, int] | Sequence[int] | None = None,
    total: int | Tensor | None = None,
) -> dict[str, Tensor] | list[Tensor]:
    """The masks of the weights first in the order (score descending, layer, index in memory), with NaN after all.

    Args:
        scores: by parameter name, or a list; float32, bfloat16 or float16, on one device, ranked with their sign.
        k: active weights of each layer, as ``scores``: a dict or a list.
        total: active weights of all layers together, instead of ``k``: an int, or a one-element int64 tensor on the device.

    Returns:
        bool masks with the shapes and strides of the scores, by name or as a list: what ``sparsify(masks=...)`` takes.

    Raises:
        ValueError, TypeError: both or neither of ``k`` and ``total``, other names, a number out of range, scores that are none.
    """
    if (k is None) == (total is None):
        raise ValueError("pass k, active weights of each layer, or total, of all layers together: one of them")
    if isinstance(scores, Mapping):
        if k is not None and (not isinstance(k, Mapping) or k.keys() != scores.keys()):
            got = sorted(k) if isinstance(k, Mapping) else type(k).__name__
            raise ValueError(f"k must be a dict with the names of scores, {sorted(scores)}, got {got}")
        numbers = None if k is None else [k[name] for name in scores]
        return dict(zip(scores, masks_from_scores(list(scores.values()), numbers, total), strict=True))
    tensors = _checks.tensor_list("scores", scores)
    if not tensors:
        return []
    for i, t in enumerate(tensors):
        if t.dtype not in _checks.PARAM_DTYPES:
            raise TypeError(f"scores[{i}] has dtype {t.dtype}, expected float32, bfloat16 or float16: convert it first")
    tensors = [t.detach() for t in tensors]
    bits = [ops.pack_mask(torch.ones_like(t, dtype=torch.bool)) for t in tensors]
    unused = [torch.zeros_like(t) for t in tensors]  # in place of weights
    if total is not None:
        ops.global_keep_(tensors, unused, None, bits, None, total)
    else:
        assert k is not None and not isinstance(k, Mapping)
        numbers, _ = _checks.split_k(k, len(tensors), tensors[0].device)
        _checks.check_k(numbers, tensors, [t.numel() for t in tensors])
        for i, (t, n) in enumerate(zip(tensors, numbers, strict=True)):
            ops.global_keep_([t], unused[i : i + 1], None, bits[i : i + 1], None, n)
    return [ops.unpack_mask(b, (t.numel(),)).as_strided(t.shape, t.stride()) for b, t in zip(bits, tensors, strict=True)]
