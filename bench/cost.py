"""Bytes that an op needs, whoever computes it. Memory moves whole lines.

What must move, which a copy bounds:
  masked_sgd   mask n/8, and five times (weight and momentum read and written, gradient read) the lines with an active weight
  drop_grow    read: gradient, counter 2 n, mask n/8, the lines of the weights with an active one; written: the lines of
               counters and mask of swapped weights, the lines of dropped weights

What must be read, which bounds a CPU: writing back a line that was read is almost free there, writing one that was not costs
its reading.
  masked_sgd   mask n/8, and three times the lines with an active weight
  drop_grow    as above; then once more, since who goes and comes is known at the end, what is written

A line has 64 bytes on a CPU, which fetches them in pairs; a sector of a GPU has 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .layers import Layers, runs_of

__all__ = [
    "LINE",
    "PAIR",
    "drop_grow_bytes",
    "drop_grow_reads",
    "lines",
    "masked_sgd_bytes",
    "masked_sgd_reads",
    "swapped_bytes",
]

LINE = {"cpu": 64, "cuda": 32}
PAIR = 128


def lines(masks: Sequence[Tensor], item: int, line: int = 64) -> int:
    """Lines of tensors of ``item``-byte elements that hold a position of the masks."""
    return sum(runs_of(mask, line // item) for mask in masks)


def masked_sgd_bytes(before: Layers, line: int = 64) -> int:
    return before.n // 8 + 5 * line * lines(before.masks, before.params[0].element_size(), line)


def masked_sgd_reads(before: Layers, line: int) -> int:
    return before.n // 8 + 3 * line * lines(before.masks, before.params[0].element_size(), line)


def drop_grow_bytes(before: Layers, masks_after: Sequence[Tensor], line: int = 64) -> int:
    return drop_grow_reads(before, line) + swapped_bytes(before, masks_after, line)


def drop_grow_reads(before: Layers, line: int) -> int:
    """Until it is known who goes and comes."""
    n, item = before.n, before.params[0].element_size()
    return (item + 2) * n + n // 8 + line * lines(before.masks, item, line)


def swapped_bytes(before: Layers, masks_after: Sequence[Tensor], line: int) -> int:
    """The lines that change: counters and mask of swapped weights, dropped weights."""
    changed = [a ^ b for a, b in zip(masks_after, before.masks, strict=True)]
    dropped = [c & b for c, b in zip(changed, before.masks, strict=True)]
    found = line * (lines(changed, 2, line) + lines(dropped, before.params[0].element_size(), line))
    return found + min(line * lines(changed, 1, 8 * line), before.n // 8)
