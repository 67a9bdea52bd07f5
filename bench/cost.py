"""Bytes that an op must move: the least that its result needs, whoever computes it. Memory moves whole lines.

  masked_sgd   mask n/8, and five times (weight and momentum read and written, gradient read) the lines with an active weight
  drop_grow    read: gradient, counter 2 n, mask n/8, the lines of the weights with an active one; written: the lines of
               counters and mask of swapped weights, the lines of dropped weights

A line has 64 bytes on a CPU, a sector of a GPU 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .layers import Layers, runs_of

__all__ = ["LINE", "drop_grow_bytes", "lines", "masked_sgd_bytes"]

LINE = {"cpu": 64, "cuda": 32}


def lines(masks: Sequence[Tensor], item: int, line: int = 64) -> int:
    """Lines of tensors of ``item``-byte elements that hold a position of the masks."""
    return sum(runs_of(mask, line // item) for mask in masks)


def masked_sgd_bytes(before: Layers, line: int = 64) -> int:
    return before.n // 8 + 5 * line * lines(before.masks, before.params[0].element_size(), line)


def drop_grow_bytes(before: Layers, masks_after: Sequence[Tensor], line: int = 64) -> int:
    n, item = before.n, before.params[0].element_size()
    changed = [a ^ b for a, b in zip(masks_after, before.masks, strict=True)]
    dropped = [c & b for c, b in zip(changed, before.masks, strict=True)]
    read = (item + 2) * n + n // 8 + line * lines(before.masks, item, line)
    written = line * (lines(changed, 2, line) + lines(dropped, item, line))
    return read + written + min(line * lines(changed, 1, 8), n // 8)
