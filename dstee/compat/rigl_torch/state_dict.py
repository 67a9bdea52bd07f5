"""``RigLScheduler.state_dict``: the original's keys, and what is checked when they come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from torch import Tensor

from dstee._state_checks import is_int, is_number
from dstee.compat.plain_masks import check_counters, check_mask
from dstee.encoding import MAX_ROUNDS

__all__ = ["HYPERPARAMETERS", "ExplorationState", "SchedulerState", "check"]

HYPERPARAMETERS = (
    "delta_T", "alpha", "T_end", "ignore_linear_layers", "static_topo", "sparsity_distribution", "grad_accumulation_n",
)  # fmt: skip


class ExplorationState(TypedDict):
    """What method="dst_ee" adds under the key "dstee". ``counters``: N of each sparse layer, int32 in the weight's shape."""

    c: float
    eps: float
    _round: int
    counters: list[Tensor]


class _OriginalState(TypedDict):
    dense_allocation: float
    S: list[float]
    N: list[int]
    hyperparams: dict[str, Any]
    step: int
    rigl_steps: int
    backward_masks: list[Tensor | None]
    _linear_layers_mask: list[int]


class SchedulerState(_OriginalState, total=False):
    """The original's keys, and ours."""

    dstee: ExplorationState


def check(state: SchedulerState, W: Sequence[Tensor], backward_masks: Sequence[Tensor | None], method: str) -> None:
    """Whether a state fits a scheduler with these weights, masks (none yet in its constructor) and method.

    Raises:
        ValueError, KeyError: it is of another model or method, lacks a key, or holds what no scheduler does.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f"the state must be a dict, got {type(state).__name__}")
    masks, S, linear, N = state["backward_masks"], state["S"], state["_linear_layers_mask"], [w.numel() for w in W]
    if not all(isinstance(part, list) for part in (state["N"], masks, S, linear)):
        raise ValueError("N, S, backward_masks and _linear_layers_mask of the state must be lists")
    if state["N"] != N or len(masks) != len(N) or len(S) != len(N) or len(linear) != len(N):
        raise ValueError(f"the state is for weights of sizes {state['N']}, this model has {N}")
    for i, (w, mask, s) in enumerate(zip(W, masks, S, strict=True)):
        if not is_number(s, -1, 1) or not _is_flag(linear[i]):
            raise ValueError(f"layer {i} has sparsity {s!r} and linear {linear[i]!r}, expected a number in [0, 1] and 0 or 1")
        if (mask is None) != (s <= 0) or (mask is not None and (not isinstance(mask, Tensor) or mask.shape != w.shape)):
            raise ValueError(f"backward_masks[{i}] does not fit a weight {list(w.shape)} of sparsity {s}")
        if mask is not None:
            check_mask(f"layer {i}", mask, w.shape)
        if backward_masks and (backward_masks[i] is None) != (mask is None):
            raise ValueError(f"layer {i} is dense in one and sparse in the other: pass state_dict to the constructor")
    hyper = state["hyperparams"]
    if not isinstance(hyper, Mapping):
        raise ValueError(f"hyperparams of the state must be a dict, got {type(hyper).__name__}")
    missing = [name for name in HYPERPARAMETERS if name not in hyper]
    if missing:
        raise KeyError(f"state_dict['hyperparams'] lacks {', '.join(missing)}")
    fits = {
        "delta_T": is_number(hyper["delta_T"], 1),
        "alpha": is_number(hyper["alpha"], 0, 1),
        "T_end": hyper["T_end"] is None or is_number(hyper["T_end"], 0),
        "ignore_linear_layers": _is_flag(hyper["ignore_linear_layers"]),
        "static_topo": _is_flag(hyper["static_topo"]),
        "sparsity_distribution": hyper["sparsity_distribution"] in ("uniform", "erk"),
        "grad_accumulation_n": is_number(hyper["grad_accumulation_n"], 1),
    }
    wrong = [f"{name} {hyper[name]!r}" for name, fit in fits.items() if not fit]
    wrong += [f"{name} {state[name]!r}" for name in ("step", "rigl_steps") if not is_int(state[name], 0, 2**63 - 1)]
    if not is_number(state["dense_allocation"], 0):
        wrong.append(f"dense_allocation {state['dense_allocation']!r}")
    if wrong:
        raise ValueError(f"the state holds what no scheduler has: {', '.join(wrong)}")
    step, extra = state["step"], state.get("dstee")
    if (extra is not None) != (method == "dst_ee") and (extra is not None or step):
        raise ValueError(f"the state was {'' if extra else 'not '}saved by method='dst_ee', this scheduler has {method!r}")
    if extra is not None:
        _check_exploration(extra, masks)


def _is_flag(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _check_exploration(extra: ExplorationState, masks: Sequence[Tensor | None]) -> None:
    if not isinstance(extra, Mapping):
        raise ValueError(f"dstee of the state must be a dict, got {type(extra).__name__}")
    sparse, counters = [mask for mask in masks if mask is not None], extra["counters"]
    if not is_number(extra["c"], 0) or not is_number(extra["eps"], 0) or not extra["eps"] > 0:
        raise ValueError(f"c and eps of the state must be numbers >= 0 and > 0, got {extra['c']!r} and {extra['eps']!r}")
    if not is_int(extra["_round"], 0, MAX_ROUNDS - 1):
        raise ValueError(f"_round of the state must be in 0..{MAX_ROUNDS - 1}, got {extra['_round']!r}")
    if not isinstance(counters, list) or len(counters) != len(sparse):
        raise ValueError(f"the state must hold counters of {len(sparse)} layers")
    for i, (N, mask) in enumerate(zip(counters, sparse, strict=True)):
        check_counters(f"sparse layer {i}", N, mask, extra["_round"])
