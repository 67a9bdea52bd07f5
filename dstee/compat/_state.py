"""What the faces share: masks as other libraries keep them, one tensor per weight, and updates of many layers in one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dstee import _checks, ops


def find_owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds parameter ``name`` of ``module``, and its attribute there."""
    prefix, _, attribute = name.rpartition(".")
    return module.get_submodule(prefix), attribute


def like(t: Tensor, p: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
    """``t`` with device, memory order and dtype of ``p`` (or one of ``dtypes``): itself if it has them, else a copy."""
    t = t.detach()
    if t.layout is not torch.strided:
        t = t.to_dense()
    if t.dtype in (p.dtype, *dtypes) and t.device == p.device and _checks.layout(t) == _checks.layout(p):
        return t
    return torch.empty_like(p, dtype=t.dtype if t.dtype in dtypes else p.dtype, requires_grad=False).copy_(t)


def pack(mask: Tensor, p: Tensor) -> Tensor:
    """A mask of any dtype (not 0 is active) as bits in the memory order of ``p``."""
    if mask.dtype is not torch.bool:
        mask = mask != 0
    if mask.device != p.device or _checks.layout(mask) != _checks.layout(p):
        mask = torch.empty_like(p, dtype=torch.bool, requires_grad=False).copy_(mask)
    return ops.pack_mask(mask)


def unpack(bits: Tensor, p: Tensor) -> Tensor:
    """Inverse of :func:`pack`: bool, shape and strides of ``p``."""
    return ops.unpack_mask(bits, (p.numel(),)).as_strided(p.shape, p.stride())


def count_active(masks: Sequence[Tensor]) -> list[int]:
    """Entries of each mask that are not 0; one host sync per device."""
    found = [0] * len(masks)
    groups = defaultdict(list)
    for i, mask in enumerate(masks):
        groups[mask.device].append(i)
    for indices in groups.values():
        for i, n in zip(indices, torch.stack([masks[i].count_nonzero() for i in indices]).tolist(), strict=True):
            found[i] = n
    return found


def count_bits(bits: Sequence[Tensor]) -> list[int]:
    """:func:`count_active` for packed masks."""
    found = [0] * len(bits)
    groups = defaultdict(list)
    for i, b in enumerate(bits):
        groups[b.device].append(i)
    for indices in groups.values():
        for i, n in zip(indices, ops.count_active([bits[i] for i in indices]).tolist(), strict=True):
            found[i] = n
    return found


def keep_largest(scores: Tensor, k: int) -> Tensor:
    """True at exactly the ``k`` largest of 1-D ``scores``, the lowest index first on ties; no host sync."""
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = torch.topk(scores, min(k, scores.numel())).values[-1]
    above, tied = scores > threshold, scores == threshold
    return above | (tied & (tied.cumsum(0) <= k - above.sum()))


def drop_grow(
    params: Sequence[Tensor],
    mask_bits: Sequence[Tensor],
    k: Sequence[int] | Tensor,
    *,
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
    bits = [pack(mask, p) for mask, p in zip(masks, params, strict=True)]
    drop_grow(params, bits, k, **arguments)
    for mask, b, p in zip(masks, bits, params, strict=True):
        mask.copy_(unpack(b, p))
