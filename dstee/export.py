"""Sparse models from masks and from exported weights: the way back of ``SparseModel.export``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dstee import ops
from dstee._checks import _check_no_overlap
from dstee._export import read_safetensors
from dstee.methods import DSTEE, Method
from dstee.schedule import UpdateSchedule
from dstee.selection import Candidate, candidates
from dstee.sparse_layer import SparseLayer, check_parameter
from dstee.sparse_model import SparseModel


def from_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    method: Method | None = None,
    schedule: UpdateSchedule | None = None,
    seed: int = 0,
    track_exploration: bool = False,
) -> SparseModel:
    """A SparseModel with these masks instead of random ones; counters start with them. Weights outside become 0.

    Args:
        masks: by parameter name, tensors of 0 and 1 (any dtype) in the parameter's shape. All other parameters stay dense.
            Names may begin with "module.", as DistributedDataParallel writes them.
        others: as in :func:`dstee.sparsify`.

    Raises:
        ValueError: listing every mask that does not fit the model. TypeError: a weight's dtype. The model has not changed then.
    """
    method = DSTEE() if method is None else method
    schedule = UpdateSchedule() if schedule is None else schedule
    for label, value, kind in (("model", model, nn.Module), ("method", method, Method), ("schedule", schedule, UpdateSchedule)):
        if not isinstance(value, kind):
            raise TypeError(f"{label} must be a {kind.__name__}, got {type(value).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    chosen = fit_masks(model, masks)
    for c, _ in chosen:
        check_parameter(c.name, c.param)
    _check_no_overlap(**{c.name: [c.param] for c, _ in chosen})
    counted = method.needs_counter or track_exploration
    layers = {c.name: _layer(c, mask, counted) for c, mask in chosen}
    sparse = SparseModel(model, layers, method, schedule, seed)
    sparse.apply_masks()
    return sparse


def fit_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[Candidate, Tensor]]:
    """The parameters that ``masks`` names, in the model's order, each with its mask as bool.

    Raises:
        ValueError: listing everything that does not fit.
    """
    found = {name: c for c in candidates(model) for name in c.names()}
    if not isinstance(masks, Mapping) or not masks:
        raise ValueError("masks must be a dict from parameter name to mask, with at least one")
    if all(str(name).startswith("module.") and name not in found for name in masks):
        masks = {name.removeprefix("module."): mask for name, mask in masks.items()}
    problems: list[str] = []
    chosen: dict[str, Tensor] = {}
    for name, mask in masks.items():
        c = found.get(name)
        if c is None:
            problems.append(f"{name!r}: no parameter of the model")
        elif not isinstance(mask, Tensor):
            problems.append(f"{name}: the mask is a {type(mask).__name__}, expected a tensor")
        elif mask.shape != c.param.shape:
            problems.append(f"{name}: the mask has shape {list(mask.shape)}, the parameter {list(c.param.shape)}")
        elif mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
            problems.append(f"{name}: the mask holds other values than 0 and 1")
        elif c.name in chosen and not torch.equal(chosen[c.name], mask != 0):
            problems.append(f"{name}: tied to {c.name}, which has another mask")
        else:
            chosen[c.name] = mask != 0
    if problems:
        raise ValueError("these masks do not fit the model, nothing was changed:\n  " + "\n  ".join(problems))
    return [(c, chosen[c.name]) for c in candidates(model) if c.name in chosen]


def _layer(c: Candidate, mask: Tensor, counted: bool) -> SparseLayer:
    p, (_, module, attribute) = c.param, c.owners[0]
    bits = ops.pack_mask(torch.empty_like(p, dtype=torch.bool, requires_grad=False).copy_(mask))
    counts = torch.zeros(p.numel(), dtype=torch.int16, device=p.device) if counted else None
    nnz = int(ops.count_active([bits]))
    return SparseLayer(c.name, module, attribute, nnz, bits, counts, p.shape, p.stride(), p.dtype)


def from_export(
    model: nn.Module,
    source: Mapping[str, Tensor] | str | Path,
    *,
    masks: Mapping[str, Tensor] | Literal["nonzero"] | None = None,
    method: Method | None = None,
    schedule: UpdateSchedule | None = None,
    seed: int = 0,
    track_exploration: bool = False,
) -> SparseModel:
    """Loads what ``SparseModel.export`` made into ``model`` and makes it sparse again: weights and masks bit for bit.

    Args:
        model: of the same architecture; all its state is overwritten.
        source: the file of ``format="safetensors"``, or the tensors of another format.
        masks: only for "dense" and "bsr", which do not say which of their zeros are active: the masks by parameter name, or
            "nonzero" for the weights that are not 0.
        others: as in :func:`dstee.sparsify`.

    Raises:
        ValueError: it does not fit the model, or has no masks; a file that cannot be used is a
            :class:`dstee.CheckpointError`. The model has not changed then.
    """
    if isinstance(source, (str, Path)):
        state, own = read_safetensors(Path(source))
    else:
        state, own = _densify(model, source)
    if own and masks is not None:
        raise ValueError("masks given, but the export holds its own: leave them out")
    given = masks or own
    if isinstance(given, str):
        if given != "nonzero":
            raise ValueError(f"masks must be a dict or 'nonzero', got {given!r}")
        names = [n for n, t in source.items() if t.layout is torch.sparse_bsr] if isinstance(source, Mapping) else []
        given = {name: state[name] != 0 for name in names or _default_names(model) if name in state}
    if not given:
        raise ValueError("this export does not say which zeros are active: pass masks=sparse.masks(), or masks='nonzero'")
    check_state(model, state)
    for c, mask in fit_masks(model, given):
        if bool((state[c.name].ne(0) & ~mask.to(state[c.name].device)).any()):
            raise ValueError(f"{c.name} has weights outside its mask that are not 0: the masks belong to other weights")
    model.load_state_dict(state)
    return from_masks(
        model, given, method=method, schedule=schedule, seed=seed, track_exploration=track_exploration
    )  # fmt: skip


def _default_names(model: nn.Module) -> list[str]:
    from dstee.selection import select

    return [c.name for c in select(model, None, None)]


def _densify(model: nn.Module, source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dense state, and the masks of CSR tensors: every stored element is active."""
    if not isinstance(source, Mapping) or not all(isinstance(t, Tensor) for t in source.values()):
        raise ValueError("source must be a path or a dict of tensors that SparseModel.export made")
    shapes = {name: t.shape for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    state, masks = {}, {}
    for name, t in source.items():
        if t.layout is torch.strided:
            state[name] = t
            continue
        if t.layout not in (torch.sparse_csr, torch.sparse_bsr):
            raise ValueError(f"{name} has layout {t.layout}, expected strided, sparse_csr or sparse_bsr")
        shape = shapes.get(name, t.shape)
        if shape.numel() != t.shape.numel():
            raise ValueError(f"{name} has {t.shape.numel()} weights, the model {list(shape)}")
        state[name] = t.to_dense().view(shape)
        if t.layout is torch.sparse_csr:
            row = torch.repeat_interleave(torch.arange(t.shape[0], device=t.device), t.crow_indices().diff())
            mask = torch.zeros(t.shape, dtype=torch.bool, device=t.device)
            mask[row, t.col_indices()] = True
            masks[name] = mask.view(shape)
    return state, masks


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    problems = [f"{name}: missing" for name in expected if name not in state]
    problems += [f"{name!r}: not in the model" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        e, s = expected[name], state[name]
        if (s.shape, s.dtype) != (e.shape, e.dtype):
            problems.append(f"{name}: {s.dtype} {list(s.shape)}, the model has {e.dtype} {list(e.shape)}")
    if problems:
        raise ValueError("the export does not fit the model, nothing was changed:\n  " + "\n  ".join(sorted(problems)))
