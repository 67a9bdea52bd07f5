"""``state_dict`` of ``Masking``, which the original does not have: all but weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dstee import ops

if TYPE_CHECKING:
    from dstee.compat._masking import Masking

_PLAIN = ("steps", "round", "seed", "density", "death_rate", "baseline_nonzero")


def encode(masking: Masking) -> dict[str, Any]:
    """Plain numbers, masks as bool tensors on the CPU, and the counters of growth dst_ee."""
    layers = masking.masks.layers()
    state: dict[str, Any] = {name: getattr(masking, name) for name in _PLAIN}
    state["masks"] = {layer.name: masking.masks.bools(layer.name).cpu() for layer in layers}
    state["fired_masks"] = {layer.name: masking.fired_masks.bools(layer.name).cpu() for layer in layers}
    if masking.growth_mode == "dst_ee":
        state["counters"] = {
            layer.name: ops.decode_counts(layer.counts, layer.mask_bits, masking.round, (layer.numel,))
            .as_strided(layer.shape, layer.strides)
            .cpu()
            for layer in layers
            if layer.counts is not None
        }
    decay = masking.death_rate_decay
    state["decay"] = {k: v for k, v in vars(decay).items() if isinstance(v, int | float)} if decay is not None else {}
    return state


def decode(masking: Masking, state: Mapping[str, Any]) -> None:
    """Inverse of :func:`encode` for a Masking of the same model with ``add_module`` done; weights are masked.

    Raises:
        KeyError, ValueError: the state lacks something, or is of another model or growth. Nothing has changed then.
    """
    names = set(masking.masks)
    counted = masking.growth_mode == "dst_ee"
    parts: dict[str, Mapping[str, Tensor]] = {key: state[key] for key in ("masks", "fired_masks")}
    if ("counters" in state) != counted:
        raise ValueError(
            f"the state is {'with' if 'counters' in state else 'without'} counters, growth is {masking.growth_mode!r}"
        )
    if counted:
        parts["counters"] = state["counters"]
    plain = {name: state[name] for name in _PLAIN}
    for key, tensors in parts.items():
        if set(tensors) != names or any(tensors[name].shape != masking.masks[name].shape for name in names):
            raise ValueError(f"{key} of the state are not of the masked weights {', '.join(sorted(names))}")
    for name, value in plain.items():
        setattr(masking, name, value)
    masking.masks.round = masking.round
    for layer in masking.masks.layers():
        layer.counts = None
    masking.masks = parts["masks"]
    masking.fired_masks = parts["fired_masks"]
    for layer in masking.masks.layers() if counted else ():
        p = layer.param
        N = torch.empty_like(p, dtype=torch.int32, requires_grad=False).copy_(parts["counters"][layer.name])
        layer.counts = ops.encode_counts(N, layer.bools(layer.mask_bits), masking.round)
    if masking.death_rate_decay is not None:
        vars(masking.death_rate_decay).update(state["decay"])
    masking.apply_mask()
