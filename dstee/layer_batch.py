"""Layers that share a device: what one call of an op takes, and numbers that are read back with one host sync a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dstee import ops
from dstee.sgd_rule import SGDRule
from dstee.sparse_layer import SparseLayer

__all__ = ["LayerBatch", "by_device", "count_active", "count_each", "count_nonzero"]

T = TypeVar("T")


def by_device(items: Sequence[T], device_of: Callable[[T], torch.device]) -> dict[torch.device, list[int]]:
    """Indices of ``items`` by device, in order."""
    found: dict[torch.device, list[int]] = {}
    for i, item in enumerate(items):
        found.setdefault(device_of(item), []).append(i)
    return found


def count_each(items: Sequence[T], device_of: Callable[[T], torch.device], count: Callable[[list[T]], Tensor]) -> list[int]:
    """One number for each item, from ``count`` (items on one device -> integers [len]): one host sync for each device."""
    numbers = [0] * len(items)
    for indices in by_device(items, device_of).values():
        for i, n in zip(indices, count([items[i] for i in indices]).tolist(), strict=True):
            numbers[i] = n
    return numbers


def count_active(mask_bits: Sequence[Tensor]) -> list[int]:
    """:func:`dstee.ops.count_active` for packed masks on any devices."""
    return count_each(mask_bits, lambda bits: bits.device, ops.count_active)


def count_nonzero(masks: Sequence[Tensor]) -> list[int]:
    """Entries of each mask (a tensor of any dtype) that are not 0."""
    return count_each(masks, lambda mask: mask.device, lambda group: torch.stack([mask.count_nonzero() for mask in group]))


@dataclass(frozen=True, slots=True)
class LayerBatch:
    """Sparse layers for one call of an op: on one device, all with a momentum buffer or all without.

    ``params``, ``grads`` and ``momenta`` have one tensor per layer, laid out like the weight; absent lists are empty.
    ``rule`` is the step that the call makes, None for a mask update alone. ``packed``: the momenta are those of the active
    weights alone, 1-D.
    """

    layers: list[SparseLayer]
    params: list[Tensor]
    grads: list[Tensor]
    momenta: list[Tensor]
    rule: SGDRule | None = None
    packed: bool = False

    @property
    def sgd(self) -> SGDRule:
        """The step that the call makes, where it makes one."""
        assert self.rule is not None
        return self.rule

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    @property
    def nnz(self) -> Tensor:
        """Active weights by layer: int64 [L] on the device, no host sync."""
        return ops.count_active(self.mask_bits)

    @property
    def mask_bits(self) -> list[Tensor]:
        return [layer.mask_bits for layer in self.layers]

    @property
    def counts(self) -> list[Tensor]:
        return [layer.counts for layer in self.layers if layer.counts is not None]
