"""Masks and whole states of other libraries' checkpoints into a SparseModel, and back.

Understood are

- a dict from parameter name to mask, float, bool or integer (sparselearning's ``masks``);
- ``RigLScheduler.state_dict()`` of rigl-torch: masks by layer number, schedule and step;
- ``state_dict()`` of a ``torch.ao.pruning`` sparsifier, :class:`dstee.compat.torch_ao.DSTEESparsifier` with counters included;
- the ``state_dict()`` of a model with mask parametrizations (sparsimony): masks and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dstee import ops
from dstee._files import CheckpointError, open_regular
from dstee.compat.libraries import CheckpointFormat, State, checkpoint_formats
from dstee.compat.plain_masks import to_masks
from dstee.compat.rigl_torch.checkpoint import to_rigl_torch
from dstee.compat.rigl_torch.layers import rigl_layers
from dstee.compat.sparsimony.checkpoint import to_parametrized
from dstee.compat.torch_ao.checkpoint import to_torch_ao
from dstee.export import check_state
from dstee.memory_order import like, reorder, row_major
from dstee.methods import DSTEE, Method
from dstee.schedule import UpdateSchedule
from dstee.sparse_model import SparseModel
from dstee.sparsification import fit_masks, from_masks

__all__ = [
    "kind",
    "load",
    "load_masks",
    "masks_from",
    "read",
    "rigl_layers",
    "to_masks",
    "to_parametrized",
    "to_rigl_torch",
    "to_torch_ao",
    "weights_from",
]


class _Masks(CheckpointFormat):
    """A dict from parameter name to mask."""

    kind = "masks"

    def recognizes(self, state: State) -> bool:
        return all(isinstance(t, Tensor) for t in state.values())

    def masks(self, state: State, model: nn.Module) -> Mapping[str, Any]:
        return state


def read(path: str | Path) -> Any:
    """``torch.load`` with ``weights_only=True``, on the CPU.

    The ``defaultdict`` of a torch.ao sparsifier's state, which that refuses, is read as a plain dict.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than plain values and tensors.
    """
    try:
        with (
            open(path, "rb", opener=open_regular) as file,
            torch.serialization.safe_globals([(_plain_dict, "collections.defaultdict"), dict]),
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes torch raise a dozen kinds
        raise CheckpointError(f"{path}: cannot be read: {error or type(error).__name__}") from error


def _plain_dict(factory: object = None) -> dict[object, object]:
    """Stands in for ``defaultdict``; the factory is not kept."""
    return {}


def _format(state: object) -> CheckpointFormat:
    if isinstance(state, Mapping) and state:
        for found in (*checkpoint_formats(), _Masks()):
            if found.recognizes(state):
                return found
    raise ValueError(
        "unknown checkpoint: expected a dict from parameter name to mask, the state_dict of a RigLScheduler or of a "
        "torch.ao sparsifier, or that of a model with mask parametrizations"
    )


def kind(state: object) -> str:
    """ "masks", "rigl-torch", "torch.ao" or "parametrized".

    Raises:
        ValueError: none of these.
    """
    return _format(state).kind


def masks_from(state: Any, model: nn.Module) -> dict[str, Tensor]:
    """The masks of a checkpoint by parameter name of ``model``, bool. Dense layers of rigl-torch (no mask) are left out.

    Raises:
        ValueError: an unknown kind, or masks that do not fit the model, all listed.
    """
    return {c.name: mask for c, mask in fit_masks(model, _format(state).masks(state, model))}


def weights_from(state: State) -> dict[str, Tensor]:
    """The ``state_dict`` of a model with mask parametrizations as that of the plain model, masks multiplied in."""
    weights = _format(state).weights(state)
    if not weights:
        raise ValueError("this checkpoint holds no weights: load the model's own state_dict")
    return weights


def load(
    model: nn.Module,
    state: Any,
    *,
    method: Method | None = None,
    schedule: UpdateSchedule | None = None,
    seed: int | None = None,
    track_exploration: bool = False,
) -> SparseModel:
    """A SparseModel of ``model`` that goes on where a checkpoint of another library stopped.

    Weights outside the masks become 0. The model's weights come from its own ``load_state_dict``, before this, except for a
    model state with parametrizations, which holds them. rigl-torch's state brings schedule and step (method
    :class:`dstee.RigL`, :class:`dstee.Static` with ``static_topo``), DSTEESparsifier's all that it counts; where only masks are
    known, counters and steps start anew.

    Args:
        state: see the module; :func:`read` reads one from a file.
        method, schedule, seed: instead of what the state says; default where it says nothing: as :func:`dstee.sparsify`.

    Raises:
        ValueError: the state is not understood or does not fit the model. The model has not changed then.
    """
    found = _format(state)
    masks = masks_from(state, model)
    progress = found.progress(state)
    if progress.round > progress.t:
        raise ValueError(f"the checkpoint counts {progress.round} updates in {progress.t} steps")
    chosen = method or progress.method or DSTEE()
    weights = found.weights(state)
    if weights:
        check_state(model, weights)
    counts = found.counts(state, masks, progress.round) if chosen.needs_counter else {}
    if weights:
        model.load_state_dict(weights)
    sparse = from_masks(
        model, masks, method=chosen, schedule=schedule or progress.schedule, seed=progress.seed if seed is None else seed,
        track_exploration=track_exploration,
    )  # fmt: skip
    sparse.set_progress(progress.t, progress.round)
    for name, layer in sparse.layers.items():
        if layer.counts is None:
            continue
        if name in counts:
            layer.counts = reorder(counts[name], layer.shape, row_major(layer.shape), layer.strides).to(layer.counts.device)
        else:
            active = layer.bools(layer.mask_bits)
            layer.counts = ops.encode_counts(active.int(), active, sparse.round)
    return sparse


def load_masks(sparse: SparseModel, state: Any) -> None:
    """Gives a SparseModel the masks of a checkpoint, in place, for exactly its layers; counters start with them.

    ``t``, ``round``, method, schedule and seed stay. Weights outside become 0, the optimizer's state there at its next step.

    Raises:
        ValueError: as :func:`masks_from`; layers differ. Nothing has changed then.
    """
    masks = masks_from(state, sparse.model)
    problems = [f"{name}: sparse here, no mask in the checkpoint" for name in sparse.layers if name not in masks]
    problems += [f"{name}: a mask in the checkpoint, dense here" for name in masks if name not in sparse.layers]
    if problems:
        raise ValueError("the checkpoint has other sparse layers, nothing was changed:\n  " + "\n  ".join(problems))
    for name, layer in sparse.layers.items():
        active = like(masks[name], layer.follow(), (torch.bool,))
        layer.mask_bits, layer.previous_bits = ops.pack_mask(active), None
        layer.nnz = int(active.sum())
        if layer.counts is not None:
            layer.counts = ops.encode_counts(active.int(), active, sparse.round)
    sparse.apply_masks()
    sparse.check_at_next_step()
