"""A live sparsimony sparsifier computes on these kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from dstee import layer_update, ops
from dstee.compat.sparsimony.masks import draw_seed
from dstee.distributed import ranks
from dstee.layer_batch import count_active
from dstee.methods import DSTEE, Method

__all__ = ["accelerate", "undo"]

Group = dict[str, Any]  # one layer, as torch.ao's BaseSparsifier keeps it
S = TypeVar("S")


class _Scheduler(Protocol):
    def __call__(self, step: int) -> float | None: ...
    def next_step_update(self, step: int) -> bool: ...


class _Sparsifier(Protocol):
    """What is used of sparsimony's RigL and SET, and what :func:`accelerate` adds."""

    groups: list[Group]
    scheduler: _Scheduler
    sparsity: float
    grown_weights_init: float
    _step_count: int
    _step: Callable[[], bool]
    update_mask: Callable[..., None]
    _dstee: DSTEE | None

    def _distribute_sparsity(self, sparsity: float) -> None: ...
    def _get_dense_grads(self, module: nn.Module, tensor_name: str, **config: object) -> Tensor: ...
    def _broadcast_masks(self) -> None: ...


class _Parametrization(Protocol):
    """sparsimony's mask module; ``counts`` and ``rounds`` are ours."""

    mask: Tensor
    accumulate: bool
    counts: Tensor
    rounds: Tensor

    def register_buffer(self, name: str, tensor: Tensor) -> None: ...


def accelerate(sparsifier: S, method: Method | None = None) -> S:
    """Makes a prepared sparsimony ``RigL`` or ``SET`` update all its layers in one call of these kernels, in place.

    Scheduler, distribution, ``grown_weights_init``, gradient buffers and the optimizer's wrapper stay sparsimony's.
    Differences: ties go to the lowest index; ``original`` is 0 where the mask is, instead of what was left there; masks and
    weights keep their memory; with several processes the mean gradient is ranked; and sparsimony 0.1.0's ``SET`` works (its
    own counts every step twice and stops at an assertion unless half of the weights are active).

    Args:
        sparsifier: changed in place; :func:`undo` takes it back.
        method: a :class:`dstee.DSTEE` to grow by its score instead of RigL's (its counters become the buffers ``counts`` and
            ``rounds`` of the parametrizations, and so part of the model's state); default: what the class does.

    Returns:
        ``sparsifier``.

    Raises:
        TypeError: not such a sparsifier or method. RuntimeError: not prepared, or accelerated already.
    """
    kinds = {cls.__name__: cls.__module__ for cls in type(sparsifier).__mro__}
    kind = next((k for k in ("RigL", "SET") if kinds.get(k, "").startswith("sparsimony.")), None)
    if kind is None:
        raise TypeError(f"accelerate takes sparsimony's RigL and SET, not {type(sparsifier).__name__}")
    if method is not None and not isinstance(method, DSTEE):
        raise TypeError(f"method must be a dstee.DSTEE or None, got {type(method).__name__}")
    if method is not None and kind == "SET":
        raise TypeError("DST-EE grows by gradients, which sparsimony's SET does not keep: accelerate a RigL")
    live = cast(_Sparsifier, sparsifier)
    if not live.groups:
        raise RuntimeError("this sparsifier has no layers yet: call prepare(model, sparse_config) first")
    if "_dstee" in vars(sparsifier):
        raise RuntimeError("this sparsifier is accelerated already")
    live._dstee = method
    for group in live.groups if method is not None else ():
        p = _parametrization(group)
        p.register_buffer("counts", torch.zeros(p.mask.numel(), dtype=torch.int16, device=p.mask.device))
        p.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
    live._step = MethodType(_rigl_step if kind == "RigL" else _set_step, sparsifier)
    live.update_mask = MethodType(_update_one, sparsifier)
    return sparsifier


def undo(sparsifier: S) -> S:
    """Takes :func:`accelerate` back: the sparsifier goes on with its own code, masks and weights as they are.

    Raises:
        RuntimeError: it is not accelerated.
    """
    if "_dstee" not in vars(sparsifier):
        raise RuntimeError("this sparsifier is not accelerated")
    live = cast(_Sparsifier, sparsifier)
    if live._dstee is not None:
        for group in live.groups:
            for name in ("counts", "rounds"):
                delattr(_parametrization(group), name)
    for name in ("_dstee", "_step", "update_mask"):
        delattr(sparsifier, name)
    return sparsifier


def _parametrization(group: Group) -> _Parametrization:
    return getattr(group["module"].parametrizations, group["tensor_name"])[0]


def _due(self: _Sparsifier) -> bool:
    """Counts the step; at an update, each layer's share to prune stands in its group."""
    self._step_count += 1
    prune_ratio = self.scheduler(self._step_count)
    if prune_ratio is None:
        return False
    self._distribute_sparsity(self.sparsity)
    for group in self.groups:
        group["prune_ratio"] = prune_ratio
    return True


def _rigl_step(self: _Sparsifier) -> bool:
    if due := _due(self):
        for group in self.groups:
            group["dense_grads"] = self._get_dense_grads(**group)
        _update(self, self.groups, grow_by_gradient=True)
        self._broadcast_masks()
    if self.scheduler.next_step_update(self._step_count):
        for group in self.groups:
            _parametrization(group).accumulate = True
    return due


def _set_step(self: _Sparsifier) -> bool:
    if due := _due(self):
        _update(self, self.groups, grow_by_gradient=False)
        self._broadcast_masks()
    return due


def _update_one(self: _Sparsifier, module: nn.Module, tensor_name: str, **config: object) -> None:
    """``update_mask`` of one layer, for callers of their own."""
    group = {"module": module, "tensor_name": tensor_name, **config}
    with torch.no_grad():
        _update(self, [group], grow_by_gradient="dense_grads" in config)


def _update(self: _Sparsifier, groups: list[Group], grow_by_gradient: bool) -> None:
    """One drop_grow_ for all layers: ``int(active * prune_ratio)`` out, in until ``int(n * (1 - sparsity))`` are active."""
    for group in groups:
        if group["sparsity"] == 0:
            _parametrization(group).mask.fill_(1)
    groups = [g for g in groups if g["sparsity"] != 0]
    if not groups:
        return
    masks = [_parametrization(g).mask for g in groups]
    originals = [getattr(g["module"].parametrizations, g["tensor_name"]).original for g in groups]
    inactive = [~mask.bool() for mask in masks]  # four times as fast as mask == 0
    layers = [
        layer_update.LayerUpdate(
            (o if o.is_contiguous() else o.contiguous()).detach().view(-1), ops.pack_mask(~off.contiguous()), 0, 0
        )
        for o, off in zip(originals, inactive, strict=True)
    ]
    _decide(self, groups, layers, grow_by_gradient)
    rounds = {0} if self._dstee is None else {int(_parametrization(group).rounds) for group in groups}
    if len(rounds) > 1:
        raise RuntimeError(f"layers have seen different numbers of updates: {sorted(rounds)}")
    round = rounds.pop()
    bonus = None if self._dstee is None else self._dstee.bonus(max(self._step_count, 1), round)
    for layer, off, original in zip(layers, inactive, originals, strict=True):
        layer.weight.view(original.shape).masked_fill_(off, 0)
    zeroed = layer_update.drop_grow_(
        layers, bonus=bonus, round=round, reset_regrown=True, report_zeroed=self.grown_weights_init != 0
    )
    for i, (group, layer, mask, original) in enumerate(zip(groups, layers, masks, originals, strict=True)):
        new = layer.bools().view(mask.shape)
        if layer.weight.data_ptr() != original.data_ptr():
            original.copy_(layer.weight.view(original.shape))
        if zeroed:
            original.masked_fill_(new & (inactive[i] | zeroed[i].view(mask.shape)), self.grown_weights_init)
        mask.copy_(new)
        if self._dstee is not None:
            _parametrization(group).rounds += 1


def _decide(self: _Sparsifier, groups: list[Group], layers: list[layer_update.LayerUpdate], grow_by_gradient: bool) -> None:
    """How many weights each layer drops and grows, and by what.

    Raises:
        RuntimeError: a layer is still denser than its target after pruning.
    """
    active = count_active([layer.mask_bits for layer in layers])
    grads = ranks.mean([g["dense_grads"] for g in groups]) if grow_by_gradient else None
    for i, (group, layer) in enumerate(zip(groups, layers, strict=True)):
        p = _parametrization(group)
        layer.drop = int(torch.tensor(float(active[i]), dtype=p.mask.dtype) * group["prune_ratio"])
        target, left = int(p.mask.numel() * (1 - group["sparsity"])), active[i] - layer.drop
        if left > target:
            raise RuntimeError(
                f"Current sparsity < target in grow mask: {left} weights are active in {group['tensor_fqn']} after pruning, "
                f"the target is {target}"
            )
        layer.grow = target - left
        layer.signal = None if grads is None else grads[i].to(layer.weight.dtype).reshape(-1)
        layer.seed = draw_seed(p.mask.device) if grads is None else None
        layer.counts = None if self._dstee is None else p.counts
