"""``state_dict`` of ``Masking``, which the original does not have: all but weights and optimizer."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from dstee import ops
from dstee.compat.sparselearning.decay import Decay
from dstee.compat.sparselearning.masks import Masks
from dstee.sparse_layer import like

__all__ = ["MaskingState", "Plain", "check", "encode", "restore"]


class Plain(TypedDict):
    """The numbers: attributes of ``Masking``."""

    steps: int
    round: int
    seed: int | None
    density: float | None
    death_rate: float
    baseline_nonzero: float | None


class _WithMasks(Plain):
    masks: dict[str, Tensor]
    fired_masks: dict[str, Tensor]
    decay: dict[str, float]


class MaskingState(_WithMasks, total=False):
    """Numbers, masks as bool tensors on the CPU, what the decay counts and, for growth dst_ee, counters (int32)."""

    counters: dict[str, Tensor]


def encode(plain: Plain, masks: Masks, fired: Masks, counted: bool, decay: Decay | None) -> MaskingState:
    """A state of these parts; ``counted``: with the counters that the layers of ``masks`` hold."""
    layers = masks.layers()
    state: MaskingState = {
        **plain,
        "masks": {layer.name: masks.bools(layer.name).cpu() for layer in layers},
        "fired_masks": {layer.name: fired.bools(layer.name).cpu() for layer in layers},
        "decay": {k: v for k, v in vars(decay).items() if isinstance(v, int | float)} if decay is not None else {},
    }
    if counted:
        state["counters"] = {
            layer.name: ops.decode_counts(layer.counts, layer.mask_bits, masks.round, (layer.numel,))
            .as_strided(layer.shape, layer.strides)
            .cpu()
            for layer in layers
            if layer.counts is not None
        }
    return state


def check(state: MaskingState, masks: Masks, growth: str) -> None:
    """Whether a state fits masks of the same weights and this growth mode.

    Raises:
        KeyError, ValueError: the state lacks something, or is of another model or growth.
    """
    names = set(masks)
    missing = [key for key in (*Plain.__annotations__, "masks", "fired_masks", "decay") if key not in state]
    if missing:
        raise KeyError(missing[0])
    if ("counters" in state) != (growth == "dst_ee"):
        raise ValueError(f"the state is {'with' if 'counters' in state else 'without'} counters, growth is {growth!r}")
    parts = {"masks": state["masks"], "fired_masks": state["fired_masks"]}
    if "counters" in state:
        parts["counters"] = state["counters"]
    for key, tensors in parts.items():
        if set(tensors) != names or any(tensors[name].shape != masks[name].shape for name in names):
            raise ValueError(f"{key} of the state are not of the masked weights {', '.join(sorted(names))}")


def restore(state: MaskingState, masks: Masks, fired: Masks, decay: Decay | None) -> None:
    """Puts masks, counters and the decay's numbers back, after :func:`check`."""
    masks.round = state["round"]
    for layer in masks.layers():
        layer.counts = None
    for name in masks:
        masks[name], fired[name] = state["masks"][name], state["fired_masks"][name]
    for layer in masks.layers() if "counters" in state else ():
        N = like(state["counters"][layer.name].to(torch.int32), layer.param, (torch.int32,))
        layer.counts = ops.encode_counts(N, layer.bools(layer.mask_bits), masks.round)
    if decay is not None:
        vars(decay).update(state["decay"])
