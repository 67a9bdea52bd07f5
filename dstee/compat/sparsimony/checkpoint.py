"""sparsimony's checkpoints: the ``state_dict()`` of a model with mask parametrizations, masks and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dstee.compat.libraries import CheckpointFormat, State
from dstee.compat.plain_masks import check_mask, to_masks
from dstee.sparse_model import SparseModel

__all__ = ["ENTRY", "to_parametrized"]

_PARAMETRIZATIONS = ".parametrizations."


def _split(name: str) -> tuple[str, str]:
    """ "a.parametrizations.weight.0.mask" -> ("a.weight", "0.mask"); names without parametrizations -> (name, "")."""
    head, found, tail = f".{name}".rpartition(_PARAMETRIZATIONS)
    if not found:
        return name, ""
    attribute, _, part = tail.partition(".")
    return f"{head}.{attribute}".lstrip("."), part


class _Format(CheckpointFormat):
    kind = "parametrized"

    def recognizes(self, state: State) -> bool:
        parts = [_split(str(name))[1] for name in state]
        if "0.mask" in parts:
            return True
        if any(part == "original" or part.endswith(".original") for part in parts):
            raise ValueError(
                "this model state has parametrizations without masks: torch.ao keeps them in the sparsifier's state"
            )
        return False

    def masks(self, state: State, model: nn.Module) -> Mapping[str, Any]:
        return {_split(name)[0]: t for name, t in state.items() if _split(name)[1] == "0.mask"}

    def weights(self, state: State) -> dict[str, Tensor]:
        """The state of the plain model, masks multiplied in."""
        weights = {}
        for name, t in state.items():
            base, part = _split(name)
            if part == "original":
                weights[base] = t
            elif not part:
                weights[name] = t
        for name, t in state.items():
            base, part = _split(name)
            if part == "0.mask":
                weight = weights.get(base)
                if not isinstance(weight, Tensor):
                    raise ValueError(f"the checkpoint holds a mask of {base} and no weight")
                check_mask(base, t, weight.shape)
                weights[base] = torch.where(t != 0, weight, 0)
        return weights


ENTRY = _Format()


def to_parametrized(sparse: SparseModel, *, dense_grad: bool = False) -> dict[str, Tensor]:
    """The model's state under mask parametrizations, as a model that sparsimony prepared loads it.

    ``dense_grad``: with the empty gradient buffers that its RigL registers.
    """
    state = dict(sparse.export("dense"))
    for name, mask in to_masks(sparse).items():
        weight = state.pop(name)
        module, _, attribute = name.rpartition(".")
        prefix = f"{module}{'.' if module else ''}parametrizations.{attribute}"
        state[f"{prefix}.original"] = weight
        state[f"{prefix}.0.mask"] = mask.to(weight.dtype)
        if dense_grad:
            state[f"{prefix}.0.dense_grad"] = torch.zeros_like(weight)
    return state
