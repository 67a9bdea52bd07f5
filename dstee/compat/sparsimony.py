"""sparsimony: its pruners and growers on these kernels, alone or put into a live sparsifier with :func:`accelerate`.

The classes have the names and ``calculate_mask`` signatures of ``sparsimony.pruners.unstructured`` and need no sparsimony:
masks of 0 and 1 in any floating dtype, a new mask returned, arguments not modified. Ties go to the lowest flat index, NaN
weights are dropped first, NaN gradients grown last. :class:`UnstructuredDSTEEGrower` is new.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from dstee import _checks, ops
from dstee.compat import _uneven
from dstee.compat._torch_ao_state import check_mask
from dstee.distributed import ranks
from dstee.encoding import bonus_table
from dstee.methods import DSTEE, Method


class _Pruner:
    @classmethod
    def _prune(cls, prune_ratio: float, mask: Tensor, **ranks: Any) -> Tensor:
        if not 0 <= prune_ratio <= 1:
            raise ValueError(f"prune_ratio must be in [0, 1], got {prune_ratio}")
        return _select(mask, int(mask.sum() * prune_ratio), 0, **ranks)


class _Grower:
    @classmethod
    def get_n_grow(cls, sparsity: float, mask: Tensor) -> int:
        """Weights to grow until ``int(numel * (1 - sparsity))`` are active.

        Raises:
            RuntimeError: more are active already.
        """
        target, active = int(mask.numel() * (1 - sparsity)), int(mask.sum().item())
        if active > target:
            raise RuntimeError(f"Current sparsity < target in grow mask: {active} weights are active, the target is {target}")
        return target - active

    @classmethod
    def _grow(cls, sparsity: float, mask: Tensor, **ranks: Any) -> Tensor:
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
        return _select(mask, 0, cls.get_n_grow(sparsity, mask), **ranks)


class UnstructuredMagnitudePruner(_Pruner):
    """Drops the active weights closest to zero."""

    @classmethod
    def calculate_mask(cls, prune_ratio: float, mask: Tensor, weights: Tensor) -> Tensor:
        """``mask`` without its ``int(mask.sum() * prune_ratio)`` active entries of smallest ``abs(weights)``."""
        _check_float_mask(mask)
        _check_like("weights", weights, mask)
        return cls._prune(prune_ratio, mask, weights=weights)


class UnstructuredRandomPruner(_Pruner):
    """Drops active weights at random: a seed from torch's generator, then a hash of each index."""

    @classmethod
    def calculate_mask(cls, prune_ratio: float, mask: Tensor) -> Tensor:
        """``mask`` without ``int(mask.sum() * prune_ratio)`` random active entries."""
        _check_float_mask(mask)
        scores = _uneven.random_signal(_draw_seed(mask.device), mask.numel(), mask.device).view(mask.shape)
        return cls._prune(prune_ratio, mask, weights=scores)


class UnstructuredRandomGrower(_Grower):
    """Grows at random, as :class:`UnstructuredRandomPruner` drops."""

    @classmethod
    def calculate_mask(cls, sparsity: float, mask: Tensor) -> Tensor:
        """``mask`` with random entries made active until ``int(mask.numel() * (1 - sparsity))`` are."""
        _check_float_mask(mask)
        return cls._grow(sparsity, mask, seed=_draw_seed(mask.device))


class UnstructuredGradientGrower(_Grower):
    """RigL's growth. Where there are several processes the mean gradient counts, not the mean of its local magnitudes."""

    @classmethod
    def calculate_mask(cls, sparsity: float, mask: Tensor, grads: Tensor | None) -> Tensor:
        """``mask`` with the entries of largest ``abs(grads)`` made active until ``int(mask.numel() * (1 - sparsity))`` are.

        ``grads=None`` grows at random, as in sparsimony.
        """
        _check_float_mask(mask)
        if grads is None:
            return UnstructuredRandomGrower.calculate_mask(sparsity, mask)
        _check_like("grads", grads, mask)
        return cls._grow(sparsity, mask, grads=ranks.mean([grads])[0])


class UnstructuredDSTEEGrower(_Grower):
    """DST-EE's growth: by ``abs(g) + c * ln(t) / (N + eps)`` (paper, Eq. 1)."""

    @classmethod
    def calculate_mask(
        cls, sparsity: float, mask: Tensor, grads: Tensor, counts: Tensor, step: int, c: float = 1e-3, eps: float = 1.0
    ) -> Tensor:
        """As :class:`UnstructuredGradientGrower`, by DST-EE's score at optimizer step ``step``.

        Args:
            counts: N, the mask rounds in which each weight was active: any integer dtype, shape of ``mask``. Not changed; after
                the update the caller adds the new mask to it.
        """
        _check_float_mask(mask)
        _check_like("grads", grads, mask)
        _check_like("counts", counts, mask)
        if counts.is_floating_point() or counts.dtype == torch.bool or bool((counts < 0).any()):
            raise ValueError("counts must be integers >= 0")
        # The stored form of N depends on the mask; in a mask that only gains weights, inactive ones store N itself.
        highest = int(counts.max()) if counts.numel() else 0
        bonus = bonus_table(c, eps, step, highest)
        signal = ranks.mean([grads])[0]
        stored = torch.where(mask == 0, counts, 0).to(torch.int16)
        return cls._grow(sparsity, mask, grads=signal, counts=stored, bonus=bonus, round=highest)


def _check_float_mask(mask: Any) -> None:
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a floating-point tensor of 0 and 1, got {got}")
    check_mask("this layer", mask, mask.shape)


def _check_like(name: str, t: Any, mask: Tensor) -> None:
    if not isinstance(t, Tensor) or t.shape != mask.shape:
        got = list(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"{name} must be a tensor of shape {list(mask.shape)} as mask, got {got}")
    if t.device != mask.device:
        raise ValueError(f"{name} is on {t.device}, mask on {mask.device}: move it first")


def _draw_seed(device: torch.device) -> int:
    return ranks.shared_seed(device, -(2**63), 2**63 - 1)


def _select(
    mask: Tensor, drop: int, grow: int, *, weights: Tensor | None = None, grads: Tensor | None = None,
    seed: int | None = None, counts: Tensor | None = None, bonus: Tensor | None = None, round: int = 0,
) -> Tensor:  # fmt: skip
    """A new mask: ``drop`` entries by weight out, ``grow`` entries by gradient, seed or index in. Copies what it ranks."""
    for name, t in (("weights", weights), ("grads", grads)):
        if t is not None and t.dtype not in _checks.PARAM_DTYPES:
            raise TypeError(f"{name} has dtype {t.dtype}, expected float32, bfloat16 or float16: convert it first")
    work = torch.zeros(mask.numel(), device=mask.device) if weights is None else weights.detach().reshape(-1).clone()
    signal = None if grads is None else grads.detach().to(torch.float32).reshape(-1)
    layer = _uneven.Layer(
        work, ops.pack_mask((mask != 0).reshape(-1).contiguous()), drop, grow, signal, seed,
        None if counts is None else counts.reshape(-1).clone(),
    )  # fmt: skip
    with torch.no_grad():
        _uneven.drop_grow_([layer], bonus=bonus, round=round)
    return layer.bools().view(mask.shape).to(mask.dtype)


# --- a live sparsifier ---------------------------------------------------------------------------------------------------


def accelerate(sparsifier: Any, method: Method | None = None) -> Any:
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
    if not sparsifier.groups:
        raise RuntimeError("this sparsifier has no layers yet: call prepare(model, sparse_config) first")
    if "_dstee" in vars(sparsifier):
        raise RuntimeError("this sparsifier is accelerated already")
    sparsifier._dstee = method
    for group in sparsifier.groups if method is not None else ():
        p = _parametrization(group)
        p.register_buffer("counts", torch.zeros(p.mask.numel(), dtype=torch.int16, device=p.mask.device))
        p.register_buffer("rounds", torch.zeros((), dtype=torch.int64))
    sparsifier._step = MethodType(_rigl_step if kind == "RigL" else _set_step, sparsifier)
    sparsifier.update_mask = MethodType(_update_one, sparsifier)
    return sparsifier


def undo(sparsifier: Any) -> Any:
    """Takes :func:`accelerate` back: the sparsifier goes on with its own code, masks and weights as they are.

    Raises:
        RuntimeError: it is not accelerated.
    """
    if "_dstee" not in vars(sparsifier):
        raise RuntimeError("this sparsifier is not accelerated")
    if sparsifier._dstee is not None:
        for group in sparsifier.groups:
            for name in ("counts", "rounds"):
                delattr(_parametrization(group), name)
    for name in ("_dstee", "_step", "update_mask"):
        delattr(sparsifier, name)
    return sparsifier


def _parametrization(group: dict[str, Any]) -> Any:
    return getattr(group["module"].parametrizations, group["tensor_name"])[0]


def _due(self: Any) -> bool:
    """Counts the step; at an update, each layer's share to prune stands in its group."""
    self._step_count += 1
    prune_ratio = self.scheduler(self._step_count)
    if prune_ratio is None:
        return False
    self._distribute_sparsity(self.sparsity)
    for group in self.groups:
        group["prune_ratio"] = prune_ratio
    return True


def _rigl_step(self: Any) -> bool:
    if due := _due(self):
        for group in self.groups:
            group["dense_grads"] = self._get_dense_grads(**group)
        _update(self, self.groups, grow_by_gradient=True)
        self._broadcast_masks()
    if self.scheduler.next_step_update(self._step_count):
        for group in self.groups:
            _parametrization(group).accumulate = True
    return due


def _set_step(self: Any) -> bool:
    if due := _due(self):
        _update(self, self.groups, grow_by_gradient=False)
        self._broadcast_masks()
    return due


def _update_one(self: Any, module: torch.nn.Module, tensor_name: str, **config: Any) -> None:
    """``update_mask`` of one layer, for callers of their own."""
    group = {"module": module, "tensor_name": tensor_name, **config}
    with torch.no_grad():
        _update(self, [group], grow_by_gradient="dense_grads" in config)


def _update(self: Any, groups: list[dict[str, Any]], grow_by_gradient: bool) -> None:
    """One drop_grow_ for all layers: ``int(active * prune_ratio)`` out, in until ``int(n * (1 - sparsity))`` are active."""
    dense = [g for g in groups if g["sparsity"] == 0]
    groups = [g for g in groups if g["sparsity"] != 0]
    for group in dense:
        _parametrization(group).mask.fill_(1)
    if not groups:
        return
    masks = [_parametrization(g).mask for g in groups]
    originals = [getattr(g["module"].parametrizations, g["tensor_name"]).original for g in groups]
    fresh = [~mask.bool() for mask in masks]  # four times as fast as mask == 0
    layers = [
        _uneven.Layer((o if o.is_contiguous() else o.contiguous()).detach().view(-1), ops.pack_mask(~off.contiguous()), 0, 0)
        for o, off in zip(originals, fresh, strict=True)
    ]
    active = _uneven.count_active(layers)
    grads = ranks.mean([g["dense_grads"] for g in groups]) if grow_by_gradient else None
    method = self._dstee
    for i, (group, mask, layer) in enumerate(zip(groups, masks, layers, strict=True)):
        layer.drop = int(torch.tensor(float(active[i]), dtype=mask.dtype) * group["prune_ratio"])
        target, left = int(mask.numel() * (1 - group["sparsity"])), active[i] - layer.drop
        if left > target:
            raise RuntimeError(
                f"Current sparsity < target in grow mask: {left} weights are active in {group['tensor_fqn']} after pruning, "
                f"the target is {target}"
            )
        layer.grow = target - left
        layer.signal = None if grads is None else grads[i].to(layer.weight.dtype).reshape(-1)
        layer.seed = _draw_seed(mask.device) if grads is None else None
        layer.counts = None if method is None else _parametrization(group).counts
        layer.marker = torch.ones_like(layer.weight) if self.grown_weights_init != 0 else None
    rounds = {0} if method is None else {int(_parametrization(group).rounds) for group in groups}
    if len(rounds) > 1:
        raise RuntimeError(f"layers have seen different numbers of updates: {sorted(rounds)}")
    round = rounds.pop()
    bonus = None if method is None else method.bonus(max(self._step_count, 1), round)
    for layer, off, original in zip(layers, fresh, originals, strict=True):
        layer.weight.view(original.shape).masked_fill_(off, 0)
    _uneven.drop_grow_(layers, bonus=bonus, round=round, reset_regrown=True)
    for group, layer, mask, original, off in zip(groups, layers, masks, originals, fresh, strict=True):
        new = layer.bools().view(mask.shape)
        if layer.weight.data_ptr() != original.data_ptr():
            original.copy_(layer.weight.view(original.shape))
        if layer.marker is not None:
            original.masked_fill_(new & (off | (layer.marker.view(mask.shape) == 0)), self.grown_weights_init)
        mask.copy_(new)
        if method is not None:
            _parametrization(group).rounds += 1
