"""``state_dict`` of ``Masking``, which the original does not have: all but weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from dstee import ops
from dstee._state_checks import is_int, is_number
from dstee.compat.plain_masks import check_counters, check_mask
from dstee.compat.sparselearning.decay import Decay
from dstee.compat.sparselearning.masks import Masks
from dstee.encoding import MAX_ROUNDS
from dstee.memory_order import like

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


def check(state: MaskingState, masks: Masks, growth: str, decay: Decay | None) -> None:
    """Whether a state fits masks of the same weights, this growth mode and this decay.

    Raises:
        KeyError, ValueError: the state lacks something, is of another model or growth, or holds what no Masking does.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state must be a dict, got {type(state).__name__}")
    missing = [key for key in (*Plain.__annotations__, "masks", "fired_masks", "decay") if key not in state]
    if missing:
        raise KeyError(missing[0])
    if ("counters" in state) != (growth == "dst_ee"):
        raise ValueError(f"the state is {'with' if 'counters' in state else 'without'} counters, growth is {growth!r}")
    _check_numbers(state, decay)
    names = set(masks)
    parts: dict[str, Any] = {"masks": state["masks"], "fired_masks": state["fired_masks"]}
    if "counters" in state:
        parts["counters"] = state["counters"]
    for key, tensors in parts.items():
        if (
            not isinstance(tensors, Mapping)
            or set(tensors) != names
            or any(not isinstance(tensors[name], Tensor) or tensors[name].shape != masks[name].shape for name in names)
        ):
            raise ValueError(f"{key} of the state are not of the masked weights {', '.join(sorted(names))}")
    for name in masks:
        check_mask(name, state["masks"][name], masks[name].shape)
        check_mask(f"{name} in fired_masks", state["fired_masks"][name], masks[name].shape)
        if "counters" in state:
            check_counters(name, state["counters"][name], state["masks"][name], state["round"])


def _check_numbers(state: MaskingState, decay: Decay | None) -> None:
    fits = {
        "steps": is_int(state["steps"], 0, 2**63 - 1),
        "round": is_int(state["round"], 0, MAX_ROUNDS - 1),
        "seed": state["seed"] is None or is_int(state["seed"], -(2**63), 2**64 - 1),
        "density": state["density"] is None or is_number(state["density"], 0, 1),
        "death_rate": is_number(state["death_rate"]),
        "baseline_nonzero": state["baseline_nonzero"] is None or is_number(state["baseline_nonzero"], 0),
    }
    wrong = [f"{name} {state[name]!r}" for name, fit in fits.items() if not fit]  # type: ignore[literal-required]
    saved = state["decay"]
    if not isinstance(saved, Mapping):
        raise ValueError(f"decay of the state must be a dict, got {type(saved).__name__}")
    wrong += [f"decay.{name} {value!r}" for name, value in saved.items() if not is_number(value)]
    if wrong:
        raise ValueError(f"the state holds what no Masking has: {', '.join(wrong)}")
    wrong += [f"decay.{name} {saved[name]!r}" for name in ("T_max", "frequency") if not saved.get(name, 1) > 0]
    if decay is not None:
        known = {name for name, value in vars(decay).items() if isinstance(value, int | float)}
        wrong += [f"decay.{name}" for name in known ^ saved.keys()]
    if wrong:
        raise ValueError(f"the state holds what no Masking has: {', '.join(wrong)}")


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
