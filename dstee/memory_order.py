"""Tensors put into the memory order of a parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks, ops
from dstee.encoding import flat

__all__ = ["Strides", "is_binary", "like", "pack_like", "reorder", "reorder_bits", "row_major", "unpack_like"]

Strides = tuple[int, ...]


def row_major(shape: torch.Size) -> tuple[int, ...]:
    """Strides of a contiguous tensor of this shape."""
    return torch.empty(shape, device="meta").stride()


def like(t: Tensor, p: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
    """``t`` with the device, memory order and dtype of ``p`` (or one of ``dtypes``): itself if it has them, else a copy."""
    if t.requires_grad:
        t = t.detach()
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.is_neg():
        t = t.resolve_neg()
    if t.dtype in (p.dtype, *dtypes) and t.device == p.device and _checks.layout(t) == _checks.layout(p):
        return t
    return torch.empty_like(p, dtype=t.dtype if t.dtype in dtypes else p.dtype, requires_grad=False).copy_(t)


def is_binary(mask: Tensor) -> bool:
    """Whether a mask of any dtype holds 0 and 1 alone."""
    return mask.dtype is torch.bool or bool(((mask == 0) | (mask == 1)).all())


def pack_like(mask: Tensor, p: Tensor) -> Tensor:
    """A mask of any dtype (not 0 is active) and the shape of ``p`` as bits in the memory order of ``p``, on its device."""
    if mask.dtype is not torch.bool:
        mask = mask != 0
    if mask.device != p.device or _checks.layout(mask) != _checks.layout(p):
        mask = torch.empty_like(p, dtype=torch.bool, requires_grad=False).copy_(mask)
    return ops.pack_mask(mask)


def unpack_like(bits: Tensor, p: Tensor) -> Tensor:
    """Inverse of :func:`pack_like`: bool, shape and strides of ``p``."""
    return ops.unpack_mask(bits, (p.numel(),)).as_strided(p.shape, p.stride())


def reorder(values: Tensor, shape: Sequence[int], old: Strides, new: Strides) -> Tensor:
    """1-D ``values`` in the memory order of ``old`` strides, put into that of ``new``."""
    if old == new:
        return values
    target = values.new_empty_strided(tuple(shape), new)
    return flat(target.copy_(values.as_strided(tuple(shape), old)))


def reorder_bits(bits: Tensor, shape: Sequence[int], old: Strides, new: Strides) -> Tensor:
    """As :func:`reorder`, for a packed mask."""
    if old == new:
        return bits
    return ops.pack_mask(reorder(ops.unpack_mask(bits, (torch.Size(shape).numel(),)), shape, old, new))
