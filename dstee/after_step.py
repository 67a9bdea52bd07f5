"""What layers need whose optimizer knows nothing of masks, and the mask update of those whose step did not carry it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dstee import _optimizer_state, interpreter, ops
from dstee._optimizer_step import Owner
from dstee.distributed.where import local_part
from dstee.encoding import zero_where
from dstee.layer_batch import LayerBatch
from dstee.mask_update import MaskUpdate
from dstee.sparse_layer import SparseLayer, follow_each

__all__ = ["execute", "mask", "swap"]

_TOGETHER = 1 << 18
"""Weights, as many as whose masks are unpacked in one call: what a call costs beside it is then nothing."""


def mask(owners: Mapping[str, Owner], layers: Iterable[SparseLayer]) -> None:
    """Weights and parameter-shaped state outside the masks are 0 again where the optimizer does not see to it."""
    foreign = [layer for layer in layers if owners[layer.name].fusing is None]
    for layer, p, off in _inactive_each(foreign):
        zero_where(local_part(p), off)
        _optimizer_state.zero_state(owners[layer.name].core, p, off)


def _inactive_each(layers: Sequence[SparseLayer]) -> Iterator[tuple[SparseLayer, Tensor, Tensor]]:
    """Each layer with its parameter and :meth:`SparseLayer.inactive`; the masks of small ones are unpacked in one call."""
    params = follow_each(layers)
    start = 0
    while start < len(layers):
        device, stop, n = layers[start].mask_bits.device, start, 0
        while stop < len(layers) and layers[stop].mask_bits.device == device and (n == 0 or n < _TOGETHER):
            n += 8 * layers[stop].mask_bits.numel()
            stop += 1
        bits = layers[start].mask_bits if stop == start + 1 else torch.cat([layer.mask_bits for layer in layers[start:stop]])
        off, offset = ops.unpack_mask(bits, (8 * bits.numel(),)).logical_not_(), 0
        for layer, p in zip(layers[start:stop], params[start:stop], strict=True):
            yield layer, p, off.as_strided(layer.local_shape, layer.strides, offset)
            offset += 8 * layer.mask_bits.numel()
        start = stop


def swap(owners: Mapping[str, Owner], update: MaskUpdate, layers: Sequence[SparseLayer], before: Mapping[str, Tensor]) -> None:
    """The topology alone, for ``layers`` whose step did not carry the update: one call per device."""
    groups = defaultdict(list)
    for layer in layers:
        fusing = owners[layer.name].fusing
        if fusing is not None:
            momentum = fusing.momentum_buffer(layer)
        else:  # masks do not tell which weights were dropped and regrown: a marker does, it comes back 0 there
            momentum = torch.ones_like(layer.local) if update.method.reset_regrown else None
        groups[layer.param.device, momentum is None].append((layer, momentum))
    for rows in groups.values():
        params: list[Tensor] = [layer.local for layer, _ in rows]
        grads = [g for layer, _ in rows if (g := layer.grad) is not None]
        momenta = [momentum for _, momentum in rows if momentum is not None]
        given = grads if update.method.needs_gradients else []
        update.apply(LayerBatch([layer for layer, _ in rows], params, given, momenta))
        for layer, marker in rows:
            if owners[layer.name].fusing is None:
                cleared = layer.bools(before[layer.name] & ~layer.mask_bits) if marker is None else marker == 0
                _optimizer_state.zero_state(owners[layer.name].core, layer.param, cleared)
    _pack(owners, layers)


def execute(owners: Mapping[str, Owner], update: MaskUpdate, layers: list[SparseLayer]) -> None:
    """An update that is more than a swap: all layers together, after the step."""
    momenta = []
    for layer in layers:
        fusing = owners[layer.name].fusing
        momentum = None if fusing is None else fusing.momentum_buffer(layer)
        if momentum is None:  # in place of one: it comes back 0 where a weight was dropped
            momentum = torch.ones_like(layer.local, requires_grad=False)
        momenta.append(momentum)
    update.context.layers = layers
    interpreter.execute(update, layers, momenta)
    for layer, marker in zip(layers, momenta, strict=True):
        if owners[layer.name].fusing is None:
            _optimizer_state.zero_state(owners[layer.name].core, layer.param, marker == 0)
    _pack(owners, layers)


def _pack(owners: Mapping[str, Owner], layers: Iterable[SparseLayer]) -> None:
    for layer in layers:
        fusing = owners[layer.name].fusing
        if fusing is not None:
            fusing.pack_momenta([layer])
