"""``RigLScheduler.state_dict``: the original's keys, and what is checked when they come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

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
        ValueError, KeyError: it is of another model or method, or lacks a key.
    """
    masks, S, N = state["backward_masks"], state["S"], [w.numel() for w in W]
    if list(state["N"]) != N or len(masks) != len(N) or len(S) != len(N):
        raise ValueError(f"the state is for weights of sizes {list(state['N'])}, this model has {N}")
    for i, (w, mask, s) in enumerate(zip(W, masks, S, strict=True)):
        if (mask is None) != (s <= 0) or (mask is not None and mask.shape != w.shape):
            raise ValueError(f"backward_masks[{i}] does not fit a weight {list(w.shape)} of sparsity {s}")
        if backward_masks and (backward_masks[i] is None) != (mask is None):
            raise ValueError(f"layer {i} is dense in one and sparse in the other: pass state_dict to the constructor")
    missing = [name for name in HYPERPARAMETERS if name not in state["hyperparams"]]
    if missing:
        raise KeyError(f"state_dict['hyperparams'] lacks {', '.join(missing)}")
    step, _, extra = state["step"], state["rigl_steps"], state.get("dstee")
    if (extra is not None) != (method == "dst_ee") and (extra is not None or step):
        raise ValueError(f"the state was {'' if extra else 'not '}saved by method='dst_ee', this scheduler has {method!r}")
