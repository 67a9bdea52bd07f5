"""``pack_mask`` and ``unpack_mask``: one bit a weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _checks, _dispatch, encoding
from dstee.ops._call import call, declare

declare(
    "pack_mask(Tensor mask) -> Tensor",
    lambda mask: mask.new_empty(encoding.mask_bytes(mask.numel()), dtype=torch.uint8),
)
declare(
    "unpack_mask(Tensor mask_bits, SymInt[] shape) -> Tensor",
    lambda mask_bits, shape: mask_bits.new_empty(shape, dtype=torch.bool),
)


def pack_mask(mask: Tensor) -> Tensor:
    """bool mask (any shape, dense storage) -> uint8 [ceil(n/8)], one bit per weight in storage order, little-endian bits.

    Raises:
        TypeError: ``mask`` is not a bool tensor. ValueError: its storage is not dense.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, got {got}")
    _dispatch.refuse_no_memory("mask", mask)
    if not _checks.is_dense(mask):
        raise ValueError(f"mask with strides {mask.stride()} is not dense, non-overlapping storage: call .contiguous()")
    return call("pack_mask", mask.device, lambda: None, mask)


def unpack_mask(mask_bits: Tensor, shape: Sequence[int]) -> Tensor:
    """uint8 [ceil(n/8)] -> bool mask, contiguous, of ``shape`` with n elements.

    Raises:
        TypeError, ValueError: ``mask_bits`` is not a contiguous 1-D uint8 tensor of the size that ``shape`` needs.
    """
    shape = _checks.check_shape(shape)
    if not isinstance(mask_bits, Tensor):
        raise TypeError(f"mask_bits must be a tensor, got {type(mask_bits).__name__}")
    _checks.check_flat("mask_bits", 0, mask_bits, torch.uint8, encoding.mask_bytes(shape.numel()), mask_bits.device)
    return call("unpack_mask", mask_bits.device, lambda: None, mask_bits, list(shape))
