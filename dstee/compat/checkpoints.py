"""Masks and whole states of other libraries' checkpoints into a SparseModel, and back.

Understood are

- a dict from parameter name to mask, float, bool or integer (sparselearning's ``masks``);
- ``RigLScheduler.state_dict()`` of rigl-torch: masks by layer number, schedule and step;
- ``state_dict()`` of a ``torch.ao.pruning`` sparsifier, :class:`dstee.compat.torch_ao.DSTEESparsifier` with counters included;
- the ``state_dict()`` of a model with mask parametrizations (sparsimony): masks and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dstee import ops
from dstee.encoding import MAX_ROUNDS
from dstee.export import check_state, fit_masks, from_masks
from dstee.methods import DSTEE, Method, RigL, Static, method_from_dict
from dstee.schedule import CosineDrop, UpdateSchedule
from dstee.sparse_layer import reorder, row_major
from dstee.sparse_model import SparseModel

_PARAMETRIZATIONS = ".parametrizations."


def read(path: str | Path) -> Any:
    """``torch.load`` with ``weights_only=True``, on the CPU.

    The ``defaultdict`` of a torch.ao sparsifier's state, which that refuses, is read as a plain dict.
    """
    with torch.serialization.safe_globals([(_plain_dict, "collections.defaultdict"), dict]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _plain_dict(factory: Any = None) -> dict[Any, Any]:
    """Stands in for ``defaultdict``; the factory is not kept."""
    return {}


def kind(state: Any) -> str:
    """ "masks", "rigl-torch", "torch.ao" or "parametrized".

    Raises:
        ValueError: none of these.
    """
    if isinstance(state, Mapping) and state:
        if "backward_masks" in state:
            return "rigl-torch"
        if {"state", "groups"} <= state.keys():
            return "torch.ao"
        names = [str(name) for name in state]
        if any(_split(name)[1] == "0.mask" for name in names):
            return "parametrized"
        if any(name.endswith(".original") and _PARAMETRIZATIONS in f".{name}" for name in names):
            raise ValueError(
                "this model state has parametrizations without masks: torch.ao keeps them in the sparsifier's state"
            )
        if all(isinstance(t, Tensor) for t in state.values()):
            return "masks"
    raise ValueError(
        "unknown checkpoint: expected a dict from parameter name to mask, the state_dict of a RigLScheduler or of a "
        "torch.ao sparsifier, or that of a model with mask parametrizations"
    )


def masks_from(state: Any, model: nn.Module) -> dict[str, Tensor]:
    """The masks of a checkpoint by parameter name of ``model``, bool. Dense layers of rigl-torch (no mask) are left out.

    Raises:
        ValueError: an unknown kind, or masks that do not fit the model, all listed.
    """
    found = kind(state)
    masks: Mapping[str, Any]
    if found == "rigl-torch":
        masks = _rigl_masks(state, model)
    elif found == "torch.ao":
        masks = {name: entry.get("mask") for name, entry in state["state"].items() if isinstance(entry, Mapping)}
    elif found == "parametrized":
        masks = {_split(name)[0]: t for name, t in state.items() if _split(name)[1] == "0.mask"}
    else:
        masks = state
    return {c.name: mask for c, mask in fit_masks(model, masks)}


def weights_from(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The ``state_dict`` of a model with mask parametrizations as that of the plain model, masks multiplied in."""
    if kind(state) != "parametrized":
        raise ValueError("this checkpoint holds no weights: load the model's own state_dict")
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
            weights[base] = torch.where(t != 0, weights[base], 0)
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
    found = kind(state)
    masks = masks_from(state, model)
    said: dict[str, Any] = {"method": None, "schedule": None, "seed": 0, "t": 0, "round": 0}
    if found == "rigl-torch":
        said |= _rigl_schedule(state)
    elif found == "torch.ao" and "schedule" in state:
        said |= _sparsifier_values(state)
    chosen = method or said["method"] or DSTEE()
    weights = weights_from(state) if found == "parametrized" else {}
    if weights:
        check_state(model, weights)
    counts = _counts(state, masks, said["round"]) if found == "torch.ao" and chosen.needs_counter else {}
    if found == "parametrized":
        model.load_state_dict(weights)
    sparse = from_masks(
        model, masks, method=chosen, schedule=schedule or said["schedule"], seed=said["seed"] if seed is None else seed,
        track_exploration=track_exploration,
    )  # fmt: skip
    sparse.t, sparse.round = said["t"], said["round"]
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
        active = torch.empty_like(layer.follow(), dtype=torch.bool, requires_grad=False).copy_(masks[name])
        layer.mask_bits, layer.previous_bits = ops.pack_mask(active), None
        layer.nnz = int(active.sum())
        if layer.counts is not None:
            layer.counts = ops.encode_counts(active.int(), active, sparse.round)
    sparse.apply_masks()
    sparse.check_at_next_step()


# --- back ----------------------------------------------------------------------------------------------------------------


def to_masks(sparse: SparseModel, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Masks by parameter name, 0 and 1 in ``dtype``, on the weights' devices: sparselearning's ``masks``."""
    return {name: mask.contiguous().to(dtype) for name, mask in sparse.masks().items()}


def to_torch_ao(sparse: SparseModel) -> dict[str, Any]:
    """A sparsifier's ``state_dict`` with these masks, for torch's own sparsifiers and for DSTEESparsifier (counters too)."""
    state: dict[str, dict[str, Any]] = {}
    for name, mask in to_masks(sparse).items():
        layer = sparse.layers[name]
        state[name] = {"mask": mask.to(layer.dtype), "round": sparse.round}
        if layer.counts is not None:
            state[name]["counts"] = reorder(layer.counts, layer.shape, layer.strides, row_major(layer.shape)).clone()
    groups = [{"tensor_fqn": name, "sparsity_level": 1 - layer.nnz / layer.numel} for name, layer in sparse.layers.items()]
    plain = {"method": sparse.method.to_dict(), "schedule": sparse.schedule.to_dict()}
    return {"state": state, "groups": groups, "t": sparse.t, "seed": sparse.seed, **plain}


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


def to_rigl_torch(sparse: SparseModel, *, grad_accumulation_n: int = 1, ignore_linear_layers: bool = False) -> dict[str, Any]:
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


# --- the originals -------------------------------------------------------------------------------------------------------


def rigl_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor, bool]]:
    """rigl-torch's layers in its order: name of the weight, weight, whether it is a Linear.

    Whatever has a ``weight`` counts, norms and embeddings too, except BatchNorm2d; nothing inside it is looked at.
    """
    for name, child in module._modules.items() if prefix or not _counts_as_layer(module) else [("", module)]:
        path = f"{prefix}{name}"
        if child is not None and _counts_as_layer(child):
            if isinstance(child.weight, Tensor):  # a norm without weights stops the original
                yield f"{path}.weight".lstrip("."), child.weight, isinstance(child, nn.Linear)
        elif child is not None:
            yield from rigl_layers(child, f"{path}.")


def _counts_as_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (hasattr(module, "weight") and type(module) is not nn.BatchNorm2d)


def _rigl_masks(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    masks, names = state["backward_masks"], [name for name, _, _ in rigl_layers(model)]
    if not isinstance(masks, list) or len(masks) != len(names):
        got = len(masks) if isinstance(masks, list) else type(masks).__name__
        raise ValueError(f"the checkpoint has {got} layers, the model {len(names)}: {', '.join(names)}")
    return {name: mask for name, mask in zip(names, masks, strict=True) if mask is not None}


def _rigl_schedule(state: Mapping[str, Any]) -> dict[str, Any]:
    hyper = {**state, **state.get("hyperparams", {})}
    try:
        every, alpha, stop, static = (hyper[key] for key in ("delta_T", "alpha", "T_end", "static_topo"))
        t, round = (_count(hyper[key], key) for key in ("step", "rigl_steps"))
        schedule = UpdateSchedule(every=every, stop=stop, drop=CosineDrop(alpha))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"the RigLScheduler's state has no schedule that can go on: {error}") from None
    return {"method": Static() if static else RigL(), "schedule": schedule, "t": t, "round": round}


def _sparsifier_values(state: Mapping[str, Any]) -> dict[str, Any]:
    rounds = {entry.get("round") for entry in state["state"].values()}
    try:
        if len(rounds) != 1:
            raise ValueError(f"layers have seen different numbers of updates: {sorted(map(str, rounds))}")
        return {
            "method": method_from_dict(state["method"]),
            "schedule": UpdateSchedule.from_dict(state["schedule"]),
            "seed": state["seed"],
            "t": _count(state["t"], "t"),
            "round": _count(rounds.pop(), "round"),
        }
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"the sparsifier's state cannot go on in a SparseModel: {error}") from None


def _counts(state: Mapping[str, Any], masks: Mapping[str, Tensor], round: int) -> dict[str, Tensor]:
    found = {name: state["state"][name]["counts"] for name in masks if "counts" in state["state"].get(name, {})}
    for name, counts in found.items():
        n = masks[name].numel()
        if not isinstance(counts, Tensor) or counts.dtype != torch.int16 or counts.shape != (n,):
            raise ValueError(f"the counts of {name} must be int16 [{n}]")
        low, high = (int(x) for x in counts.aminmax())
        if low < 0 or high > round:
            raise ValueError(f"the counts of {name} lie in {low}..{high}, expected 0..{round}")
    return {name: counts.cpu() for name, counts in found.items()}


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 0 or (name != "t" and name != "step" and value >= MAX_ROUNDS):
        raise ValueError(f"{name} must be an int >= 0, got {value!r}")
    return value


def _split(name: str) -> tuple[str, str]:
    """ "a.parametrizations.weight.0.mask" -> ("a.weight", "0.mask"); names without parametrizations -> (name, "")."""
    head, found, tail = f".{name}".rpartition(_PARAMETRIZATIONS)
    if not found:
        return name, ""
    attribute, _, part = tail.partition(".")
    return f"{head}.{attribute}".lstrip("."), part
