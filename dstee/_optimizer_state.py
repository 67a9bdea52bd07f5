"""The tensors that optimizers keep for a sparse weight, and the SGD steps that they make up together with its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dstee.layer_batch import LayerBatch
from dstee.sgd_rule import SGDRule
from dstee.sparse_layer import SparseLayer


def missing(optimizer: torch.optim.Optimizer, layers: Mapping[int, SparseLayer]) -> list[SparseLayer]:
    """The trainable layers, given by id of their parameter, that ``optimizer`` does not hold."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if layers.keys() <= held:
        return []
    return [layer for key, layer in layers.items() if key not in held and layer.param.requires_grad]


def zero_state(optimizer: torch.optim.Optimizer, p: Tensor, where: Tensor) -> None:
    """Zeroes parameter-shaped state of ``p`` (momentum, exp_avg, exp_avg_sq, max_exp_avg_sq, ...) where ``where`` is True."""
    for value in optimizer.state.get(p, {}).values():
        if isinstance(value, Tensor) and value.shape == p.shape:
            value.masked_fill_(where, 0)


def momentum_buffer(optimizer: torch.optim.Optimizer, p: Tensor, layer: SparseLayer) -> Tensor | None:
    """SGD's momentum of ``p``, laid out as ``p`` is now; None before its first step with momentum."""
    state = optimizer.state.get(p)
    buffer = state.get("momentum_buffer") if state else None
    if state is None or buffer is None:
        return None
    fitting = layer.fit(buffer)
    if fitting is not buffer:
        state["momentum_buffer"] = fitting
    return fitting


def sgd_batches(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], layers: Mapping[int, SparseLayer]
) -> list[LayerBatch]:
    """The sparse weights of a parameter group that have a gradient, and the step that SGD makes on them.

    ``layers`` by id of the parameter. After the step, :func:`keep_momenta` gives the optimizer the buffers that were made.
    """
    found: dict[tuple[torch.device, bool], LayerBatch] = {}
    for p in group["params"]:
        layer = layers.get(id(p))
        if layer is None or p.grad is None:
            continue
        buffer = momentum_buffer(optimizer, p, layer)
        key = p.device, buffer is not None
        batch = found.get(key)
        if batch is None:
            batch = found[key] = LayerBatch([], [], [], [], _sgd_rule(group, *key))
        batch.layers.append(layer)
        batch.params.append(p)
        batch.grads.append(layer.fit(p.grad))
        if buffer is not None:
            batch.momenta.append(buffer)
    for batch in found.values():
        if batch.rule is not None and batch.rule.first_step:
            batch.momenta.extend(torch.zeros_like(p) for p in batch.params)
    return list(found.values())


def _sgd_rule(group: Mapping[str, Any], device: torch.device, started: bool) -> SGDRule:
    lr, momentum = group["lr"], group["momentum"]
    return SGDRule(
        lr.item() if isinstance(lr, Tensor) and lr.device != device else lr,
        momentum,
        group["dampening"],
        float(group["weight_decay"]),
        group["nesterov"],
        group["maximize"],
        first_step=momentum != 0 and not started,
    )


def keep_momenta(optimizer: torch.optim.Optimizer, batch: LayerBatch) -> None:
    """After a first step: the new buffers become the optimizer's state."""
    if batch.rule is not None and batch.rule.first_step:
        for p, buffer in zip(batch.params, batch.momenta, strict=True):
            optimizer.state[p]["momentum_buffer"] = buffer
