"""Updates of layers that lie in memory as their owner has them, for libraries that prune and grow by numbers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dstee import ops
from dstee.layer_batch import by_device, count_active
from dstee.rules import random_signal

__all__ = ["LayerUpdate", "drop_grow_"]


@dataclass
class LayerUpdate:
    """What happens to one layer. Flat and in row-major order: ``weight`` [n], ``mask_bits`` uint8 [ceil(n/8)], ``counts`` int16
    [n] or None.

    ``drop`` active weights go, ``grow`` candidates come, by ``signal`` [n] (of the weight's dtype or float32) or by the hash of
    ``seed``; by index alone where both are None.
    """

    weight: Tensor
    mask_bits: Tensor
    drop: int
    grow: int
    signal: Tensor | None = None
    seed: int | None = None
    counts: Tensor | None = None

    def bools(self) -> Tensor:
        return ops.unpack_mask(self.mask_bits, (self.weight.numel(),))


def drop_grow_(
    layers: Sequence[LayerUpdate],
    *,
    bonus: Tensor | None,
    round: int,
    regrow: bool = True,
    reset_regrown: bool = False,
    report_zeroed: bool = False,
) -> list[Tensor]:
    """Drops and grows in all layers, in place, as :func:`dstee.ops.drop_grow_` does, with one call for each device.

    With ``regrow=False`` a layer where too few weights are inactive drops and grows fewer, so that the number of active weights
    is right. ``bonus``: as a method gives it; a float64 one is scaled for each layer (:func:`dstee.ops.growth_scale`).

    Returns:
        With ``report_zeroed``, for each layer the weights (bool [n]) that were active and became 0: those that left the mask
        and, with ``reset_regrown``, those that were dropped and regrown, which the masks before and after do not tell. Else [].

    Raises:
        ValueError: ``drop`` or ``grow`` is more than the layer has.
    """
    drops, grows = [], []
    for layer, nnz in zip(layers, count_active([layer.mask_bits for layer in layers]), strict=True):
        n = layer.weight.numel()
        if not 0 <= layer.drop <= nnz or not 0 <= layer.grow <= n - nnz + layer.drop:
            raise ValueError(f"cannot drop {layer.drop} and grow {layer.grow} of {n} weights, {nnz} active")
        beyond = 0 if regrow else max(layer.grow - (n - nnz), 0)
        drops.append(layer.drop - beyond)
        grows.append(layer.grow - beyond)
    # drop_grow_ zeroes a momentum where it zeroes the weight: what is left of ones says where that was.
    markers = [torch.ones_like(layer.weight) for layer in layers] if report_zeroed else None
    for device, indices in by_device(layers, lambda layer: layer.weight.device).items():
        group = [layers[i] for i in indices]
        bits, grow = [layer.mask_bits for layer in group], [grows[i] for i in indices]
        seeds = [layer.seed for layer in group if layer.seed is not None]
        signals = None if len(seeds) == len(group) else [_signal(layer) for layer in group]
        scale = None
        if bonus is not None and bonus.dtype is torch.float64 and signals is not None:
            scale = ops.growth_scale(signals, bits, grow, round)
        ops.drop_grow_(
            [layer.weight for layer in group],
            None,
            None if markers is None else [markers[i] for i in indices],
            bits,
            [layer.counts for layer in group if layer.counts is not None] or None,
            [drops[i] for i in indices],
            k_grow=grow if grow != [drops[i] for i in indices] else None,
            bonus=None if bonus is None else bonus.to(device),
            bonus_scale=scale,
            round=round,
            grow_signal=signals,
            grow_seeds=None if signals is not None else seeds,
            regrow=regrow,
            reset_regrown=reset_regrown,
        )
    return [] if markers is None else [marker == 0 for marker in markers]


def _signal(layer: LayerUpdate) -> Tensor:
    w = layer.weight
    if layer.grow == 0:
        return w  # any will do
    if layer.seed is not None:
        return random_signal(layer.seed, w.numel(), w.device)
    return torch.zeros_like(w) if layer.signal is None else layer.signal
