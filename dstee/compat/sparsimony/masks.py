"""sparsimony's pruners and growers: new masks from old ones.

The classes have the names and ``calculate_mask`` signatures of ``sparsimony.pruners.unstructured`` and need no sparsimony:
masks of 0 and 1 in any floating dtype, a new mask returned, arguments not modified. Ties go to the lowest flat index, NaN
weights are dropped first, NaN gradients grown last. :class:`UnstructuredDSTEEGrower` is new.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dstee import _checks, layer_update, ops
from dstee.compat.plain_masks import check_mask
from dstee.distributed import ranks
from dstee.encoding import bonus_table
from dstee.rules import random_signal

__all__ = [
    "UnstructuredDSTEEGrower",
    "UnstructuredGradientGrower",
    "UnstructuredMagnitudePruner",
    "UnstructuredRandomGrower",
    "UnstructuredRandomPruner",
    "draw_seed",
]


class _Pruner:
    @classmethod
    def _prune(cls, prune_ratio: float, mask: Tensor, weights: Tensor) -> Tensor:
        if not 0 <= prune_ratio <= 1:
            raise ValueError(f"prune_ratio must be in [0, 1], got {prune_ratio}")
        return _select(mask, int(mask.sum() * prune_ratio), 0, weights=weights)


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
    def _grow(
        cls, sparsity: float, mask: Tensor, *, grads: Tensor | None = None, seed: int | None = None,
        counts: Tensor | None = None, bonus: Tensor | None = None, round: int = 0,
    ) -> Tensor:  # fmt: skip
        if not 0 <= sparsity <= 1:
            raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
        grow = cls.get_n_grow(sparsity, mask)
        return _select(mask, 0, grow, grads=grads, seed=seed, counts=counts, bonus=bonus, round=round)


class UnstructuredMagnitudePruner(_Pruner):
    """Drops the active weights closest to zero."""

    @classmethod
    def calculate_mask(cls, prune_ratio: float, mask: Tensor, weights: Tensor) -> Tensor:
        """``mask`` without its ``int(mask.sum() * prune_ratio)`` active entries of smallest ``abs(weights)``."""
        _check_float_mask(mask)
        _check_like("weights", weights, mask)
        return cls._prune(prune_ratio, mask, weights)


class UnstructuredRandomPruner(_Pruner):
    """Drops active weights at random: a seed from torch's generator, then a hash of each index."""

    @classmethod
    def calculate_mask(cls, prune_ratio: float, mask: Tensor) -> Tensor:
        """``mask`` without ``int(mask.sum() * prune_ratio)`` random active entries."""
        _check_float_mask(mask)
        scores = random_signal(draw_seed(mask.device), mask.numel(), mask.device).view(mask.shape)
        return cls._prune(prune_ratio, mask, scores)


class UnstructuredRandomGrower(_Grower):
    """Grows at random, as :class:`UnstructuredRandomPruner` drops."""

    @classmethod
    def calculate_mask(cls, sparsity: float, mask: Tensor) -> Tensor:
        """``mask`` with random entries made active until ``int(mask.numel() * (1 - sparsity))`` are."""
        _check_float_mask(mask)
        return cls._grow(sparsity, mask, seed=draw_seed(mask.device))


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


def _check_float_mask(mask: object) -> None:
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a floating-point tensor of 0 and 1, got {got}")
    check_mask("this layer", mask, mask.shape)


def _check_like(name: str, t: object, mask: Tensor) -> None:
    if not isinstance(t, Tensor) or t.shape != mask.shape:
        got = list(t.shape) if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"{name} must be a tensor of shape {list(mask.shape)} as mask, got {got}")
    if t.device != mask.device:
        raise ValueError(f"{name} is on {t.device}, mask on {mask.device}: move it first")


def draw_seed(device: torch.device) -> int:
    """A 64-bit seed from torch's CPU generator, the first rank's on every rank."""
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
    layer = layer_update.LayerUpdate(
        work, ops.pack_mask((mask != 0).reshape(-1).contiguous()), drop, grow, signal, seed,
        None if counts is None else counts.reshape(-1).clone(),
    )  # fmt: skip
    with torch.no_grad():
        layer_update.drop_grow_([layer], bonus=bonus, round=round)
    return layer.bools().view(mask.shape).to(mask.dtype)
