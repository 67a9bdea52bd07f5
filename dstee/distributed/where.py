"""Where a shard lies in its whole layer: local element i is the global ``base + i // run * pitch + i % run``.

Three integers describe a block of a row-major tensor that is cut in dimension 0, in one other dimension, or in both: FSDP2's
``Shard(0)``, uneven and empty shards too, tensor parallelism's ``Shard(0)`` and ``Shard(1)``, HSDP, FSDP2 over tensor
parallelism. The global index grows with the local one, so the order of a shard is that of the whole: ties that kernels break by
local index are broken as in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["Where", "as_dtensor", "local_part", "of_block", "of_dtensor", "shard_dims", "whole"]

_PLAIN = (Tensor, torch.nn.Parameter)


class Where(NamedTuple):
    """``n`` of ``total`` weights: those at ``base + i // run * pitch + i % run`` for i below ``n``, which ``run`` divides."""

    base: int
    run: int
    pitch: int
    n: int
    total: int

    @property
    def place(self) -> tuple[int, int, int]:
        """(base, run, pitch), as the ops take it."""
        return self.base, self.run, self.pitch

    def cut(self, values: Tensor) -> Tensor:
        """The shard of ``values``, a contiguous tensor [total]: a view [n / run, run] of it."""
        return values.as_strided((self.n // self.run, self.run), (self.pitch, 1), values.storage_offset() + self.base)

    def spread(self, mask: Tensor) -> Tensor:
        """Inverse of :meth:`cut` for a mask of the shard: bool [total], False elsewhere."""
        found = torch.zeros(self.total, dtype=torch.bool, device=mask.device)
        self.cut(found).copy_(mask.reshape(-1, self.run))
        return found

    def to_global(self, i: Tensor) -> Tensor:
        """The global indices of local ones, int64."""
        return self.base + i // self.run * self.pitch + i % self.run

    def to_local(self, index: Tensor) -> Tensor:
        """The local indices of global ones, int64; -1 where they lie outside."""
        row, column = (index - self.base) // self.pitch, (index - self.base) % self.pitch
        i = row * self.run + column
        return torch.where((row >= 0) & (column < self.run) & (i < self.n), i, -1)


def whole(n: int) -> Where:
    """A layer that is not cut."""
    return Where(0, max(n, 1), max(n, 1), n, n)


def of_block(shape: Sequence[int], offset: Sequence[int], local: Sequence[int]) -> Where:
    """The block of size ``local`` at ``offset`` in a row-major tensor of ``shape``.

    Raises:
        ValueError: it is cut in two dimensions that are both not the first.
    """
    n, total = math.prod(local), math.prod(shape)
    if n == 0:
        return Where(0, 1, 1, 0, total)
    cut = [d for d in range(len(shape)) if local[d] != shape[d]]
    inner = [d for d in cut if d > 0]
    if len(inner) > 1:
        raise ValueError(f"is cut in dimensions {cut}: dimension 0 and one other are supported, use Shard(0) or another layout")
    stride = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    base = sum(o * s for o, s in zip(offset, stride, strict=True))
    if not inner:
        return Where(base, n, n, n, total)
    d = inner[0]
    return Where(base, local[d] * stride[d], shape[d] * stride[d], n, total)


def as_dtensor(t: Tensor) -> DTensor | None:
    """``t`` where it is a DTensor. Plain tensors do not load ``torch.distributed.tensor``."""
    if type(t) in _PLAIN:
        return None
    from torch.distributed.tensor import DTensor

    return t if isinstance(t, DTensor) else None


def local_part(t: Tensor) -> Tensor:
    """What this rank holds of a DTensor, the memory itself and without history; other tensors as they are."""
    d = as_dtensor(t)
    return t if d is None else d._local_tensor


def of_dtensor(t: DTensor) -> Where:
    """Where this rank's shard lies.

    Raises:
        ValueError: the placements are of a kind that cannot be ranked, or this shard is not the block that they say; the text
            goes behind the name of the parameter.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = t.device_mesh
    ranges: dict[int, Tensor] = {}
    if mesh.get_coordinate() is None:
        raise ValueError("lies on a device mesh that this rank is not part of: make each part's model sparse where it lives")
    for m, p in enumerate(t.placements):
        if isinstance(p, Partial):
            raise ValueError(f"has placement {p}: its values are not added up yet, redistribute it first")
        if isinstance(p, (Shard, _StridedShard)):
            here = ranges.get(p.dim, torch.arange(t.shape[p.dim]))
            ranges[p.dim] = _range(p, here, mesh.size(m), mesh.get_local_rank(m))
        elif not isinstance(p, Replicate):
            raise ValueError(f"has placement {p}, expected Shard or Replicate: redistribute it first")
    local, offset = list(t.shape), [0] * t.dim()
    for d, here in ranges.items():
        if len(here) > 1 and bool((here.diff() != 1).any()):
            raise ValueError(f"has a shard that is not one range of dimension {d}: use an even layout")
        local[d], offset[d] = len(here), int(here[0]) if len(here) else 0
    found = list(t._local_tensor.shape)
    if found != local and (t._local_tensor.numel() or math.prod(local)):
        raise ValueError(
            f"has a shard {found} on this rank, but its placements {t.placements} make it {local}: the metadata is "
            "wrong, as torch has it where FSDP2 and tensor parallelism cut one dimension unevenly; use sizes that divide evenly"
        )
    return of_block(list(t.shape), offset, local)


def _range(placement: Any, here: Tensor, parts: int, rank: int) -> Tensor:
    """Of the indices ``here`` of a dimension those that ``placement`` gives to ``rank`` of ``parts``."""
    from torch.distributed.tensor import placement_types

    if isinstance(placement, placement_types._StridedShard):
        mode = getattr(placement_types, "_StridedShardOffsetMode", None)  # older versions of torch have a flag in its place
        every = {"return_first_offset": False} if mode is None else {"offset_mode": mode.ALL}
        size, offsets = placement._local_shard_size_and_offset(len(here), parts, rank, **every)
        return here[torch.tensor(offsets, dtype=torch.int64)[:size]] if size else here[:0]
    size, offset = placement._local_shard_size_and_offset(len(here), parts, rank)
    return here[offset : offset + size] if size else here[:0]


def shard_dims(t: DTensor) -> list[int]:
    """The mesh dimensions over which the shards of ``t`` make up the whole; replicas are left out."""
    from torch.distributed.tensor import Replicate

    return [m for m, p in enumerate(t.placements) if not isinstance(p, Replicate) and t.device_mesh.size(m) > 1]
