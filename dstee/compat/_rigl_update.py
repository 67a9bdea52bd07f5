"""The mask update of ``rigl_torch``'s scheduler on the kernels; serves the face and patched originals alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dstee.compat._state import count_bits, drop_grow, pack, unpack
from dstee.distributed import ranks
from dstee.encoding import bonus_table


def parameter_state(optimizer: torch.optim.Optimizer, p: Tensor) -> list[Tensor]:
    """State of ``p`` in its shape: momentum buffers, exp_avg, exp_avg_sq, ..."""
    return [v for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor) and v.shape == p.shape]


@torch.no_grad()
def rigl_update(scheduler: Any, fraction: float, *, counts: Sequence[Tensor] | None = None, round: int = 0) -> None:
    """Drops ``int(fraction * active)`` weights of every sparse layer by magnitude and grows as many by the dense gradient.

    Reads and changes the scheduler's ``W``, ``S``, ``backward_masks`` (bool tensors, in place), ``backward_hook_objects`` and
    the state and gradients of its optimizer. All layers in one call, one host sync (the numbers of active weights).
    Under a process group the ranks grow by the mean of their gradients.

    Args:
        counts, round: exploration counters; the scheduler then has ``c`` and ``eps`` (DST-EE).

    Raises:
        RuntimeError: a layer has no dense gradient; nothing has changed then.
    """
    active_layers = [i for i, s in enumerate(scheduler.S) if s > 0]
    if not active_layers:
        return
    W = [scheduler.W[i] for i in active_layers]
    masks = [scheduler.backward_masks[i] for i in active_layers]
    hooks = [scheduler.backward_hook_objects[i] for i in active_layers]
    missing = [i for i, hook in zip(active_layers, hooks, strict=True) if hook.dense_grad is None]
    if missing:
        raise RuntimeError(
            f"no dense gradients for layers {missing} of W: call backward before every call of the scheduler, and freeze or "
            "leave out layers that the loss does not reach"
        )
    grads = [hook.dense_grad for hook in hooks]
    ranks.mean_(grads)
    states = [parameter_state(scheduler.optimizer, w) for w in W]
    bits = [pack(mask, w) for mask, w in zip(masks, W, strict=True)]
    drop_grow(
        W,
        bits,
        [int(n * fraction) for n in count_bits(bits)],
        grads=grads,
        counts=counts,
        bonus=None if counts is None else bonus_table(scheduler.c, scheduler.eps, max(scheduler.step, 1), round),
        round=round if counts is not None else 0,
    )
    for w, mask, b, state, hook in zip(W, masks, bits, states, hooks, strict=True):
        mask.copy_(unpack(b, w))
        off = ~mask
        for t in (*state, *(() if w.grad is None else (w.grad,))):
            t.masked_fill_(off, 0)
        hook.dense_grad = None  # the next window starts afresh


@torch.no_grad()
def legacy_rigl_update(scheduler: Any, fraction: float) -> None:
    """The original's update, layer by layer: two full sorts, with whatever order torch gives ties.

    Quirks: all positions compete to be kept, so where active weights are exactly 0 an inactive one may be kept in the place of
    one of them; of the optimizer's state only SGD's momentum is masked; ranks average abs(gradient).
    """
    for w, s, mask, hook in zip(
        scheduler.W, scheduler.S, scheduler.backward_masks, scheduler.backward_hook_objects, strict=True
    ):
        if s <= 0:
            continue
        grow = hook.dense_grad.abs().flatten()
        ranks.mean_([grow])
        active = int(mask.sum())
        k = int(active * fraction)
        kept = torch.zeros_like(grow, dtype=torch.bool)
        kept[torch.topk(w.abs().flatten(), k=w.numel()).indices[: active - k]] = True
        lifted = torch.where(kept, grow.min() - 1, grow)
        new = kept.index_fill(0, torch.topk(lifted, k=w.numel()).indices[:k], True).view(w.shape)
        w.masked_fill_((new & ~kept.view(w.shape)) & ~mask, 0)
        mask.copy_(new)
    scheduler.reset_momentum()
    scheduler.apply_mask_to_weights()
    scheduler.apply_mask_to_gradients()
