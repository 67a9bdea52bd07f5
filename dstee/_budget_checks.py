"""Argument checks of what moves budgets and places: ``k_grow``, ``total``, ``where``, the digits of a key. As ``_checks``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dstee import _dispatch

__all__ = ["check_digit", "check_k_grow", "check_total", "read_places", "read_sizes", "split_total"]

_MOST = 2**62  # of a global index: sums of two still fit an int64


def check_k_grow(
    k_grow: list[int], k: list[int], k_tensor: Tensor | None, params: list[Tensor], active: list[int] | None, regrow: bool
) -> None:
    """0 <= k_grow[i] <= inactive weights, with ``regrow`` the k dropped ones too; without ``active``: at most the layer's
    size."""
    if k_grow and active is not None and k_tensor is not None:
        k = [min(max(k_i, 0), a) for k_i, a in zip(k_tensor.tolist(), active, strict=True)]
    for i, wanted in enumerate(k_grow):
        n = params[i].numel()
        dropped = k[i] if active is not None and regrow else 0
        bound = n if active is None else n - active[i] + dropped
        if wanted > bound:
            what = f"{'the inactive weights' if active is not None else 'the weights'} of params[{i}]"
            what += f" and the {dropped} that are dropped" if dropped else ""
            raise ValueError(f"k_grow[{i}] must be in 0..{bound} ({what}), got {wanted}")


def split_total(total: int | Tensor, device: torch.device) -> tuple[int, Tensor | None]:
    """total as (int, None) or (0, tensor)."""
    if not isinstance(total, Tensor):
        if isinstance(total, bool) or not isinstance(total, int):
            raise TypeError(f"total must be an int or a one-element int64 tensor, got {type(total).__name__}")
        if total < 0:
            raise ValueError(f"total must be >= 0, got {total}")
        return total, None
    if total.dtype != torch.int64 or total.numel() != 1:
        raise TypeError(f"total must be an int or a one-element int64 tensor, got {total.dtype} {list(total.shape)}")
    _dispatch.refuse_no_memory("total", total)
    if total.device != device:
        raise ValueError(f"total is on {total.device}, expected {device} as the parameters: move it first")
    return 0, total


def check_total(total: int, params: list[Tensor], active: list[int] | None) -> None:
    """total <= active weights of all layers; without ``active`` (asking a GPU would be a sync) their size."""
    bound = sum(active) if active is not None else sum(p.numel() for p in params)
    if total > bound:
        raise ValueError(f"total must be in 0..{bound} (the {'active ' * (active is not None)}weights), got {total}")


def _host_ints(name: str, value: Sequence[int] | Tensor) -> list[int]:
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.dim() != 1:
            raise TypeError(f"{name} must be a list of ints or a 1-D int64 tensor, got {value.dtype} {list(value.shape)}")
        if value.device.type != "cpu":
            raise ValueError(f"{name} is on {value.device}, expected cpu: it is known where the layers are cut")
        _dispatch.refuse_no_memory(name, value)
        return value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be a list of ints or an int64 tensor on the CPU, got {type(value).__name__}")
    for i, x in enumerate(value):
        if isinstance(x, bool) or not isinstance(x, int):
            raise TypeError(f"{name}[{i}] must be an int, got {type(x).__name__}")
    return list(value)


def read_sizes(total: Sequence[int] | Tensor | None, params: list[Tensor]) -> list[int]:
    """The sizes of the whole layers, one int each: those of ``params`` for None."""
    if total is None:
        return [p.numel() for p in params]
    sizes = _host_ints("total", total)
    if len(sizes) != len(params):
        raise ValueError(f"total must have one number per layer: got {len(sizes)}, expected {len(params)} as in params")
    for i, (size, p) in enumerate(zip(sizes, params, strict=True)):
        if not p.numel() <= size < _MOST:
            raise ValueError(f"total[{i}] must be in {p.numel()}..2**62 - 1 (params[{i}] is part of the layer), got {size}")
    return sizes


def read_places(
    where: Sequence[Sequence[int]] | Tensor | None, params: list[Tensor], sizes: list[int] | None = None
) -> list[int]:
    """``where`` as three ints (base, run, pitch) for each layer in one list; [] for None. ``sizes``: of the whole layers."""
    if where is None:
        return []
    if isinstance(where, Tensor):
        if where.dtype != torch.int64 or where.dim() != 2:
            raise TypeError(f"where must be an int64 tensor [{len(params)}, 3], got {where.dtype} {list(where.shape)}")
        if where.device.type != "cpu":
            raise ValueError(f"where is on {where.device}, expected cpu: it is known where the layers are cut")
        _dispatch.refuse_no_memory("where", where)
        where = where.tolist()
    if not isinstance(where, Sequence) or isinstance(where, str):
        raise TypeError(f"where must be a list of (base, run, pitch) or an int64 tensor, got {type(where).__name__}")
    if len(where) != len(params):
        raise ValueError(f"where must have one row per layer: got {len(where)}, expected {len(params)} as in params")
    return [x for i, row in enumerate(where) for x in _place(i, row, params[i].numel(), None if sizes is None else sizes[i])]


def _place(i: int, row: Sequence[int], n: int, size: int | None) -> tuple[int, int, int]:
    if not isinstance(row, Sequence) or len(row) != 3 or any(isinstance(x, bool) or not isinstance(x, int) for x in row):
        raise TypeError(f"where[{i}] must be three ints (base, run, pitch), got {row!r}")
    base, run, pitch = row
    if base < 0 or run < 1 or pitch < run:
        raise ValueError(
            f"where[{i}] = (base, run, pitch) must have base >= 0 and 1 <= run <= pitch (global indices grow with local ones), "
            f"got {tuple(row)}"
        )
    last = base + (n - 1) // run * pitch + (n - 1) % run if n else base
    bound = _MOST if size is None else size + (n == 0)
    if max(last, run - 1, pitch - 1) >= _MOST or last >= bound:
        most = "2**62" if size is None else f"total[{i}] = {size}"
        raise ValueError(f"where[{i}] puts the last of {n} weights at index {last}, expected below {most}")
    return base, run, pitch


def check_digit(growth: bool, word: int, shift: int) -> None:
    """A byte of a key: words 0 and 1 have four, word 2, the index, eight."""
    if not isinstance(growth, bool):
        raise TypeError(f"growth must be True or False, got {growth!r}")
    for name, value in (("word", word), ("shift", shift)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if word not in (0, 1, 2):
        raise ValueError(f"word must be 0 (score), 1 (signal) or 2 (index), got {word}")
    most = 56 if word == 2 else 24
    if shift % 8 or not 0 <= shift <= most:
        raise ValueError(f"shift of word {word} must be a multiple of 8 in 0..{most}, got {shift}")
