"""rigl-torch's checkpoints: ``RigLScheduler.state_dict()``, masks by layer number, schedule and step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dstee._state_checks import is_number
from dstee.compat.libraries import CheckpointFormat, Progress, State, check_count
from dstee.compat.plain_masks import to_masks
from dstee.compat.rigl_torch.layers import rigl_layers
from dstee.compat.rigl_torch.state_dict import SchedulerState
from dstee.methods import RigL, Static
from dstee.schedule import CosineDrop, UpdateSchedule
from dstee.sparse_model import SparseModel

__all__ = ["ENTRY", "to_rigl_torch"]


class _Format(CheckpointFormat):
    kind = "rigl-torch"

    def recognizes(self, state: State) -> bool:
        return "backward_masks" in state

    def masks(self, state: State, model: nn.Module) -> Mapping[str, Any]:
        masks, names = state["backward_masks"], [name for name, _, _ in rigl_layers(model)]
        if not isinstance(masks, list) or len(masks) != len(names):
            got = len(masks) if isinstance(masks, list) else type(masks).__name__
            raise ValueError(f"the checkpoint has {got} layers, the model {len(names)}: {', '.join(names)}")
        return {name: mask for name, mask in zip(names, masks, strict=True) if mask is not None}

    def progress(self, state: State) -> Progress:
        try:
            hyper = {**state, **state.get("hyperparams", {})}
            every, alpha, stop, static = (hyper[key] for key in ("delta_T", "alpha", "T_end", "static_topo"))
            t, round = (check_count(hyper[key], key) for key in ("step", "rigl_steps"))
            if not is_number(alpha, 0, 1) or not (isinstance(static, int) and static in (0, 1)):
                raise ValueError(f"alpha is {alpha!r} and static_topo {static!r}, expected a number in [0, 1] and a bool")
            schedule = UpdateSchedule(every=every, stop=stop, drop=CosineDrop(alpha))
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"the RigLScheduler's state has no schedule that can go on: {error}") from None
        return Progress(Static() if static else RigL(), schedule, t=t, round=round)


ENTRY = _Format()


def to_rigl_torch(sparse: SparseModel, *, grad_accumulation_n: int = 1, ignore_linear_layers: bool = False) -> SchedulerState:
    """The ``state_dict`` that rigl-torch's RigLScheduler takes as ``state_dict=``, for the same model.

    Raises:
        ValueError: a sparse layer is none of those it knows, or the schedule is not its own (a cosine to 0 and a ``stop``).
    """
    drop, stop = sparse.schedule.drop, sparse.schedule.stop
    if not isinstance(drop, CosineDrop) or drop.floor != 0 or stop is None:
        raise ValueError(f"rigl-torch knows CosineDrop with floor 0 and a stop only, got {sparse.schedule}")
    layers, masks = list(rigl_layers(sparse.model)), to_masks(sparse, torch.bool)
    unknown = masks.keys() - {name for name, _, _ in layers}
    if unknown:
        raise ValueError(f"rigl-torch has no such layers: {', '.join(sorted(unknown))}")
    return {
        "dense_allocation": sparse.density(),
        "S": [1 - sparse.layers[name].nnz / sparse.layers[name].numel if name in masks else 0 for name, _, _ in layers],
        "N": [weight.numel() for _, weight, _ in layers],
        "hyperparams": {
            "delta_T": sparse.schedule.every,
            "alpha": drop.initial,
            "T_end": stop,
            "ignore_linear_layers": ignore_linear_layers,
            "static_topo": not sparse.method.updates,
            "sparsity_distribution": "uniform",
            "grad_accumulation_n": grad_accumulation_n,
        },
        "step": sparse.t,
        "rigl_steps": sparse.round,
        "backward_masks": [masks.get(name) for name, _, _ in layers],
        "_linear_layers_mask": [int(linear) for _, _, linear in layers],
    }
