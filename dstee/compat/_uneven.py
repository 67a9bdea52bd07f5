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
from dstee.encoding import mask_bytes
from dstee.reference import random_signal


@dataclass
class Layer:
    """One layer, flat in row-major order: ``weight`` [n], ``bits`` uint8 [ceil(n/8)], ``counts`` int16 [n] or None.

    ``drop`` active weights go, ``grow`` candidates come, by ``signal`` [n] (of the weight's dtype or float32) or by the hash of
    ``seed``; by index alone where both are None. ``marker`` [n], like the weight, comes back 0 where the weight was zeroed.
    """

    weight: Tensor
    bits: Tensor
    drop: int
    grow: int
    signal: Tensor | None = None
    seed: int | None = None
    counts: Tensor | None = None
    marker: Tensor | None = None

    def bools(self) -> Tensor:
        return ops.unpack_mask(self.bits, (self.weight.numel(),))


def drop_grow_(
    layers: Sequence[Layer], *, bonus: Tensor | None, round: int, regrow: bool = True, reset_regrown: bool = False
) -> None:
    """Drops and grows in all layers, in place, as :func:`dstee.ops.drop_grow_` does, with one call for each device.

    A layer that grows more than it drops ranks NaN gradients with 0, and cannot do both with ``regrow=False`` where too few
    weights are inactive: then fewer of both are swapped, so that the number of active weights is right.

    Raises:
        ValueError: ``drop`` or ``grow`` is more than the layer has.
    """
    active = count_active(layers)
    for layer, nnz in zip(layers, active, strict=True):
        n = layer.weight.numel()
        if not 0 <= layer.drop <= nnz or not 0 <= layer.grow <= n - nnz + layer.drop:
            raise ValueError(f"cannot drop {layer.drop} and grow {layer.grow} of {n} weights, {nnz} active")
    for device, indices in _by_device(layers).items():
        group = [layers[i] for i in indices]
        if all(layers[i].grow == 0 and layers[i].drop <= layers[i].weight.numel() - active[i] for i in indices) and not any(
            layer.counts is not None for layer in group
        ):
            _drop_one_device(group)
        else:
            _drop_grow_one_device(group, None if bonus is None else bonus.to(device), round, regrow, reset_regrown)


def count_active(layers: Sequence[Layer]) -> list[int]:
    """Active weights of each layer; one host sync for each device."""
    found = [0] * len(layers)
    for indices in _by_device(layers).values():
        for i, nnz in zip(indices, ops.count_active([layers[i].bits for i in indices]).tolist(), strict=True):
            found[i] = nnz
    return found


def _by_device(layers: Sequence[Layer]) -> dict[torch.device, list[int]]:
    groups: dict[torch.device, list[int]] = {}
    for i, layer in enumerate(layers):
        groups.setdefault(layer.weight.device, []).append(i)
    return groups


def _drop_grow_one_device(layers: list[Layer], bonus: Tensor | None, round: int, regrow: bool, reset_regrown: bool) -> None:
    even = all(layer.drop == layer.grow for layer in layers)
    seeds = None
    if even and all(layer.seed is not None for layer in layers):
        seeds = [layer.seed for layer in layers if layer.seed is not None]
        signals = None
    else:
        signals = [_signal(layer) for layer in layers]
    work = [layer if layer.drop == layer.grow else _padded(layer) for layer in layers]
    if signals is not None:
        signals = [s if w is layer else _padded_signal(layer, s) for layer, w, s in zip(layers, work, signals, strict=True)]
    counts = [w.counts for w in work if w.counts is not None]
    markers = [w.marker for w in work if w.marker is not None]
    ops.drop_grow_(
        [w.weight for w in work],
        None,
        markers or None,
        [w.bits for w in work],
        counts or None,
        [w.drop for w in work],
        bonus=bonus,
        round=round,
        grow_signal=signals,
        grow_seeds=seeds,
        regrow=regrow,
        reset_regrown=reset_regrown,
    )
    for layer, w in zip(layers, work, strict=True):
        if w is not layer:
            _unpad(layer, w)


def _drop_one_device(layers: list[Layer]) -> None:
    """Drops alone, without copies: what comes in for it, among the weights inactive before, is taken out of the mask again."""
    before = [layer.bits.clone() for layer in layers]
    weights = [layer.weight for layer in layers]
    markers = [layer.marker for layer in layers if layer.marker is not None]
    ops.drop_grow_(
        weights,
        None,
        markers or None,
        [layer.bits for layer in layers],
        None,
        [layer.drop for layer in layers],
        bonus=None,
        round=0,
        grow_signal=weights,
        regrow=False,
    )
    for layer, bits in zip(layers, before, strict=True):
        layer.bits.bitwise_and_(bits)


def _signal(layer: Layer) -> Tensor:
    w = layer.weight
    if layer.seed is not None:
        return random_signal(layer.seed, w.numel(), w.device)
    return torch.zeros_like(w) if layer.signal is None else layer.signal


def _padded(layer: Layer) -> Layer:
    """The layer behind ``|drop - grow|`` sentinels; ``drop`` of it is what both drop and grow."""
    extra = abs(layer.drop - layer.grow)
    active = layer.grow > layer.drop
    weight = torch.cat([layer.weight.new_full((extra,), float("nan") if active else 0.0), layer.weight])
    mask = layer.bools()
    bits = ops.pack_mask(torch.cat([mask.new_full((extra,), active), mask]))
    counts = None if layer.counts is None else torch.cat([layer.counts.new_zeros(extra), layer.counts])
    marker = None if layer.marker is None else torch.cat([layer.marker.new_zeros(extra), layer.marker])
    k = max(layer.drop, layer.grow)
    return Layer(weight, bits, k, k, counts=counts, marker=marker)


def _padded_signal(layer: Layer, signal: Tensor) -> Tensor:
    extra = abs(layer.drop - layer.grow)
    if layer.grow > layer.drop:
        return torch.cat([signal.new_full((extra,), float("nan")), signal.nan_to_num(0.0, float("inf"), float("-inf"))])
    return torch.cat([signal.new_full((extra,), float("inf")), signal])


def _unpad(layer: Layer, work: Layer) -> None:
    extra, n = work.weight.numel() - layer.weight.numel(), layer.weight.numel()
    layer.weight.copy_(work.weight[extra:])
    layer.bits.copy_(ops.pack_mask(work.bools()[extra:].clone()))
    assert layer.bits.numel() == mask_bytes(n)
    if layer.counts is not None and work.counts is not None:
        layer.counts.copy_(work.counts[extra:])
    if layer.marker is not None and work.marker is not None:
        layer.marker.copy_(work.marker[extra:])
