"""``torch.optim.SGD``'s step on the active weights alone, in one call for all masked layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dstee import ops
from dstee._optimizer_state import keep_momenta, sgd_batches, with_gradient
from dstee.compat.sparselearning.masks import Masks

__all__ = ["masked_step"]


def _plain(optimizer: torch.optim.Optimizer) -> bool:
    """SGD itself, whose arithmetic the kernel knows, without hooks on its step, which would miss gradients."""
    return (
        type(optimizer) is torch.optim.SGD
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
        and not any(group["differentiable"] for group in optimizer.param_groups)
    )


@torch.no_grad()
def masked_step(
    optimizer: torch.optim.Optimizer, masks: Masks, versions: dict[str, int], apply_masks: Callable[[], None]
) -> bool:
    """The step, to within the rounding of a fused multiply-add as torch makes it; False when this optimizer needs its own.

    ``versions`` remembers the state of the weights after it: where other code has written to them, they are masked first.
    """
    layers = {id(layer.param): layer for layer in masks.layers()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not _plain(optimizer) or not layers.keys() <= held:
        return False
    if any(versions.get(layer.name) != layer.param._version for layer in layers.values()):
        apply_masks()
    hidden = {layer.param: layer.param.grad for layer in layers.values() if layer.param.grad is not None}
    for p in hidden:
        p.grad = None
    try:
        optimizer.step()  # the dense parameters; schedulers see their optimizer step
    finally:
        for p, grad in hidden.items():
            p.grad = grad
    for group in optimizer.param_groups:
        for batch in sgd_batches(optimizer, group, with_gradient(group, layers)[0], layers):
            ops.masked_sgd_(batch.params, batch.grads, batch.momenta or None, batch.mask_bits, sgd=batch.rule)
            keep_momenta(optimizer, batch)
    for layer in layers.values():
        versions[layer.name] = layer.param._version
    return True
