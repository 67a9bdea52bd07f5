"""The way back of ``SparseModel.export``: sparse models from exported weights, and from masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from dstee import _export_file
from dstee._files import CheckpointError
from dstee.methods import Method
from dstee.parameter_names import match_names, plain_state_names
from dstee.schedule import UpdateSchedule
from dstee.selection import select
from dstee.sparse_model import SparseModel
from dstee.sparsification import fit_masks as fit_masks
from dstee.sparsification import from_masks as from_masks

__all__ = ["check_state", "fit_masks", "from_export", "from_masks"]


T = TypeVar("T")


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

    A file that 0.1.0 wrote has digests of its masks only; it is loaded with a warning.

    Raises:
        ValueError: it does not fit the model, or has no masks; of a file, a :class:`dstee.CheckpointError` that names it.
            The model has not changed then.
    """
    given: Mapping[str, Tensor]
    if isinstance(source, (str, Path)):
        path = Path(source)
        if masks is not None:
            raise ValueError(f"masks given, but the file {path} holds its own: leave them out")
        try:
            state, given = _export_file.read(path, lambda described: check_state(model, described))
            state = _as_in(model, state)
            _check_masks(model, state, given)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
    else:
        state, given = _from_tensors(model, source, masks)
        check_state(model, state)
        _check_masks(model, state, given)
    sparse = from_masks(model, given, method=method, schedule=schedule, seed=seed, track_exploration=track_exploration)
    whole = model.state_dict()
    model.load_state_dict(whole | {name: state[plain] for name, plain in plain_state_names(model, whole).items()})
    return sparse


def _from_tensors(
    model: nn.Module, source: Mapping[str, Tensor], masks: Mapping[str, Tensor] | Literal["nonzero"] | None
) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
    """Dense state and masks, under the model's names."""
    if not isinstance(source, Mapping) or not all(isinstance(t, Tensor) for t in source.values()):
        raise ValueError("source must be a path or a dict of tensors that SparseModel.export made")
    source = _as_in(model, source)
    state, own = _densify(model, source)
    if own and masks is not None:
        raise ValueError("masks given, but the export holds its own: leave them out")
    given = masks or own
    if isinstance(given, str):
        if given != "nonzero":
            raise ValueError(f"masks must be a dict or 'nonzero', got {given!r}")
        names = [n for n, t in source.items() if t.layout is torch.sparse_bsr]
        given = {name: state[name] != 0 for name in names or _default_names(model) if name in state}
    if not given:
        raise ValueError("this export does not say which zeros are active: pass masks=sparse.masks(), or masks='nonzero'")
    return state, given


def _check_masks(model: nn.Module, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    if not masks:
        raise ValueError("it holds no sparse layers: dense weights are for model.load_state_dict")
    for c, mask in fit_masks(model, masks):
        if bool((state[c.name].ne(0) & ~mask.to(state[c.name].device)).any()):
            raise ValueError(f"{c.name} has weights outside its mask that are not 0: the masks belong to other weights")


def _default_names(model: nn.Module) -> list[str]:
    return [c.name for c in select(model, None, None, frozen=True).chosen]


def _densify(model: nn.Module, source: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dense state, and the masks of CSR tensors: every stored element is active."""
    shapes = {name: t.shape for name, t in _plain_state(model).items()}
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


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under their names without wrappers."""
    whole = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return {plain: whole[name] for name, plain in plain_state_names(model, whole).items()}


def _as_in(model: nn.Module, tensors: Mapping[str, T]) -> dict[str, T]:
    """Under the names of the model, where they differ by the parts that wrappers add alone."""
    known = match_names(tensors, _plain_state(model))
    return {known.get(name, name): t for name, t in tensors.items()}


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    expected, state = _plain_state(model), _as_in(model, state)
    problems = [f"{name}: missing" for name in expected if name not in state]
    problems += [f"{name!r}: not in the model" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        e, s = expected[name], state[name]
        if not isinstance(s, Tensor):
            problems.append(f"{name}: {type(s).__name__}, the model has a tensor")
        elif (s.shape, s.dtype) != (e.shape, e.dtype):
            problems.append(f"{name}: {s.dtype} {list(s.shape)}, the model has {e.dtype} {list(e.shape)}")
    if problems:
        raise ValueError("the export does not fit the model, nothing was changed:\n  " + "\n  ".join(sorted(problems)))
