"""The mask update of rigl-torch's scheduler on the kernels; serves the scheduler here and patched originals alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dstee._optimizer_state import zero_state
from dstee.compat.plain_masks import drop_grow
from dstee.distributed import ranks
from dstee.layer_batch import count_active
from dstee.memory_order import pack_like, unpack_like

__all__ = ["DenseGrad", "Scheduler", "rigl_update"]


class DenseGrad(Protocol):
    """Where a layer's hook keeps the gradient that it saw before masking."""

    dense_grad: Tensor | None


class Scheduler(Protocol):
    """What an update reads and changes: attributes of the original and of the scheduler here. ``S``: sparsities, 0 is dense."""

    optimizer: torch.optim.Optimizer
    W: list[nn.Parameter]
    S: list[float]
    backward_masks: list[Tensor | None]

    @property
    def backward_hook_objects(self) -> Sequence[DenseGrad | None]: ...
    def reset_momentum(self) -> None: ...
    def apply_mask_to_weights(self) -> None: ...
    def apply_mask_to_gradients(self) -> None: ...


@torch.no_grad()
def rigl_update(
    scheduler: Scheduler,
    fraction: float,
    *,
    counts: Sequence[Tensor] | None = None,
    bonus: Tensor | None = None,
    round: int = 0,
) -> None:
    """Drops ``int(fraction * active)`` weights of every sparse layer by magnitude and grows as many by the dense gradient.

    Reads and changes the scheduler's ``W``, ``S``, ``backward_masks`` (bool tensors, in place), ``backward_hook_objects`` and
    the state and gradients of its optimizer. All layers in one call, one host sync (the numbers of active weights).
    Under a process group the ranks grow by the mean of their gradients.

    Args:
        counts, bonus, round: exploration counters and what they are worth (DST-EE).

    Raises:
        RuntimeError: a layer has no dense gradient; nothing has changed then.
    """
    sparse = [i for i, s in enumerate(scheduler.S) if s > 0]
    if not sparse:
        return
    W = [scheduler.W[i] for i in sparse]
    masks = [mask for i in sparse if (mask := scheduler.backward_masks[i]) is not None]
    hooks = [hook for i in sparse if (hook := scheduler.backward_hook_objects[i]) is not None]
    missing = [i for i, hook in zip(sparse, hooks, strict=True) if hook.dense_grad is None]
    if missing:
        raise RuntimeError(
            f"no dense gradients for layers {missing} of W: call backward before every call of the scheduler, and freeze or "
            "leave out layers that the loss does not reach"
        )
    grads = [hook.dense_grad for hook in hooks if hook.dense_grad is not None]
    ranks.mean_(grads)
    bits = [pack_like(mask, w) for mask, w in zip(masks, W, strict=True)]
    k = [int(n * fraction) for n in count_active(bits)]
    drop_grow(W, bits, k, grads=grads, counts=counts, bonus=bonus, round=round)
    for w, mask, b, hook in zip(W, masks, bits, hooks, strict=True):
        mask.copy_(unpack_like(b, w))
        off = ~mask
        zero_state(scheduler.optimizer, w, off)
        if w.grad is not None:
            w.grad.masked_fill_(off, 0)
        hook.dense_grad = None  # the next window starts afresh
