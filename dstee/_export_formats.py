"""The formats that sparse weights leave in: dense, CSR, BSR and safetensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dstee._export_file import Packed, write
from dstee.memory_order import reorder_bits, row_major
from dstee.parameter_names import plain_state_names
from dstee.sparse_layer import SparseLayer

FORMATS = ("dense", "csr", "bsr", "safetensors")
Blocks = tuple[int, int] | Mapping[str, tuple[int, int]] | None
Layers = Mapping[str, SparseLayer]


def export(model: nn.Module, layers: Layers, format: str, path: str | Path | None, blocksize: Blocks) -> dict[str, Tensor]:
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}, expected one of {', '.join(FORMATS)}")
    if (path is not None) != (format == "safetensors"):
        raise ValueError(f"path is {path!r}: only format='safetensors' writes a file, and needs one; the others return tensors")
    if (blocksize is not None) != (format == "bsr"):
        raise ValueError(f"blocksize is {blocksize!r}: only format='bsr' takes one, (rows, columns), and needs it")
    if any(layer.follow() is not None and layer.sharding is not None for layer in layers.values()):
        raise ValueError(
            "the weights are cut among ranks, and an export holds whole ones: load the gathered states, get_model_state_dict "
            "with full_state_dict=True and sparse.state_dict(full=True), into the model in one process and export there"
        )
    state, aliases = _state(model, layers)
    if format == "csr":
        return state | {name: _csr(state[name], mask) for name, mask in _masks(layers).items()}
    if format == "bsr":
        return state | _bsr(state, _masks(layers), blocksize)
    if format == "safetensors":
        return write(Path(str(path)), state, _packed(layers, state), aliases)
    return state


def _state(model: nn.Module, layers: Layers) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A copy of the model's state, contiguous, weights 0 outside the masks; names of tied sparse weights by first name."""
    named: dict[int, str] = {id(layer.follow()): name for name, layer in layers.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    plain = plain_state_names(model, parameters)
    aliases = {plain[name]: named[id(p)] for name, p in parameters.items() if id(p) in named and plain[name] != named[id(p)]}
    whole = model.state_dict()
    plain = plain_state_names(model, whole)
    state = {}
    for name, t in whole.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"cannot export {name} of the model's state, a {type(t).__name__}: only tensors")
        state[plain[name]] = t.detach().clone(memory_format=torch.contiguous_format)
    missing = [name for name in layers if name not in state]
    if missing:
        raise ValueError(f"the model's state_dict does not hold these sparse weights under their names: {', '.join(missing)}")
    for name, mask in _masks(layers).items():
        state[name].masked_fill_(~mask, 0)
        for alias in (a for a, first in aliases.items() if first == name):
            state[alias] = state[name].clone()
    return state, aliases


def _masks(layers: Layers) -> dict[str, Tensor]:
    return {name: layer.active().contiguous() for name, layer in layers.items()}


def _packed(layers: Layers, state: Mapping[str, Tensor]) -> dict[str, Packed]:
    """Active values and mask bits in row-major order."""
    masks = _masks(layers)
    return {
        name: Packed(
            list(layer.shape),
            layer.nnz,
            state[name][masks[name]].cpu(),
            reorder_bits(layer.mask_bits, layer.shape, layer.strides, row_major(layer.shape)).cpu().clone(),
        )
        for name, layer in layers.items()
    }


def _rows(shape: torch.Size) -> tuple[int, int]:
    """The matrix that a weight is: output units by the rest."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, shape.numel() // max(rows, 1)


def _quiet_sparse(make: Callable[..., Tensor], *args: object) -> Tensor:
    with warnings.catch_warnings():
        # Without check_invariants torch warns that it does not check; torch 2.11 says so even then.
        quiet = "Sparse (CSR|BSR) tensor support is in beta state|Sparse invariant checks are implicitly disabled"
        warnings.filterwarnings("ignore", message=quiet)
        return make(*args, check_invariants=True)


def _csr(weight: Tensor, mask: Tensor) -> Tensor:
    """Every active weight is stored, those that are 0 too: the columns are the mask."""
    mask, weight = mask.view(_rows(mask.shape)), weight.view(_rows(weight.shape))
    crow = torch.zeros(mask.shape[0] + 1, dtype=torch.int64, device=mask.device)
    crow[1:] = mask.sum(1).cumsum(0)
    return _quiet_sparse(torch.sparse_csr_tensor, crow, mask.nonzero()[:, 1].contiguous(), weight[mask], weight.shape)


def _bsr(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], blocksize: Blocks) -> dict[str, Tensor]:
    sizes = dict(blocksize) if isinstance(blocksize, Mapping) else dict.fromkeys(masks, blocksize)
    unknown = [name for name in sizes if name not in masks]
    if unknown:
        raise ValueError(f"blocksize names no sparse layers of the model: {', '.join(map(repr, unknown))}")
    problems = []
    for name, size in sizes.items():
        rows, columns = _rows(masks[name].shape)
        if not (isinstance(size, tuple) and len(size) == 2 and all(type(d) is int and d > 0 for d in size)):
            raise ValueError(f"blocksize must be (rows, columns), two ints > 0, got {size!r}")
        if rows % size[0] or columns % size[1]:
            problems.append(f"{name} [{rows}, {columns}]")
    if problems:
        raise ValueError(
            f"these weights are no multiple of blocksize {blocksize}: {', '.join(problems)}. Name the layers that are, "
            "blocksize={name: (rows, columns)}; the others stay dense"
        )
    return {name: _blocks(state[name], masks[name], *sizes[name]) for name in sizes}  # type: ignore[misc]


def _blocks(weight: Tensor, mask: Tensor, r: int, c: int) -> Tensor:
    rows, columns = _rows(weight.shape)
    grid = (rows // r, r, columns // c, c)
    stored = mask.view(grid).transpose(1, 2).flatten(2).any(2)  # [rows / r, columns / c]
    values = weight.view(grid).transpose(1, 2)[stored].contiguous()
    crow = torch.zeros(rows // r + 1, dtype=torch.int64, device=mask.device)
    crow[1:] = stored.sum(1).cumsum(0)
    return _quiet_sparse(torch.sparse_bsr_tensor, crow, stored.nonzero()[:, 1].contiguous(), values, (rows, columns))
