"""Checkpoints of ``torch.ao.pruning``: a sparsifier's ``state_dict()``, with all that DSTEESparsifier counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dstee._state_checks import is_int
from dstee.compat.libraries import CheckpointFormat, Progress, State, check_count
from dstee.compat.plain_masks import to_masks
from dstee.compat.torch_ao.state_dict import counts_problem
from dstee.memory_order import reorder, row_major
from dstee.methods import method_from_dict
from dstee.schedule import UpdateSchedule
from dstee.sparse_model import SparseModel

__all__ = ["ENTRY", "to_torch_ao"]


class _Format(CheckpointFormat):
    kind = "torch.ao"

    def recognizes(self, state: State) -> bool:
        return {"state", "groups"} <= state.keys()

    def masks(self, state: State, model: nn.Module) -> Mapping[str, Any]:
        entries = state["state"]
        if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
            raise ValueError("'state' of the sparsifier's state is no dict of dicts, one for each layer")
        return {name: entry.get("mask") for name, entry in entries.items()}

    def progress(self, state: State) -> Progress:
        if "schedule" not in state:  # torch's own sparsifiers count nothing
            return Progress()
        try:
            rounds = {entry.get("round") for entry in state["state"].values()}
            if len(rounds) != 1:
                raise ValueError(f"layers have seen different numbers of updates: {sorted(map(str, rounds))}")
            if not is_int(state["seed"], -(2**63), 2**64 - 1):
                raise ValueError(f"seed must be an int of 64 bits, got {state['seed']!r}")
            return Progress(
                method_from_dict(state["method"]),
                UpdateSchedule.from_dict(state["schedule"]),
                seed=state["seed"],
                t=check_count(state["t"], "t"),
                round=check_count(rounds.pop(), "round"),
            )
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"the sparsifier's state cannot go on in a SparseModel: {error}") from None

    def counts(self, state: State, masks: Mapping[str, Tensor], round: int) -> Mapping[str, Tensor]:
        found = {name: state["state"][name]["counts"] for name in masks if "counts" in state["state"].get(name, {})}
        for name, counts in found.items():
            if problem := counts_problem(counts, masks[name].numel(), round):
                raise ValueError(f"the counts of {name} {problem}")
        return {name: counts.cpu() for name, counts in found.items()}


ENTRY = _Format()


def to_torch_ao(sparse: SparseModel) -> dict[str, Any]:
    """A sparsifier's ``state_dict`` with these masks, for torch's own sparsifiers and for DSTEESparsifier (counters too)."""
    state: dict[str, dict[str, Tensor | int]] = {}
    for name, mask in to_masks(sparse).items():
        layer = sparse.layers[name]
        state[name] = {"mask": mask.to(layer.dtype), "round": sparse.round}
        if layer.counts is not None:
            state[name]["counts"] = reorder(layer.counts, layer.shape, layer.strides, row_major(layer.shape)).clone()
    groups = [{"tensor_fqn": name, "sparsity_level": 1 - layer.nnz / layer.numel} for name, layer in sparse.layers.items()]
    plain = {"method": sparse.method.to_dict(), "schedule": sparse.schedule.to_dict()}
    return {"state": state, "groups": groups, "t": sparse.t, "seed": sparse.seed, **plain}
