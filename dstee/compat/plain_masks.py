"""Masks as other libraries keep them, one tensor of 0 and 1 per weight, and updates of many layers with such masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dstee import ops
from dstee.layer_batch import count_active
from dstee.memory_order import is_binary, like, pack_like, unpack_like
from dstee.sparse_model import SparseModel

__all__ = [
    "check_counters",
    "check_mask",
    "count_kept",
    "drop_grow",
    "keep_largest",
    "keep_largest_",
    "swap_",
    "to_masks",
]


def check_mask(name: str, mask: object, shape: torch.Size) -> None:
    """Raises ValueError unless ``mask`` is a tensor of 0 and 1 with this shape."""
    if not isinstance(mask, Tensor) or mask.shape != shape:
        got = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"the mask of {name} is {got}, expected a tensor of shape {list(shape)}")
    if not is_binary(mask):
        raise ValueError(f"the mask of {name} holds other values than 0 and 1")


def check_counters(name: str, N: object, mask: Tensor, round: int) -> None:
    """Raises ValueError unless ``N`` are counters of a layer with this mask after ``round`` updates."""
    if not isinstance(N, Tensor) or N.layout is not torch.strided or N.is_floating_point() or N.is_complex():
        raise ValueError(f"the counters of {name} are no tensor of integers")
    if N.shape != mask.shape:
        raise ValueError(f"the counters of {name} are {list(N.shape)}, expected shape {list(mask.shape)}")
    active = (mask != 0).to(N.device, torch.int64)
    since = N - active  # updates in which the weight was active
    if bool(((since < 0) | (since > round)).any()):
        raise ValueError(f"the counters of {name} are not those of a mask after {round} updates")


def to_masks(sparse: SparseModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Masks by parameter name, 0 and 1 in ``dtype``, on the weights' devices: sparselearning's ``masks``."""
    return {name: mask.contiguous().to(dtype) for name, mask in sparse.masks().items()}


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """True at exactly the ``k`` largest of 1-D ``scores``, the lowest index first on ties; no host sync."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.topk(scores, min(k, scores.numel())).values[-1]
    above, tied = scores > threshold, scores == threshold
    return above | (tied & (tied.cumsum(0) <= k - above.sum()))


@torch.no_grad()
def keep_largest_(
    params: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    total: int,
    *,
    counts: Sequence[Tensor] | None = None,
    round: int = 0,
) -> None:
    """:func:`dstee.ops.global_keep_` by abs(w) for layers on any devices: all are compared on the first one's.

    What is dropped becomes 0; momenta are the caller's.
    """
    device = params[0].device
    here = [[t.detach().to(device) for t in tensors] for tensors in (params, mask_bits, counts or ())]
    ops.global_keep_(None, here[0], None, here[1], here[2] or None, total, round=round)
    for tensors, moved in zip((params, mask_bits, counts or ()), here, strict=True):
        for t, new in zip(tensors, moved, strict=True):
            if t.device != device:
                t.detach().copy_(new)


@torch.no_grad()
def count_kept(scores: Sequence[Tensor], mask_bits: Sequence[Tensor], total: int) -> list[int]:
    """How many active weights of each layer are among the ``total`` largest abs(score) of all layers; nothing changes."""
    device = scores[0].device
    values = [s.detach().to(device).abs() for s in scores]
    bits = [b.to(device, copy=True) for b in mask_bits]
    ops.global_keep_(values, [torch.zeros_like(v) for v in values], None, bits, None, total)
    return count_active(bits)


def drop_grow(
    params: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    k: Sequence[int] | Tensor,
    *,
    k_grow: Sequence[int] | None = None,
    grads: Sequence[Tensor] | None = None,
    momenta: Sequence[Tensor | None] | None = None,
    counts: Sequence[Tensor] | None = None,
    bonus: Tensor | None = None,
    drop_scores: Sequence[Tensor] | None = None,
    grow_signal: Sequence[Tensor] | None = None,
    grow_seeds: Sequence[int] | None = None,
    round: int = 0,
    regrow: bool = True,
    reset_regrown: bool = False,
) -> None:
    """:func:`dstee.ops.drop_grow_` for layers on any devices, some perhaps without a momentum buffer: one call per group.

    Gradients, signals and momenta may be in another memory order or dtype than their weight.
    """
    buffers = momenta if momenta is not None else [None] * len(params)
    groups = defaultdict(list)
    for i, p in enumerate(params):
        groups[p.device, buffers[i] is None].append(i)

    def signal(values: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if values is None else [like(values[i], params[i], (torch.float32,)) for i in indices]

    for (device, _), indices in groups.items():
        given = [(m, like(m, params[i])) for i in indices if (m := buffers[i]) is not None]
        ops.drop_grow_(
            [params[i].detach() for i in indices],
            None if grads is None else [like(grads[i], params[i]) for i in indices],
            [used for _, used in given] or None,
            [mask_bits[i] for i in indices],
            None if counts is None else [counts[i] for i in indices],
            k[indices].to(device) if isinstance(k, Tensor) else [k[i] for i in indices],
            k_grow=None if k_grow is None else [k_grow[i] for i in indices],
            bonus=None if bonus is None else bonus.to(device, non_blocking=True),
            round=round,
            drop_scores=signal(drop_scores),
            grow_signal=signal(grow_signal),
            grow_seeds=None if grow_seeds is None else [grow_seeds[i] for i in indices],
            regrow=regrow,
            reset_regrown=reset_regrown,
        )
        for old, used in given:
            if used.data_ptr() != old.data_ptr():
                old.copy_(used)


@torch.no_grad()
def swap_(params: Sequence[Tensor], masks: Sequence[Tensor], k: Sequence[int] | Tensor, **arguments: Any) -> None:
    """:func:`drop_grow` for callers who keep their masks as tensors (bool, float, ...), which change in place."""
    bits = [pack_like(mask, p) for mask, p in zip(masks, params, strict=True)]
    drop_grow(params, bits, k, **arguments)
    for mask, b, p in zip(masks, bits, params, strict=True):
        mask.copy_(unpack_like(b, p))
