"""``torch.optim.SGD``'s step on the active weights alone, in one call for all masked layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from dstee import ops
from dstee.compat._masks import Masks
from dstee.compat._state import like


def _plain(optimizer: torch.optim.Optimizer) -> bool:
    """SGD itself, whose arithmetic the kernel knows, and nobody watching its step through hooks (who would miss gradients)."""
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

    ``versions`` remembers the state of the weights after it: where somebody else has written to them, they are masked first.
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
        calls = defaultdict(list)
        for p in group["params"]:
            if p in hidden:
                started = optimizer.state[p].get("momentum_buffer") is not None
                calls[p.device, p.dtype, started].append(p)
        for (device, _, started), params in calls.items():
            momentum, lr = group["momentum"], group["lr"]
            first = momentum != 0 and not started
            buffers: list[Tensor] = []
            if momentum != 0:
                for p in params:
                    buffer = torch.zeros_like(p) if first else optimizer.state[p]["momentum_buffer"]
                    optimizer.state[p]["momentum_buffer"] = like(buffer, p)
                    buffers.append(optimizer.state[p]["momentum_buffer"])
            ops.masked_sgd_(
                params,
                [like(hidden[p], p) for p in params],
                buffers or None,
                [layers[id(p)].mask_bits for p in params],
                lr=lr.item() if isinstance(lr, Tensor) and lr.device != device else lr,
                momentum=momentum,
                dampening=group["dampening"],
                weight_decay=float(group["weight_decay"]),
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                first_step=first,
            )
    for layer in layers.values():
        versions[layer.name] = layer.param._version
    return True
