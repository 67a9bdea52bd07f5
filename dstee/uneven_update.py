"""One call of ``drop_grow_`` for layers that drop and grow different numbers of weights.

``drop_grow_`` swaps: it grows as many weights as it drops. Gradual pruning, and libraries that prune and grow in two calls,
need both numbers. A layer whose numbers differ is worked on in a copy with sentinels in front, which the total order puts
first: inactive ones with an infinite signal, grown before any weight, where more is dropped; active NaN ones, dropped before
any weight and grown after all, where more is grown. All other layers take part with their own memory.
"""

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

    A layer that grows more than it drops ranks NaN gradients with 0, and cannot do both with ``regrow=False`` where too few
    weights are inactive: then fewer of both are swapped, so that the number of active weights is right.

    Returns:
        With ``report_zeroed``, for each layer the weights (bool [n]) that were active and became 0: those that left the mask
        and, with ``reset_regrown``, those that were dropped and regrown, which the masks before and after do not tell. Else [].

    Raises:
        ValueError: ``drop`` or ``grow`` is more than the layer has.
    """
    active = count_active([layer.mask_bits for layer in layers])
    for layer, nnz in zip(layers, active, strict=True):
        n = layer.weight.numel()
        if not 0 <= layer.drop <= nnz or not 0 <= layer.grow <= n - nnz + layer.drop:
            raise ValueError(f"cannot drop {layer.drop} and grow {layer.grow} of {n} weights, {nnz} active")
    # drop_grow_ zeroes a momentum where it zeroes the weight: what is left of ones says where that was.
    markers = [torch.ones_like(layer.weight) for layer in layers] if report_zeroed else None
    for device, indices in by_device(layers, lambda layer: layer.weight.device).items():
        group = [layers[i] for i in indices]
        marks = None if markers is None else [markers[i] for i in indices]
        only_drops = all(layers[i].grow == 0 and layers[i].drop <= layers[i].weight.numel() - active[i] for i in indices)
        if only_drops and not any(layer.counts is not None for layer in group):
            _drop_one_device(group, marks)
        else:
            _drop_grow_one_device(group, marks, None if bonus is None else bonus.to(device), round, regrow, reset_regrown)
    return [] if markers is None else [marker == 0 for marker in markers]


def _drop_grow_one_device(
    layers: list[LayerUpdate],
    markers: list[Tensor] | None,
    bonus: Tensor | None,
    round: int,
    regrow: bool,
    reset_regrown: bool,
) -> None:
    even = all(layer.drop == layer.grow for layer in layers)
    seeds = None
    if even and all(layer.seed is not None for layer in layers):
        seeds = [layer.seed for layer in layers if layer.seed is not None]
        signals = None
    else:
        signals = [_signal(layer) for layer in layers]
    padded = [layer if layer.drop == layer.grow else _padded(layer) for layer in layers]
    if signals is not None:
        signals = [s if w is layer else _padded_signal(layer, s) for layer, w, s in zip(layers, padded, signals, strict=True)]
    if markers is not None:
        padded_markers = [
            m if w is layer else torch.cat([m.new_zeros(w.weight.numel() - m.numel()), m])
            for layer, w, m in zip(layers, padded, markers, strict=True)
        ]
    counts = [w.counts for w in padded if w.counts is not None]
    ops.drop_grow_(
        [w.weight for w in padded],
        None,
        None if markers is None else padded_markers,
        [w.mask_bits for w in padded],
        counts or None,
        [w.drop for w in padded],
        bonus=bonus,
        round=round,
        grow_signal=signals,
        grow_seeds=seeds,
        regrow=regrow,
        reset_regrown=reset_regrown,
    )
    for layer, w in zip(layers, padded, strict=True):
        if w is not layer:
            _unpad(layer, w)
    if markers is not None:
        for marker, m in zip(markers, padded_markers, strict=True):
            if m is not marker:
                marker.copy_(m[m.numel() - marker.numel() :])


def _drop_one_device(layers: list[LayerUpdate], markers: list[Tensor] | None) -> None:
    """Drops alone, without copies: what comes in for it, among the weights inactive before, is taken out of the mask again."""
    before = [layer.mask_bits.clone() for layer in layers]
    weights = [layer.weight for layer in layers]
    ops.drop_grow_(
        weights,
        None,
        markers,
        [layer.mask_bits for layer in layers],
        None,
        [layer.drop for layer in layers],
        bonus=None,
        round=0,
        grow_signal=weights,
        regrow=False,
    )
    for layer, bits in zip(layers, before, strict=True):
        layer.mask_bits.bitwise_and_(bits)


def _signal(layer: LayerUpdate) -> Tensor:
    w = layer.weight
    if layer.seed is not None:
        return random_signal(layer.seed, w.numel(), w.device)
    return torch.zeros_like(w) if layer.signal is None else layer.signal


def _padded(layer: LayerUpdate) -> LayerUpdate:
    """The layer behind ``|drop - grow|`` sentinels; ``drop`` of it is what both drop and grow."""
    extra = abs(layer.drop - layer.grow)
    active = layer.grow > layer.drop
    weight = torch.cat([layer.weight.new_full((extra,), float("nan") if active else 0.0), layer.weight])
    mask = layer.bools()
    bits = ops.pack_mask(torch.cat([mask.new_full((extra,), active), mask]))
    counts = None if layer.counts is None else torch.cat([layer.counts.new_zeros(extra), layer.counts])
    k = max(layer.drop, layer.grow)
    return LayerUpdate(weight, bits, k, k, counts=counts)


def _padded_signal(layer: LayerUpdate, signal: Tensor) -> Tensor:
    extra = abs(layer.drop - layer.grow)
    if layer.grow > layer.drop:
        return torch.cat([signal.new_full((extra,), float("nan")), signal.nan_to_num(0.0, float("inf"), float("-inf"))])
    return torch.cat([signal.new_full((extra,), float("inf")), signal])


def _unpad(layer: LayerUpdate, padded: LayerUpdate) -> None:
    extra = padded.weight.numel() - layer.weight.numel()
    layer.weight.copy_(padded.weight[extra:])
    layer.mask_bits.copy_(ops.pack_mask(padded.bools()[extra:].clone()))
    if layer.counts is not None and padded.counts is not None:
        layer.counts.copy_(padded.counts[extra:])
